"""Reads what an evaluation left behind: its record as results, and its rows one by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anchortune.errors import EvaluationError
from anchortune.evaluation.results import Results
from anchortune.files import parse_json
from anchortune.record import RECORD_FILE, Record, read_record


def read_evaluation(path: str | Path) -> tuple[Record, Results]:
    """The record of an evaluation and its results.

    Args:
        path: ``record.json``, or the folder that holds it.

    Raises:
        DataError: no record, or none that can be read.
        EvaluationError: the record of something else, or results of another format.
    """
    folder = Path(path)
    if folder.name == RECORD_FILE and not folder.is_dir():
        folder = folder.parent
    elif folder.is_file():
        raise EvaluationError(f"{folder}: name a folder, or the {RECORD_FILE} in it.")
    record = read_record(folder)
    return record, results_of(record, str(folder / RECORD_FILE))


def results_of(record: Record, name: str = "the record") -> Results:
    """What an evaluation's record holds under ``metrics``.

    Raises:
        EvaluationError: the record of something else, or results of another format.
    """
    if record.kind == "job":
        raise EvaluationError(f"{name} is a whole job's; name the folder eval beside it.")
    if record.kind != "eval":
        raise EvaluationError(
            f"{name} is of a run of kind {record.kind!r}; name the folder of an evaluation."
        )
    version = record.metrics.get("format_version")
    if version != 1:
        raise EvaluationError(
            f"{name}: results of format {version}, but this version reads 1; update anchortune."
        )
    try:
        found = Results.model_validate(record.metrics)
    except ValidationError as error:
        place = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise EvaluationError(
            f"{name}: not the results of an evaluation ({place}); evaluate again."
        ) from None
    if found.reference not in found.models:
        raise EvaluationError(
            f"{name}: its reference, {found.reference!r}, is none of its models; evaluate again."
        )
    return found


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a JSONL file, none where there is no file; a line cut short is passed over."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                row = parse_json(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
