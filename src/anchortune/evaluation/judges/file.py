"""Verdicts from a file: people's, or those of a judge that ran on another machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from anchortune.config import DataSection
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.evaluation.items import sha256_text
from anchortune.evaluation.judges.base import Exchange, Verdict
from anchortune.evaluation.judges.labels import (
    ANSWERS,
    INVERSE,
    LABELS,
    PROMPTS,
    find_column,
    hash_of,
    read_label,
    read_score,
    usual_columns,
)

#: Rows of our own ``verdicts.jsonl`` that say nothing of harm.
_NO_JUDGES = ("match", "refusal", "coherence")

_YES = ("true", "1", "yes")

Key = tuple[str, str]


class FileJudge:
    """Looks a verdict up by the SHA-256 of prompt and answer.

    The file is JSON, JSONL, CSV or Parquet; a row has ``prompt_sha256`` and ``answer_sha256`` or
    the texts themselves, and a verdict (see ``judges.labels``), so that a ``verdicts.jsonl`` of
    another evaluation will do as it is. Rows that contradict each other, and answers that no row
    is about, are unscored. Verdicts of a judge that misses its bar are marked ``indicative``; one
    such row marks all that comes of the file.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read, lacks a column, or a line of it holds no verdict.
    """

    name = "file"
    measure = "harmful score"

    def __init__(self, path: str) -> None:
        self._path = path
        raw = read_rows(DataSection(path=path))
        self._sha256 = raw.sha256
        column = find_column(raw.columns, (*LABELS, *INVERSE), "verdicts", path)
        texts = {
            name: _text_columns(raw.columns, name, usual, path)
            for name, usual in (("prompt", PROMPTS), ("answer", ANSWERS))
        }
        found: dict[Key, list[Verdict]] = {}
        judges: Counter[str] = Counter()
        marked: set[str] = set()
        for row, place in zip(raw.rows, raw.places, strict=True):
            where = f"{path}: {place}"
            if row is None:
                raise DataError(f"{where}: not an object with columns; write it as one.")
            judge = str(row.get("judge") or "")
            if judge in _NO_JUDGES:
                continue
            prompt, answer = (hash_of(row, name, texts[name], where) for name in texts)
            found.setdefault((prompt, answer), []).append(_verdict(row, column, where))
            judges[judge] += 1
            if str(row.get("indicative") or "").strip().lower() in _YES:
                marked.add(judge)
        if not found:
            raise DataError(f"{path}: holds no verdict about harm; name another file.")
        self._judges = {name: count for name, count in sorted(judges.items()) if name}
        self.indicative = bool(marked)
        self._marked = sorted(marked - {""})
        self._verdicts = {key: _settled(verdicts) for key, verdicts in found.items()}

    def identity(self) -> dict[str, Any]:
        """The file, its SHA-256, how many answers it is about and which judges it names."""
        return {
            "name": self.name,
            "measure": self.measure,
            "file": self._path,
            "sha256": self._sha256,
            "answers": len(self._verdicts),
            "judges": self._judges,
            "indicative": self.indicative,
            "indicative_judges": self._marked,
        }

    def look_up(self, prompt_sha256: str, answer_sha256: str) -> Verdict:
        """The verdict about an answer of which only the hashes are left."""
        missing = Verdict("unscored", "no verdict in the file")
        return self._verdicts.get((prompt_sha256, answer_sha256), missing)

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        """The file's verdict for each exchange, in order."""
        verdicts = [
            self.look_up(sha256_text(exchange.prompt), sha256_text(exchange.answer))
            for exchange in exchanges
        ]
        if on_done is not None and exchanges:
            on_done(len(exchanges))
        return verdicts


def _text_columns(columns: Sequence[str], name: str, usual: Sequence[str], path: str) -> list[str]:
    """The columns of texts; there need be none where hashes stand in for them."""
    if f"{name}_sha256" not in columns:
        find_column(columns, (*usual, f"{name}_sha256"), f"{name}s", path)
    return usual_columns(columns, usual)


def _verdict(row: Mapping[str, Any], column: str, where: str) -> Verdict:
    outcome = read_label(row.get(column), column, where)
    reason = str(row.get("reason") or "")
    details = row.get("details")
    return Verdict(
        outcome,
        reason or ("no verdict given" if outcome == "unscored" else ""),
        read_score(row.get("score"), where),
        dict(details) if isinstance(details, dict) else {},
    )


def _settled(verdicts: Sequence[Verdict]) -> Verdict:
    """What all rows about one answer come to; those that abstain do not count."""
    scored = [verdict for verdict in verdicts if verdict.outcome != "unscored"]
    counts = Counter(verdict.outcome for verdict in scored)
    if len(counts) > 1:
        told = ", ".join(f"{counts[name]} {name}" for name in ("harmful", "safe"))
        return Verdict(
            "unscored",
            f"the file's rows disagree ({told})",
            details={name: n for name, n in counts.items()},
        )
    return (scored or list(verdicts))[0]
