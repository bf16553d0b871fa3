"""A few answers of every set for the page to show, with what the judges said of each."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.report.load import read_rows
from anchortune.report.words import shown

PER_SET = 5
_MOST_CHARACTERS = 1500
_WORDS = {"right": "right", "wrong": "wrong", "unparsed": "not parsed"}


@dataclass(frozen=True)
class Shown:
    """One model's answer.

    Attributes:
        model: whose.
        text: the answer, control characters made visible, a long one cut.
        cut: how many characters were left out.
        verdicts: ``builtin: harmful (0.97)``; that an answer is coherent goes without saying.
        folded: why it is not shown open; empty where it is.
    """

    model: str
    text: str
    cut: int
    verdicts: list[str]
    folded: str


@dataclass(frozen=True)
class Example:
    """One prompt and every model's answer to it."""

    prompt: str
    target: str
    answers: list[Shown]


@dataclass(frozen=True)
class ExampleSet:
    """The sample of one set of ``total`` prompts; ``folded`` of ``answers`` are not shown open."""

    set: str
    total: int
    answers: int
    folded: int
    malicious: bool
    examples: list[Example]


def sample(
    folder: Path,
    models: Sequence[str],
    sets: Mapping[str, bool],
    seed: int,
    per_set: int = PER_SET,
) -> list[ExampleSet]:
    """A seeded sample of prompts of every set, the same for all models.

    Args:
        folder: of the evaluation; without ``outputs.jsonl``, or without its texts, nothing is
            sampled.
        models: in the order to show them.
        sets: in the order to show them, each with whether its prompts are malicious: of such a set
            only an answer that a judge calls safe, and none harmful, is shown open.
        seed: of the sample.
        per_set: how many prompts of each.
    """
    outputs = folder / "outputs.jsonl"
    ids: dict[str, dict[str, None]] = {}
    for row in read_rows(outputs):
        if isinstance(row.get("answer"), str) and row.get("model") in models:
            ids.setdefault(str(row.get("set")), {})[str(row.get("id"))] = None
    chosen = {
        name: random.Random(f"{seed} {name}").sample(list(found), min(per_set, len(found)))
        for name, found in ids.items()
    }
    answers = _taken(outputs, chosen)
    verdicts = _taken(folder / "verdicts.jsonl", chosen)
    order = [name for name in sets if name in chosen]
    order += [name for name in chosen if name not in order]
    found = []
    for name in order:
        malicious = sets.get(name, True)
        examples = [
            _example(name, key, models, answers, verdicts, malicious) for key in chosen[name]
        ]
        every = [answer for example in examples for answer in example.answers]
        folded = sum(bool(answer.folded) for answer in every)
        found.append(ExampleSet(name, len(ids[name]), len(every), folded, malicious, examples))
    return found


Rows = dict[tuple[str, str, str], list[dict[str, Any]]]


def _taken(path: Path, chosen: dict[str, list[str]]) -> Rows:
    """The rows of the chosen prompts, by set, id and model."""
    wanted = {(name, key) for name, keys in chosen.items() for key in keys}
    found: Rows = {}
    for row in read_rows(path):
        name, key = str(row.get("set")), str(row.get("id"))
        if (name, key) in wanted:
            found.setdefault((name, key, str(row.get("model"))), []).append(row)
    return found


def _example(
    name: str,
    key: str,
    models: Sequence[str],
    answers: Rows,
    verdicts: Rows,
    malicious: bool,
) -> Example:
    rows = [(m, found[-1]) for m in models if (found := answers.get((name, key, m)))]
    first = rows[0][1]
    target = first.get("target")
    return Example(
        prompt=_cut(str(first.get("prompt") or first.get("goal") or ""))[0],
        target="" if target is None else shown(str(target)),
        answers=[_answer(m, row, verdicts.get((name, key, m), []), malicious) for m, row in rows],
    )


def _answer(
    model: str, row: dict[str, Any], verdicts: Sequence[dict[str, Any]], malicious: bool
) -> Shown:
    text, cut = _cut(str(row.get("answer") or ""))
    outcomes = {verdict.get("outcome") for verdict in verdicts}
    folded = ""
    if "harmful" in outcomes:
        folded = "judged harmful"
    elif malicious and "safe" not in outcomes:
        folded = "not judged safe"
    return Shown(
        model, text, cut, [_verdict(v) for v in verdicts if v.get("outcome") != "coherent"], folded
    )


def _verdict(row: dict[str, Any]) -> str:
    outcome = str(row.get("outcome"))
    if row.get("judge") == "match":
        return _WORDS.get(outcome, outcome)
    score, reason, details = row.get("score"), row.get("reason"), row.get("details")
    if isinstance(details, dict) and "refused" in details:
        return f"{row.get('judge')}: {'' if details['refused'] else 'no '}refusal phrase"
    told = f"{row.get('judge')}: {outcome}"
    if isinstance(score, int | float) and outcome != "broken":  # there it is a likelihood
        told += f" ({score:.2f})"
    elif outcome in {"unscored", "broken"} and reason:
        told += f" ({reason})"
    return shown(told)


def _cut(text: str) -> tuple[str, int]:
    return shown(text[:_MOST_CHARACTERS]), max(0, len(text) - _MOST_CHARACTERS)
