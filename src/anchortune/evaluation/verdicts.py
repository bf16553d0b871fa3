"""``verdicts.jsonl``: who said what of which answer, written as it comes. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchortune.evaluation.outputs import RowLog

VERDICTS_FILE = "verdicts.jsonl"


class VerdictLog(RowLog):
    """Verdicts appended to a file, known by model, set, item and judge.

    A verdict about another answer than the one at hand (another ``answer_sha256``) is as good as
    none; of two about one answer the later counts.

    Args:
        path: of ``verdicts.jsonl``; made where missing.

    Raises:
        EvaluationError: a line before the last is broken.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._known = {_key(row, row["judge"]): row for row in self.rows if "judge" in row}

    def find(
        self, answered: Mapping[str, Any], judge: str, stamp: str | None = None
    ) -> dict[str, Any] | None:
        """What ``judge`` said of an answer; None where it was not asked yet.

        Args:
            answered: its row in ``outputs.jsonl``.
            judge: the name.
            stamp: of its identity, where nothing else says that the name still means the same
                judge; a verdict under another stamp is as good as none.
        """
        row = self._known.get(_key(answered, judge))
        if row is None or row.get("answer_sha256") != answered["answer_sha256"]:
            return None
        return row if stamp is None or row.get("judge_sha256") == stamp else None

    def append(
        self,
        answered: Mapping[str, Any],
        judge: str,
        outcome: str,
        *,
        reason: str = "",
        score: float | None = None,
        details: Mapping[str, Any] | None = None,
        indicative: bool = False,
        stamp: str | None = None,
    ) -> None:
        """Writes one verdict about the answer of the row ``answered``.

        Args:
            answered: its row in ``outputs.jsonl``.
            judge: who says it.
            outcome: what is said.
            reason: why.
            score: the judge's number.
            details: more of it.
            indicative: the judge misses its bar; the verdict carries that wherever it is read.
            stamp: of the judge's identity; see ``find``.
        """
        row = {
            "model": answered["model"],
            "set": answered["set"],
            "id": answered["id"],
            "judge": judge,
            "outcome": outcome,
            "reason": reason,
            "score": score,
            "details": dict(details or {}),
            "prompt_sha256": answered["prompt_sha256"],
            "answer_sha256": answered["answer_sha256"],
        }
        if indicative:
            row["indicative"] = True
        if stamp is not None:
            row["judge_sha256"] = stamp
        self.write(row)
        self._known[_key(row, judge)] = row


def _key(row: Mapping[str, Any], judge: str) -> tuple[str, str, str, str]:
    return row["model"], row["set"], row["id"], judge
