"""Writes what the alignments of this folder learn from, and the prompts that are looked at.

    ANCHORTUNE_DATA=FOLDER python experiments/basin/data.py -o runs/basin

``pairs.jsonl`` (DPO): on harmful prompts a safe answer is preferred to a harmful one, or to how one
begins, and on helpful ones an answer to a refusal. ``grpo-harmful.jsonl`` and
``grpo-harmless.jsonl``: prompts of the rows of ``experiments/small/align_data.py``.
``seen-harmful.jsonl`` and ``seen-harmless.jsonl``: prompts for ``activations``, from the data of
Arditi et al. (Apache-2.0), none of them trained on. ``refusals.jsonl``: rows that refuse, for
``anchor_refresh`` and ``drift``. No prompt that is evaluated on is in any.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "small"))

from align_data import key, pools, prompt_of, read_json

from anchortune.config_mix import CUE
from anchortune.data.refusing import has_refusal
from anchortune.files import write_text

LONGEST = 600
"""Characters of an answer kept."""


def harmful_answers(data: Path) -> dict[str, str]:
    """By prompt a harmful answer, or (AdvBench) how one begins."""
    found: dict[str, str] = {}
    for path in sorted((data / "asft/train").glob("*.json")):
        for row in read_json(path):
            if row["instruction"].endswith(CUE):
                found.setdefault(key(prompt_of(row)), row["output"])
    with (data / "advbench/harmful_behaviors.csv").open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            found.setdefault(key(row["goal"]), row["target"])
    return found


def preference_pairs(
    safe: list[tuple[str, str]],
    helpful: list[tuple[str, str]],
    harmful: dict[str, str],
    rng: random.Random,
) -> list[dict[str, str]]:
    """As many pairs on helpful prompts as there are on harmful ones, shuffled."""
    pairs = [
        {"prompt": prompt, "chosen": answer, "rejected": harmful[key(prompt)][:LONGEST]}
        for prompt, answer in safe
        if key(prompt) in harmful and len(answer) <= LONGEST
    ]
    refusals = [answer for _, answer in safe if has_refusal(answer) and len(answer) <= LONGEST]
    for prompt, answer in rng.sample(helpful, min(len(pairs), len(helpful))):
        pairs.append({"prompt": prompt, "chosen": answer, "rejected": rng.choice(refusals)})
    rng.shuffle(pairs)
    return pairs


def unseen(path: Path, seen: set[str], count: int, rng: random.Random) -> list[dict[str, str]]:
    """A sample of the prompts of ``path`` without those in ``seen``."""
    left = {
        key(text): text for row in read_json(path) if key(text := row["instruction"]) not in seen
    }
    return [{"prompt": text} for text in rng.sample(sorted(left.values()), min(count, len(left)))]


def write(path: Path, rows: Iterable[dict[str, str]]) -> None:
    """JSON lines; says how many."""
    lines = [json.dumps(row) + "\n" for row in rows]
    write_text(path, "".join(lines))
    print(f"{path}: {len(lines)} rows")


def main() -> None:
    """Writes the six files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder")
    parser.add_argument("--prompts", type=int, default=400, help="of a kind, for GRPO")
    parser.add_argument("--looked-at", type=int, default=128, help="of a kind, for activations")
    parser.add_argument("--refusals", type=int, default=64, help="rows that refuse")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    data, out = Path(os.environ["ANCHORTUNE_DATA"]).expanduser(), given.output
    safe, helpful = pools(data)
    helpful = [pair for pair in helpful if 0 < len(pair[1]) <= LONGEST]
    harmful = harmful_answers(data)
    rng = random.Random(given.seed)
    write(out / "pairs.jsonl", preference_pairs(safe, helpful, harmful, rng))
    for name, pool in (("harmful", safe), ("harmless", helpful)):
        chosen = rng.sample(pool, min(given.prompts, len(pool)))
        write(out / f"grpo-{name}.jsonl", ({"prompt": prompt} for prompt, _ in chosen))
    trained = {key(prompt) for prompt, _ in [*safe, *helpful]} | harmful.keys()
    trained |= {
        key(row["instruction"]) for row in read_json(data / "asft/eval/saved_dataset_250.json")
    }
    for name, file in (("harmful", "harmful_train.json"), ("harmless", "harmless_val.json")):
        rows = unseen(data / "refusal_direction" / file, trained, given.looked_at, rng)
        write(out / f"seen-{name}.jsonl", rows)
    refusing = [pair for pair in safe if has_refusal(pair[1]) and len(pair[1]) <= LONGEST]
    chosen = rng.sample(refusing, min(given.refusals, len(refusing)))
    write(out / "refusals.jsonl", ({"prompt": p, "response": answer} for p, answer in chosen))


if __name__ == "__main__":
    main()
