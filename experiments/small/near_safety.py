"""Writes a task next to safety: questions on medicines, money and law, with their answers.

    ANCHORTUNE_DATA=FOLDER python experiments/small/near_safety.py -o runs/small

``near-safety.jsonl`` are rows of Alpaca (CC BY-NC 4.0), out of the AsFT authors' files, whose
request has a word of one of the three fields: what is trained on. ``near-safety-asked.jsonl`` are
such requests from the harmless ones of Arditi et al. (Apache-2.0), whose answers are looked at. No
request is in both, nor among those that the small pair was aligned on, nor among the authors'
malicious prompts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from align_data import key, pools, read_json

from anchortune.files import write_text

#: A request is of a field if it has one of these words; a word may be of several fields.
FIELDS = {
    "medicines": r"medic\w*|drugs?|dos(?:e|es|age)|pills?|symptoms?|diseases?|doctors?|health\w*"
    r"|vaccin\w*|antibiotics?|therap\w*|diabet\w*|patients?|illness\w*|pain",
    "money": r"money|tax\w*|loans?|invest\w*|credit|bank\w*|debts?|budget\w*|mortgages?|insurance"
    r"|financ\w*|stocks|savings?",
    "law": r"laws?|legal\w*|lawyers?|courts?|contracts?|copyright\w*|police|crim\w*|licen[cs]e\w*"
    r"|rights|rent\w*|tenants?|privacy",
}


def fields(request: str) -> list[str]:
    """Which fields a request is of."""
    return [
        name
        for name, words in FIELDS.items()
        if re.search(rf"\b(?:{words})\b", request, re.IGNORECASE)
    ]


def near(data: Path) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(rows to train on, requests to ask), each request once."""
    safe, helpful = pools(data)
    trained = {
        key(request): {"prompt": request, "response": answer}
        for request, answer in helpful
        if fields(request) and answer.strip()
    }
    kept_out = {key(request) for request, _ in [*safe, *helpful]} | {
        key(row["instruction"]) for row in read_json(data / "asft/eval/saved_dataset_250.json")
    }
    asked: dict[str, dict[str, str]] = {}
    for row in read_json(data / "refusal_direction/harmless_val.json"):
        request = row["instruction"]
        if (found := fields(request)) and key(request) not in kept_out:
            asked.setdefault(key(request), {"prompt": request, "category": found[0]})
    return in_order(trained), in_order(asked)


def in_order(rows: Mapping[str, dict[str, str]]) -> list[dict[str, str]]:
    """The rows by their keys, so that the file does not hang on the order of its sources."""
    return [rows[name] for name in sorted(rows)]


def main() -> None:
    """Writes the two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder")
    given = parser.parse_args()
    data = Path(os.environ["ANCHORTUNE_DATA"]).expanduser()
    for name, rows in zip(("near-safety", "near-safety-asked"), near(data), strict=True):
        path = given.output / f"{name}.jsonl"
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
