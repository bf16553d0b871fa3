"""Labelled answers in a file: which columns hold what, and what a label means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from anchortune.errors import DataError
from anchortune.evaluation.items import sha256_text
from anchortune.evaluation.judges.base import Outcome

PROMPTS = ("goal", "prompt", "question", "instruction", "query", "behavior")
ANSWERS = ("answer", "response", "output", "completion", "generation")
LABELS = ("outcome", "verdict", "harmful", "is_harmful", "unsafe", "label", "human_label")
#: Columns in which a yes means the opposite.
INVERSE = ("is_safe", "safe")

_HARMFUL = {"harmful", "unsafe", "harm"}
_SAFE = {"safe", "harmless", "benign"}
_YES = {"1", "1.0", "yes", "true", "y"}
_NO = {"0", "0.0", "no", "false", "n"}
_UNSCORED = {"", "unscored", "unsure", "unclear", "?"}
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


def find_column(
    columns: Sequence[str], usual: Sequence[str], what: str, where: str, given: str | None = None
) -> str:
    """The column called ``given``, or the first of the ``usual`` names that is there.

    Raises:
        DataError: there is none.
    """
    if given is not None:
        if given in columns:
            return given
        raise DataError(f"{where}: no column '{given}'; it has {', '.join(columns)}.")
    found = usual_columns(columns, usual)
    if not found:
        raise DataError(
            f"{where}: no column of {what} ({', '.join(usual)}); it has {', '.join(columns)}."
        )
    return found[0]


def usual_columns(columns: Sequence[str], usual: Sequence[str]) -> list[str]:
    """Those of ``columns`` with a usual name, in any case, in the order of ``usual``."""
    lower = {column.lower(): column for column in reversed(columns)}
    return [lower[name] for name in usual if name in lower]


def read_label(value: Any, column: str, where: str) -> Outcome:
    """What a label says: ``harmful`` or ``safe`` in words, 0/1, yes/no or true/false, or neither.

    Args:
        value: as it stands in the file.
        column: its column; in one called ``safe`` or ``is_safe`` a yes means safe.
        where: file and line, for the error.

    Raises:
        DataError: none of these.
    """
    text = "" if value is None else str(value).strip().lower()
    if text in _UNSCORED:
        return "unscored"
    if text in _HARMFUL:
        return "harmful"
    if text in _SAFE:
        return "safe"
    if text in _YES | _NO:
        return "harmful" if (text in _YES) != (column.lower() in INVERSE) else "safe"
    raise DataError(
        f"{where}: '{column}' is {str(value)[:40]!r}, which is no verdict; write harmful, safe or "
        "unscored, 0 or 1, yes or no."
    )


def read_score(value: Any, where: str) -> float | None:
    """A number, or None for an empty cell.

    Raises:
        DataError: something else.
    """
    if value is None or str(value).strip() == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}: the score {str(value)[:40]!r} is no finite number; leave it empty."
        )
    return number


def text_of(row: Mapping[str, Any], columns: Sequence[str]) -> str | None:
    """The first text of ``columns`` that is not empty; an empty one where that is all there is."""
    texts = [value for column in columns if isinstance(value := row.get(column), str)]
    return next((text for text in texts if text), texts[0] if texts else None)


def hash_of(row: Mapping[str, Any], name: str, columns: Sequence[str], where: str) -> str:
    """The hash under which a prompt or answer is joined: ``<name>_sha256``, or that of its text.

    Raises:
        DataError: the row has neither, or the hash is none.
    """
    given = row.get(f"{name}_sha256")
    if given:
        if not _SHA256.fullmatch(str(given)):
            raise DataError(
                f"{where}: {name}_sha256 is no SHA-256 in hexadecimal; give the text instead."
            )
        return str(given).lower()
    text = text_of(row, columns)
    if text is None:
        raise DataError(
            f"{where}: neither {name}_sha256 nor the text of the {name}; add one of them."
        )
    return sha256_text(text)
