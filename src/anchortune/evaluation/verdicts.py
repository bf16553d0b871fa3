"""``verdicts.jsonl``: who said what of which answer, written as it comes. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from anchortune.evaluation.outputs import read_outputs
from anchortune.files import write_text

VERDICTS_FILE = "verdicts.jsonl"


class VerdictLog:
    """Verdicts appended to a file, each line flushed, known by model, set, item and judge.

    A verdict about another answer than the one at hand (another ``answer_sha256``) is as good as
    none. On opening, a last line that was cut short is removed. Use as a context manager.

    Args:
        path: of ``verdicts.jsonl``; made where missing.

    Raises:
        EvaluationError: a line before the last is broken.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        data = self.path.read_bytes() if self.path.is_file() else b""
        rows = read_outputs(self.path) if data else []
        if data and (data.count(b"\n") != len(rows) or not data.endswith(b"\n")):
            write_text(self.path, "".join(_line(row) for row in rows))
        self._rows = {_key(row, row["judge"]): row for row in rows if "judge" in row}
        self._stream: TextIO = self.path.open("a", encoding="utf-8", newline="\n")

    def find(self, answered: Mapping[str, Any], judge: str) -> dict[str, Any] | None:
        """What ``judge`` said of an answer; None where it was not asked yet.

        Args:
            answered: its row in ``outputs.jsonl``.
            judge: the name.
        """
        row = self._rows.get(_key(answered, judge))
        same = row is not None and row.get("answer_sha256") == answered["answer_sha256"]
        return row if same else None

    def append(
        self,
        answered: Mapping[str, Any],
        judge: str,
        outcome: str,
        *,
        reason: str = "",
        score: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        """Writes one verdict about the answer of the row ``answered``."""
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
        self._stream.write(_line(row))
        self._stream.flush()
        self._rows[_key(row, judge)] = row

    def __enter__(self) -> VerdictLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()


def _line(row: Mapping[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    return text.encode("utf-8", errors="replace").decode("utf-8") + "\n"


def _key(row: Mapping[str, Any], judge: str) -> tuple[str, str, str, str]:
    return row["model"], row["set"], row["id"], judge
