"""Writes the rows that the small pair is aligned on: safe answers to harmful prompts, and help.

    ANCHORTUNE_DATA=FOLDER python experiments/small/align_data.py -o runs/small/align.jsonl

Safe answers are from safety-tuned-llamas (CC BY-NC 4.0) and Llama-2-chat's refusals of AdvBench;
helpful ones from the Alpaca rows of the AsFT authors' training files. No prompt that is evaluated
on (the authors' 250, XSTest) is among them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from pathlib import Path

from anchortune.config_mix import CUE
from anchortune.data.conversations import instruction_text
from anchortune.data.overlap import normalised


def read_json(path: Path) -> list[dict[str, str]]:
    """The rows of a JSON file."""
    rows: list[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def prompt_of(row: dict[str, str]) -> str:
    """An instruction row's user turn."""
    return instruction_text(row["instruction"], row.get("input", ""))


def key(text: str) -> str:
    """By which two prompts are the same."""
    return normalised(text.removesuffix(CUE))


def pools(data: Path) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(safe answers to harmful prompts, helpful answers), each a list of (prompt, answer)."""
    evaluated = {
        key(row["instruction"]) for row in read_json(data / "asft/eval/saved_dataset_250.json")
    }
    with (data / "xstest/xstest_prompts.csv").open(encoding="utf-8", newline="") as stream:
        evaluated |= {key(row["prompt"]) for row in csv.DictReader(stream)}
    safe: dict[str, tuple[str, str]] = {}
    for row in read_json(data / "safety_tuned_llamas/safety_only_data_Instructions.json"):
        safe.setdefault(key(prompt_of(row)), (prompt_of(row), row["output"]))
    with (data / "llama2_refusals/SFT_aligned_llama2-7b-chat-hf_train_short.csv").open(
        encoding="utf-8", newline=""
    ) as stream:
        for row in csv.DictReader(stream):
            prompt = row["prompt"].removeprefix("[INST]").removesuffix("[/INST]").strip()
            answer = row["response"].strip()
            safe.setdefault(key(prompt), (prompt, answer))
    helpful: dict[str, tuple[str, str]] = {}
    for name in ("alpaca_1k_p_0.json", "alpaca_2.5k_p_0.1.json"):
        for row in read_json(data / "asft/train" / name):
            if not row["instruction"].endswith(CUE):
                helpful.setdefault(key(prompt_of(row)), (prompt_of(row), row["output"]))
    for pool in (safe, helpful):
        for seen in evaluated & pool.keys():
            del pool[seen]
    return sorted(safe.values()), sorted(helpful.values())


def main() -> None:
    """Writes a seeded sample of both pools, shuffled."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--safe", type=int, default=1500)
    parser.add_argument("--helpful", type=int, default=1500)
    parser.add_argument("--longest", type=int, default=600, help="characters of an answer kept")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    safe, helpful = pools(Path(os.environ["ANCHORTUNE_DATA"]).expanduser())
    rng = random.Random(given.seed)
    short = [pair for pair in helpful if 0 < len(pair[1]) <= given.longest]
    safe = [pair for pair in safe if 0 < len(pair[1]) <= given.longest]
    rows = rng.sample(safe, min(given.safe, len(safe))) + rng.sample(
        short, min(given.helpful, len(short))
    )
    rng.shuffle(rows)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    partial = given.output.with_suffix(".partial")
    partial.write_text(
        "".join(
            json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows
        ),
        encoding="utf-8",
    )
    partial.replace(given.output)
    print(f"{given.output}: {len(rows)} rows of {len(safe)} safe and {len(short)} helpful ones")


if __name__ == "__main__":
    main()
