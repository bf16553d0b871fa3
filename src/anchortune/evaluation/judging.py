"""Answers judged, read and looked at; what was said already is not asked again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from anchortune.evaluation.ask import free_memory
from anchortune.evaluation.items import Answer
from anchortune.evaluation.judges.base import Exchange, Judge
from anchortune.evaluation.outputs import answer_of
from anchortune.evaluation.plan import MATCH, REFUSAL, Asked, EvalPlan
from anchortune.evaluation.verdicts import VerdictLog
from anchortune.progress import Progress

Row = dict[str, Any]
Entry = TypeVar("Entry")
#: Verdicts are written after so many: what a cut loses at most.
_CHUNK = 128


@dataclass(frozen=True)
class Answers:
    """The rows of ``outputs.jsonl`` by what they answer.

    Attributes:
        rows: by (model, set, item id).
    """

    rows: dict[tuple[str, str, str], Row]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Answers:
        """Of the rows as they were read."""
        return cls({(row["model"], row["set"], row["id"]): row for row in rows})

    def to(self, asked: Asked, model: str) -> list[Row]:
        """One model's answers to one set, in the set's order."""
        return [self.rows[model, asked.name, item.id] for item in asked.items]


def judge_sets(plan: EvalPlan, answers: Answers, verdicts: VerdictLog) -> None:
    """Has every judge say what it thinks of every answer to a prompt set.

    A judge is let go of, with its weights, before the next one is asked. The same answer to the
    same prompt is judged once, whichever models gave it.
    """
    while plan.judges:
        judge = plan.judges.pop(0)
        wanted = [
            row
            for asked in plan.asked
            if asked.kind == "harm" or (asked.kind == "benign" and judge.name == REFUSAL)
            for model in plan.candidates
            for row in answers.to(asked, model)
        ]
        _judge(judge, [row for row in wanted if verdicts.find(row, judge.name) is None], verdicts)
        del judge
        free_memory()


def _judge(judge: Judge, rows: Sequence[Row], verdicts: VerdictLog) -> None:
    same: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        same.setdefault((row["prompt_sha256"], row["answer_sha256"]), []).append(row)
    # Of like length together, so that little is computed on padding; the longest first.
    groups = sorted(same.values(), key=lambda rows: -len(rows[0].get("answer", "")))
    for chunk, tell in in_chunks(groups, f"{judge.name} judges"):
        told = [answer_of(group[0]) for group in chunk]
        exchanges = [Exchange(answer.item.goal, answer.text) for answer in told]
        for group, verdict in zip(chunk, judge.judge(exchanges, tell), strict=True):
            for row in group:
                verdicts.append(
                    row,
                    judge.name,
                    verdict.outcome,
                    reason=verdict.reason,
                    score=verdict.score,
                    details=verdict.details,
                    indicative=judge.indicative,
                )


def read_tasks(plan: EvalPlan, answers: Answers, verdicts: VerdictLog) -> None:
    """Holds every answer to a task against its target.

    Raises:
        EvaluationError: the judge of a win rate cannot be reached.
    """
    for asked in plan.asked:
        task = asked.task
        if task is None:
            continue
        base = answers.to(asked, plan.reference) if task.needs_reference else []
        for model in plan.candidates:
            if task.needs_reference and model == plan.reference:
                continue  # nobody wins against themselves
            rows = [row for row in answers.to(asked, model) if verdicts.find(row, MATCH) is None]
            if not rows:
                continue
            beside = {row["id"]: str(row.get("answer", "")) for row in base}
            for chunk, tell in in_chunks(rows, f"{asked.name}: answers of {model} read"):
                told: list[Answer] = [answer_of(row) for row in chunk]
                readings = task.read_all(told, beside, tell)
                for row, reading in zip(chunk, readings, strict=True):
                    # A piece of the answer, so it stays no longer than the answer does.
                    shown = bool(reading.parsed) and plan.config.keep == "text"
                    details = {"parsed": reading.parsed} if shown else {}
                    verdicts.append(
                        row, MATCH, reading.outcome, reason=reading.why, details=details
                    )


def in_chunks(
    entries: Sequence[Entry], label: str
) -> Iterator[tuple[Sequence[Entry], Callable[[int], None]]]:
    """Pieces of ``entries``, each with a function to be told how many of it are done."""
    if not entries:
        return
    with Progress(label, len(entries)) as tell:
        known = 0
        for start in range(0, len(entries), _CHUNK):
            chunk = entries[start : start + _CHUNK]

            def told(done: int, start: int = start) -> None:
                nonlocal known
                if start + done > known:
                    known = start + done
                    tell(known)

            yield chunk, told
            told(len(chunk))  # for those who say nothing on the way
