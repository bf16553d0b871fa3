"""Prompts without answers, and whether a set of them shares any with another."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from anchortune.data.conversations import instruction_text
from anchortune.data.named import name_for_records
from anchortune.data.overlap import normalised
from anchortune.data.rows import RawRows, read_rows
from anchortune.errors import DataError
from anchortune.files import sha256_text
from anchortune.sections import PromptsSection, RowsSection

#: Columns that hold a prompt, the first that exists.
COLUMNS = (
    *("prompt", "goal", "Goal", "instruction", "question", "query", "forbidden_prompt"),
    *("Behavior", "text"),
)
_SAMPLE_SEED = 0


@dataclass(frozen=True)
class Prompts:
    """Prompts, each once.

    Attributes:
        texts: in the order of the files.
        sources: by file its name, hash, rows and column, for records.
    """

    texts: list[str]
    sources: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For records: the files with their hashes, and a hash of what was taken of them."""
        return {
            "sources": self.sources,
            "prompts": len(self.texts),
            "prompts_sha256": sha256_text("\n".join(map(normalised, self.texts))),
        }


def read_prompts(sections: Sequence[PromptsSection], max_prompts: int | None = None) -> Prompts:
    """The prompts of one or several files, repeats dropped.

    Args:
        sections: the files.
        max_prompts: take a sample of this many, the same whoever asks; None for all.

    Raises:
        DataError: a file cannot be read, or a row of it holds no prompt.
    """
    found: dict[str, str] = {}
    sources = []
    for section in sections:
        raw = read_rows(
            RowsSection(
                path=section.path,
                split=section.split,
                revision=section.revision,
                subset=section.subset,
            )
        )
        column = _column(section, raw)
        for row, place in zip(raw.rows, raw.places, strict=True):
            text = _prompt(row, column)
            if text is None:
                raise DataError(
                    f"{section.path}: {place}: no text in column '{column}'"
                    "; fill it, or take the row out."
                )
            found.setdefault(normalised(text), text)
        sources.append(
            {
                "path": name_for_records(section.path),
                "sha256": raw.sha256,
                "rows": len(raw.rows),
                "column": column,
            }
        )
    texts = list(found.values())
    if max_prompts is not None and max_prompts < len(texts):
        chosen = sorted(random.Random(_SAMPLE_SEED).sample(range(len(texts)), max_prompts))
        texts = [texts[index] for index in chosen]
    return Prompts(texts, sources)


def check_disjoint(
    texts: Iterable[str],
    reported: Iterable[str],
    what: str,
    where: str,
    mend: str,
) -> None:
    """Refuses what asks that which is reported on, whatever case, spacing and punctuation.

    Args:
        texts: of a probe, or of rows that are trained on.
        reported: those of an evaluation, without what a jailbreak puts round them.
        what: names ``texts`` in the error.
        where: names the evaluation's set in the error.
        mend: what to do about it.

    Raises:
        DataError: they share a text.
    """
    asked = {normalised(text) for text in texts}
    shared = len(asked & {normalised(text) for text in reported})
    if shared:
        raise DataError(
            f"{shared} of the {len(asked)} {what} are in {where}, which is reported on; {mend}."
        )


def _column(section: PromptsSection, raw: RawRows) -> str:
    named = [section.column] if section.column is not None else [*COLUMNS]
    column = next((name for name in named if name in raw.columns), None)
    if column is None:
        wanted = f"no column '{section.column}'" if section.column else "no column of prompts"
        raise DataError(
            f"{section.path}: {wanted}; it has {', '.join(raw.columns)}: name one of them in "
            "column."
        )
    return column


def _prompt(row: dict[str, Any] | None, column: str) -> str | None:
    """The prompt of a row; None where it holds none."""
    text = None if row is None else row.get(column)
    if row is None or not isinstance(text, str) or not text.strip():
        return None
    extra = row.get("input")
    if column == "instruction" and isinstance(extra, str):
        text = instruction_text(text, extra)
    return text.strip()
