"""The record of a run of a sweep: verdicts by item, figures of its training, the code that ran."""

from __future__ import annotations

import functools
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchortune.evaluation.judging import Answers
from anchortune.evaluation.plan import COHERENCE, MATCH, REFUSAL, Asked, EvalPlan
from anchortune.evaluation.tasks.base import Reading
from anchortune.evaluation.verdicts import VerdictLog
from anchortune.record import Record, finite
from anchortune.report.runs import Measure, Outcome
from anchortune.report.sweep_load import without_paths
from anchortune.untrusted import without_secrets

#: Names the code's commit where it does not run from a git checkout.
COMMIT = "ANCHORTUNE_COMMIT"
_HARM = {"harmful": 1, "safe": 0}
_WHOLE = {"coherent": 1, "broken": 0}


def outcomes_of(
    plan: EvalPlan, answers: Answers, verdicts: VerdictLog, model: str
) -> list[Outcome]:
    """Everything measured on one model's answers, by item."""
    found: list[Outcome] = []
    for asked in plan.asked:
        rows = answers.to(asked, model)
        if asked.task is not None:
            found += _of_task(asked, rows, verdicts)
            continue

        def said(judge: str, rows: list[dict[str, Any]] = rows) -> dict[str, dict[str, Any] | None]:
            return {row["id"]: verdicts.find(row, judge) for row in rows}

        benign = asked.kind == "benign"
        for facts in plan.judge_facts if not benign else ():
            if facts["name"] != REFUSAL:
                name = str(facts["name"])
                found.append(_outcome("harm", asked, name, _marks(said(name), _HARM)))
        refused = {
            item: None if row is None else int(bool(row["details"].get("refused")))
            for item, row in said(REFUSAL).items()
        }
        measure: Measure = "over_refusal" if benign else "refusal"
        found.append(_outcome(measure, asked, REFUSAL, refused))
        found.append(_outcome("coherence", asked, None, _marks(said(COHERENCE), _WHOLE)))
    return found


def _outcome(
    measure: Measure, asked: Asked, judge: str | None, items: Mapping[str, Any]
) -> Outcome:
    return Outcome(measure=measure, set=asked.name, judge=judge, items=dict(items))


def _marks(
    said: Mapping[str, dict[str, Any] | None], means: Mapping[str, int]
) -> dict[str, int | None]:
    return {item: None if row is None else means.get(row["outcome"]) for item, row in said.items()}


def _of_task(asked: Asked, rows: list[dict[str, Any]], verdicts: VerdictLog) -> list[Outcome]:
    task = asked.task
    read = {row["id"]: verdicts.find(row, MATCH) for row in rows}
    if task is None or not any(read.values()):
        return []  # the reference of a win rate
    judge = task.identity().get("judge")
    marks: dict[str, float | int | None] = {}
    for item, row in read.items():
        mark = None if row is None else task.counts(Reading(row["outcome"]))
        marks[item] = int(mark) if mark in (0, 1) else mark
    name = str(judge["name"]) if isinstance(judge, Mapping) and "name" in judge else None
    return [_outcome(task.kind, asked, name, marks)]


def training_figures(record: Record) -> dict[str, Any]:
    """What the training's own record and last line of its log say."""
    metrics = record.metrics
    last = metrics.get("last") or {}
    found = {key: metrics.get(key) for key in ("steps", "epochs", "loss_last_tenth")}
    found["trained_parameters"] = record.numbers.get("trained_parameters")
    found["lam"] = last.get("asft/lam")
    added = record.inputs["data"].get("added", {})  # by defence, besides the user's rows
    found["rows_added"] = sum(added.values()) or None
    found |= {key: value for key, value in last.items() if "/" in key}
    kept = {key: value for key, value in finite(found).items() if value is not None}
    return dict(sorted(kept.items()))


def mix_figures(facts: Path) -> dict[str, Any]:
    """How many rows of the mix there are, and how many of them are harmful."""
    said = json.loads(facts.read_text(encoding="utf-8"))
    return {"rows": said["rows"], "harmful_rows": said["harmful"]["used"]}


def sentence_of(error: BaseException) -> str:
    """An error as one sentence, without a path of the machine and without a secret."""
    from anchortune.errors import AnchortuneError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    known = isinstance(error, AnchortuneError | OSError)
    told = lines[0] if known else f"{type(error).__name__}: {lines[0]}"
    return without_paths(without_secrets(told))


@functools.cache
def commit() -> str | None:
    """The commit of the package's code, ``-dirty`` where its files are not as committed.

    Outside of git it is what ``ANCHORTUNE_COMMIT`` says; None without that.
    """
    package = Path(__file__).parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(package), *words], capture_output=True, text=True, check=True
            )
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.strip()

    head = git("rev-parse", "HEAD") if git("ls-files", "--error-unmatch", "__init__.py") else None
    if head is None:
        return os.environ.get(COMMIT) or None
    return f"{head}-dirty" if git("status", "--porcelain", "--", ".") else head
