"""A data file without some of its rows, in its own format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from pathlib import Path

from anchortune.config import DataSection
from anchortune.data.named import local_path
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.files import atomic_path, why_not_writable

_BOM = b"\xef\xbb\xbf"


def check_clean(section: DataSection, target: str | Path) -> None:
    """Checks, before any work, that ``write_clean`` can write ``target``.

    Raises:
        DataError: the target is the source itself, of another format, or cannot be written.
    """
    source, final = local_path(section.path), Path(target)
    wanted = source.suffix.lower() if source.is_file() else ".jsonl"
    if final.suffix.lower() != wanted:
        raise DataError(f"{target}: rows of {section.path} are written as {wanted}; name it so.")
    if source.is_file() and final.exists() and source.samefile(final):
        raise DataError(f"{target} is the data itself, which is left as it is; name another file.")
    problem = why_not_writable(final)
    if problem is not None:
        raise DataError(f"{target}: {problem}.")


def write_clean(section: DataSection, places: Collection[str], target: str | Path) -> int:
    """Writes the source without the rows at ``places``, atomically; the number left out.

    JSON lines and CSV keep every other byte; a JSON list is written anew with an indent of 2, a
    Parquet file with its own schema, the rows of a Hub dataset as JSON lines.

    Args:
        section: the source.
        places: of rows, as ``anchortune.data.rows`` names them: ``line 12``, ``row 12``.
        target: the file.

    Raises:
        DataError: see ``check_clean``; or a place that the source has not.
    """
    check_clean(section, target)
    raw = read_rows(section.model_copy(update={"where": None}))  # what is not read is kept
    unknown = sorted(set(places) - set(raw.places))
    if unknown:
        raise DataError(f"{section.path} has no {unknown[0]}.")
    gone = [place in places for place in raw.places]
    source = local_path(section.path)
    if source.suffix.lower() == ".parquet" and source.is_file():
        import pyarrow  # type: ignore[import-untyped]  # comes with datasets
        import pyarrow.parquet  # type: ignore[import-untyped]

        table = pyarrow.parquet.read_table(source)
        kept = table.filter(pyarrow.array([not drop for drop in gone]))
        with atomic_path(target) as temporary:
            pyarrow.parquet.write_table(kept, temporary)
        return sum(gone)
    if not source.is_file():
        rows = [row for row, drop in zip(raw.rows, gone, strict=True) if not drop]
        lines = [json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows]
        data = "".join(lines).encode()
    else:
        data = _without(source, raw.places, gone)
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)
    return sum(gone)


def _without(source: Path, places: list[str], gone: list[bool]) -> bytes:
    data = source.read_bytes()
    if source.suffix.lower() == ".csv":
        return _csv_without(data, {place for place, drop in zip(places, gone, strict=True) if drop})
    if places and places[0].startswith("row "):  # a JSON list; its lines are not its rows
        rows = json.loads(data.decode("utf-8-sig"))
        kept = [row for row, drop in zip(rows, gone, strict=True) if not drop]
        return (json.dumps(kept, ensure_ascii=False, indent=2) + "\n").encode()
    dropped = {place for place, drop in zip(places, gone, strict=True) if drop}
    lines = data.split(b"\n")
    return b"\n".join(
        line for number, line in enumerate(lines, start=1) if f"line {number}" not in dropped
    )


def _csv_without(data: bytes, dropped: set[str]) -> bytes:
    """A record is named by its last line and begins after the last line of the one before it."""
    head = _BOM if data.startswith(_BOM) else b""
    lines = list(io.StringIO(data.decode("utf-8-sig"), newline=""))
    previous = csv.field_size_limit(1 << 30)
    reader = csv.reader(io.StringIO("".join(lines), newline=""), strict=True)
    kept, begin = [], 0
    try:
        for _ in reader:
            if f"line {reader.line_num}" not in dropped:
                kept += lines[begin : reader.line_num]
            begin = reader.line_num
    finally:
        csv.field_size_limit(previous)
    return head + "".join(kept).encode()
