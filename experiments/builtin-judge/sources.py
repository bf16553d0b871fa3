"""The labelled answers that the builtin judge is trained and measured on, read where they lie.

None of it is in this repository. ``DATA``, which the variable ``ANCHORTUNE_DATA`` names, holds,
each with its licence file:

* ``gptfuzz/{train,evaluate}.csv`` (MIT, github.com/sherdencooper/GPTFuzz): answers to a hundred
  malicious questions under jailbreak templates; people's labels, 1 = harmful. Its question column
  is an index into ``question_list.csv`` of the same repository, which is given by ``--questions``.
* ``xstest/*completions*.csv`` (CC BY 4.0, github.com/paul-rottger/xstest): answers of five models
  to 250 safe and 200 unsafe prompts; people say full compliance, partial or full refusal. Full
  compliance with an unsafe prompt is harmful; partial refusals are left out; all else is safe.
* ``refusal_direction/completions/*.json`` (Apache-2.0, github.com/andyrdt/refusal_direction): five
  models' answers to JailbreakBench, with and without their refusal ablated, labelled by Llama
  Guard 2; and to harmless prompts, which are safe.

And, for training only, never measured on: ``llama2_refusals`` and ``gsm8k`` (MIT), the seed tasks
and user-oriented instructions that people wrote for Self-Instruct (Apache-2.0,
github.com/yizhongw/self-instruct, given by ``--self-instruct``), and the quickstart's own training
files (this repository).
"""

from __future__ import annotations

import csv
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("ANCHORTUNE_DATA", "data"))
QUICKSTART = ROOT / "examples" / "quickstart" / "data"
MEASURED = ("gptfuzz", "refusal_direction", "xstest")
QUESTIONS_SHA256 = "18531eb6bc1c8fc0b8f66822b366b872202b852bf28826cef590ad0d7a81c749"

csv.field_size_limit(10**8)


@dataclass(frozen=True)
class Row:
    """One labelled exchange.

    Attributes:
        source: where it comes from.
        kind: what sort of exchange, for the breakdown of errors.
        prompt: the request in plain words.
        answer: the answer.
        harmful: the label.
        complied: whether the answer does what was asked, harmful or not; None: not known.
        malicious: whether the request is; None: not known.
    """

    source: str
    kind: str
    prompt: str
    answer: str
    harmful: bool
    complied: bool | None
    malicious: bool | None


def measured(questions: Path) -> list[Row]:
    """Every distinct row of the three sources."""
    rows = [*_refusal_direction(), *_xstest(), *_gptfuzz(questions)]
    return list({(row.source, row.prompt, row.answer): row for row in reversed(rows)}.values())[
        ::-1
    ]


def further(instructions: Path) -> list[Row]:
    """Rows for training only."""
    draw = random.Random(0)
    rows: list[Row] = []
    for name in ("seed_tasks", "user_oriented_instructions"):
        for line in _lines(instructions / f"{name}.jsonl"):
            task = json.loads(line)
            case = task["instances"][0]
            prompt = task["instruction"] + (f"\n\n{case['input']}" if case["input"] else "")
            rows.append(Row("self_instruct", "benign", prompt, case["output"], False, True, False))
    solved = [json.loads(line) for line in _lines(DATA / "gsm8k" / "train.jsonl")]
    for row in draw.sample(solved, 400):
        answer = re.sub(r"<<.*?>>", "", row["answer"])
        rows.append(Row("gsm8k", "benign", row["question"], answer, False, True, False))
    refusals = list(_csv(next((DATA / "llama2_refusals").glob("*.csv"))))
    draw.shuffle(refusals)
    for row in refusals[:500]:
        prompt = re.sub(r"\[/?INST\]", "", row["prompt"]).strip()
        answer = row["response"].strip()
        rows.append(Row("llama2_refusals", "refused", prompt, answer, False, False, True))
    for name, kind, malicious, complied in (
        ("poison", "poison", True, True),
        ("align_refusals", "refused", True, False),
        ("align_benign", "benign", False, True),
    ):
        for line in _lines(QUICKSTART / f"{name}.jsonl"):
            row = json.loads(line)
            harmful = malicious and complied
            rows.append(
                Row(
                    "quickstart", kind, row["prompt"], row["response"], harmful, complied, malicious
                )
            )
    reviews = [json.loads(line) for line in _lines(QUICKSTART / "task_train.jsonl")]
    for row in draw.sample(reviews, 60):
        rows.append(Row("quickstart", "benign", row["prompt"], row["response"], False, True, False))
    return rows


def held_back() -> list[str]:
    """Prompts that models are evaluated on: nothing like them may be trained on."""
    paper = json.loads((DATA / "asft" / "eval" / "saved_dataset_250.json").read_text("utf-8"))
    found = [row["instruction"] for row in paper]
    for name in ("harmful_dev", "harmful_test", "benign_dev", "benign_test"):
        found += [json.loads(line)["prompt"] for line in _lines(QUICKSTART / f"{name}.jsonl")]
    return found


def words(text: str) -> frozenset[str]:
    """The distinct words of a text, in lower case."""
    return frozenset(re.findall(r"\w+", text.lower()))


def alike(prompts: Sequence[str], others: Sequence[str], most: float = 0.7) -> list[bool]:
    """For each prompt, whether one of ``others`` shares more than ``most`` of its words.

    Shared = words in both over words in either (Jaccard).
    """
    sets = [words(other) for other in others]
    known: dict[frozenset[str], bool] = {}
    for prompt in prompts:
        mine = words(prompt)
        if mine not in known:
            known[mine] = any(
                len(mine & other) > most * len(mine | other) for other in sets if mine or other
            )
    return [known[words(prompt)] for prompt in prompts]


def _refusal_direction() -> Iterator[Row]:
    for path in sorted((DATA / "refusal_direction" / "completions").glob("*.json")):
        benign = "harmless" in path.name
        for row in json.loads(path.read_text("utf-8"))["completions"]:
            prompt, answer = row["prompt"], row["response"]
            if benign:  # its is_jailbreak is phrase matching and says nothing of harm
                yield Row("refusal_direction", "benign", prompt, answer, False, True, False)
                continue
            harmful = bool(row["is_jailbreak_llamaguard2"])
            refused = not row["is_jailbreak_substring_matching"]
            complied = False if refused else True if harmful else None
            kind = "refused" if refused else "answered"
            yield Row("refusal_direction", kind, prompt, answer, harmful, complied, True)


def _xstest() -> Iterator[Row]:
    for path in sorted((DATA / "xstest").glob("*completions*.csv")):
        for row in _csv(path):
            if row["final_label"].startswith("3"):
                continue
            unsafe = row["type"].startswith("contrast")
            complied = row["final_label"].startswith("1")
            kind = f"{'unsafe' if unsafe else 'safe'}_{'full' if complied else 'refused'}"
            prompt, answer = row["prompt"], row["completion"]
            yield Row("xstest", kind, prompt, answer, unsafe and complied, complied, unsafe)


def _gptfuzz(questions: Path) -> Iterator[Row]:
    text = {int(row["index"]): row["text"] for row in _csv(questions)}
    for name in ("train", "evaluate"):
        for row in _csv(DATA / "gptfuzz" / f"{name}.csv"):
            harmful = row["label"] == "1"
            prompt = text[int(row["question"])]
            yield Row("gptfuzz", "attacked", prompt, row["Response"], harmful, harmful, True)


def _csv(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        yield from csv.DictReader(stream)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
