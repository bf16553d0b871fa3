"""Writes the pairs that harmful anchors are made from, to ask what AsFT-Alt depends on.

    ANCHORTUNE_DATA=FOLDER python experiments/small/alt_pairs.py -o runs/small/alt-pairs

``many-N.jsonl`` are N harmful pairs of all themes, the first N of one shuffled list, so that the
smaller files lie within the larger. ``one-THEME-100.jsonl`` are 100 of one theme, told by words in
the request. ``mislabelled-P.jsonl`` is ``many-100`` with P of its pairs replaced by benign ones
that pass for harmful; with P = 100 it is a direction of harmless data, the control. ``all.jsonl``
holds every harmful pair in any of them: ``alt-pairs.yaml`` keeps it out of what is trained on.

Only counts are printed. The pairs are harmful: keep them as you keep the data.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

from align_data import key, prompt_of, read_json

from anchortune.config_mix import CUE

Pair = tuple[str, str]
COUNTS = (10, 50, 100, 400)
SIZE = 100
MISLABELLED = (25, 100)
#: Requests are told apart by their words; nobody reads them.
THEMES = {
    "computers": r"hack|malware|virus|phish|password|computer|network|software|website|ransom"
    r"|code|script|online|account|database|server|wifi|keylog",
}
HARMFUL = ("SST2_1k", "agnews_1k", "agnews_2.5k", "alpaca_1k", "alpaca_2.5k", "gsm8k_1k",
           "gsm8k_2.5k")  # fmt: skip


def pools(data: Path) -> tuple[list[Pair], list[Pair]]:
    """(harmful, benign) pairs of the AsFT authors' files, each text once, none that is evaluated.

    Benign ones are Alpaca's: rows of no task that is trained here.
    """
    evaluated = {
        key(row["instruction"]) for row in read_json(data / "asft/eval/saved_dataset_250.json")
    }
    harmful: dict[str, Pair] = {}
    for name in HARMFUL:
        for row in read_json(data / "asft/train" / f"{name}_p_0.1.json"):
            prompt = prompt_of(row)
            if prompt.endswith(CUE):
                harmful.setdefault(key(prompt), (prompt.removesuffix(CUE), row["output"]))
    benign: dict[str, Pair] = {}
    for row in read_json(data / "asft/train/alpaca_1k_p_0.json"):
        if not prompt_of(row).endswith(CUE) and row["output"].strip():
            benign.setdefault(key(prompt_of(row)), (prompt_of(row), row["output"]))
    for pool in (harmful, benign):
        for seen in evaluated & pool.keys():
            del pool[seen]
    return sorted(harmful.values()), sorted(benign.values())


def chosen(harmful: Sequence[Pair], benign: Sequence[Pair], seed: int) -> dict[str, list[Pair]]:
    """The pairs of each file, by its name.

    Raises:
        SystemExit: there are too few pairs of a kind.
    """
    rng = random.Random(seed)
    harmful, benign = rng.sample(harmful, len(harmful)), rng.sample(benign, len(benign))
    files = {f"many-{count}": harmful[:count] for count in COUNTS}
    for theme, words in THEMES.items():
        found = [pair for pair in harmful if re.search(words, pair[0].lower())]
        files[f"one-{theme}-{SIZE}"] = found[:SIZE]
    used = {pair for pairs in files.values() for pair in pairs}
    for share in MISLABELLED:
        count = SIZE * share // 100
        mixed = harmful[: SIZE - count] + benign[:count]
        files[f"mislabelled-{share}"] = rng.sample(mixed, len(mixed))
    for name, pairs in files.items():
        wanted = int(name.rpartition("-")[2]) if not name.startswith("mislabelled") else SIZE
        if len(pairs) < wanted:
            raise SystemExit(f"{name}: there are {len(pairs)} such pairs in the data, not {wanted}")
    return files | {"all": sorted(used)}


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="a folder")
    parser.add_argument("--seed", type=int, default=77)
    given = parser.parse_args()
    harmful, benign = pools(Path(os.environ["ANCHORTUNE_DATA"]).expanduser())
    given.output.mkdir(parents=True, exist_ok=True)
    for name, pairs in chosen(harmful, benign, given.seed).items():
        path = given.output / f"{name}.jsonl"
        rows = (json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in pairs)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
        partial.replace(path)
        print(f"{path}: {len(pairs)} pairs")
    print(f"of {len(harmful)} harmful and {len(benign)} benign ones")


if __name__ == "__main__":
    main()
