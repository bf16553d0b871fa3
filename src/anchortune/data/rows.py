"""Raw rows of a JSON, JSONL, CSV or Parquet file, or of a Hub dataset."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.data.named import local_path
from anchortune.errors import DataError
from anchortune.files import parse_json, sha256_file
from anchortune.sections import Cell, RowsSection

SURPLUS = "(more fields than columns)"
"""The column under which a CSV row holds what stands beyond its header's columns."""
_HUB_FILE = "hf://datasets/"
SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
MOST_BYTES = 4 << 30
"""Of one file, which is held whole, a Parquet file as it is when unpacked."""
_MOST_COLUMNS = 10_000
_PARQUET_ROWS = 1024
_WHOLE = re.compile(r"^(-?\d+)\.0+$")
_MOST_LABELS = 20
_LONGEST_LABEL = 30
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RawRows:
    """Rows as they are in the source, those of them that ``where`` means.

    Attributes:
        rows: one mapping a row, or None where the source holds no mapping there.
        places: where each row stands in the source: ``line 12`` or ``row 12``, from 1.
        sha256: of the file's bytes; of the rows as canonical JSON for a Hub dataset.
        columns: every column that occurs, in order of appearance.
    """

    rows: list[dict[str, Any] | None]
    places: list[str]
    sha256: str
    columns: list[str]


def read_rows(section: RowsSection) -> RawRows:
    """The rows that ``section`` names.

    Raises:
        DataError: no such file or dataset, an unknown kind of file, broken JSON, not UTF-8, no
            rows at all, or none that ``where`` means.
    """
    on_hub = section.path.startswith(_HUB_FILE)
    path = _hub_file(section) if on_hub else local_path(section.path)
    if path.is_dir():
        raise DataError(f"{section.path} is a folder; name a file ({', '.join(SUFFIXES)}) in it.")
    if path.is_file():
        found, places = _read_file(path, section.path)
        digest = sha256_file(path)
    elif path.suffix.lower() in SUFFIXES or section.path.startswith((".", "/", "~")):
        raise DataError(f"{section.path}: no such file; check the path.")
    else:
        found = _read_hub(section)
        places = [f"row {number}" for number in range(1, len(found) + 1)]
        digest = _digest(found)
    rows = [row if isinstance(row, dict) else None for row in found]
    columns: dict[str, None] = {}
    for row, place in zip(rows, places, strict=True):
        columns.update(dict.fromkeys(map(str, row or ())))
        if len(columns) > _MOST_COLUMNS:
            raise DataError(
                f"{section.path}: {place}: more than {_MOST_COLUMNS} columns"
                "; leave out those that are not read."
            )
    if not columns:
        raise DataError(f"{section.path}: holds no rows (a list of objects is expected).")
    if section.where is not None:
        rows, places = _where(section.path, section.where, rows, places, columns)
    return RawRows(rows, places, digest, list(columns))


def _where(
    path: str,
    where: Mapping[str, Cell | Sequence[Cell]],
    rows: Sequence[dict[str, Any] | None],
    places: Sequence[str],
    columns: Iterable[str],
) -> tuple[list[dict[str, Any] | None], list[str]]:
    """The rows, and their places, that hold one of the values in every column of ``where``."""
    names = list(columns)
    unknown = next((column for column in where if column not in names), None)
    if unknown is not None:
        raise DataError(
            f"{path}: no column '{unknown}' (named in where); it has {', '.join(names)}."
        )
    wanted = {
        column: {_written(value) for value in (given if isinstance(given, list) else [given])}
        for column, given in where.items()
    }
    held = [(row, place) for row, place in zip(rows, places, strict=True) if row is not None]
    cells = {column: [_written(row.get(column)) for row, _ in held] for column in wanted}
    for column, values in wanted.items():
        there = set(cells[column])
        missing = sorted(values - there)
        if missing:
            raise DataError(
                f"{path}: no row has {column} {missing[0]}{_held(column, there)}; name in where a "
                "value that occurs, yes and no in quotes."
            )
    kept = [
        pair
        for at, pair in enumerate(held)
        if all(cells[column][at] in values for column, values in wanted.items())
    ]
    if not kept:
        asked = " and ".join(f"{name} {'/'.join(sorted(one))}" for name, one in wanted.items())
        raise DataError(f"{path}: no row has {asked}; name less in where.")
    return [row for row, _ in kept], [place for _, place in kept]


def _written(value: Any) -> str:
    """A cell as a text: ``false`` for False, ``1`` for 1.0, as a number or as a CSV file has it."""
    text = "" if value is None else str(value).strip().casefold()
    return _WHOLE.sub(r"\1", text)


def _held(column: str, labels: Collection[str]) -> str:
    """What labels a column holds; nothing of one with many, or with long ones."""
    if len(labels) > _MOST_LABELS or max(map(len, labels)) > _LONGEST_LABEL:
        return ""
    return f" ({column} is {', '.join(sorted(one or 'empty' for one in labels))})"


def _digest(rows: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _read_file(path: Path, name: str) -> tuple[list[Any], list[str]]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(f"{name}: unknown kind of file; expected {', '.join(SUFFIXES)}.")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(
            f"{name}: {path.stat().st_size / 2**30:.1f} GiB, and files are read whole up to "
            f"{MOST_BYTES >> 30}; split it."
        )
    if suffix == ".parquet":
        rows = _read_parquet(path, name)
        return rows, [f"row {number}" for number in range(1, len(rows) + 1)]
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: not UTF-8 at byte {error.start}; convert the file.") from None
    if suffix == ".csv":
        return _read_csv(name, text)
    if suffix == ".json":
        try:
            value = parse_json(text)
        except ValueError as error:
            if "Extra data" not in str(error):  # else: JSON lines under the name .json
                line = f"line {error.lineno}: " if isinstance(error, json.JSONDecodeError) else ""
                raise DataError(f"{name}: {line}not JSON ({_reason(error)}).") from None
        else:
            if not isinstance(value, list):
                raise DataError(
                    f"{name}: expected a list of objects; for one object a line, "
                    "name the file .jsonl."
                )
            return _whole(name, text, value), [f"row {n}" for n in range(1, len(value) + 1)]
    rows, places = _read_lines(name, text)
    return _whole(name, text, rows), places


def _whole(name: str, text: str, rows: list[Any]) -> list[Any]:
    """The rows with ``?`` for every half of a character: what no tokenizer and no file takes."""
    if _HALF.search(text) is None:
        return rows
    mended = 0

    def mend(value: Any) -> Any:
        nonlocal mended
        if isinstance(value, dict):
            return {mend(key): mend(item) for key, item in value.items()}
        if isinstance(value, list):
            return [mend(item) for item in value]
        if not isinstance(value, str) or value.isascii():
            return value
        whole = value.encode("utf-8", errors="replace").decode("utf-8")
        mended += whole != value
        return whole

    try:
        found = [mend(row) for row in rows]
    except RecursionError:
        raise DataError(
            f"{name}: its lists and objects lie too deep in each other; write them flatter."
        ) from None
    if mended:
        logger.warning(
            "%s: %d texts hold half a character (a lone surrogate); read as ?", name, mended
        )
    return found


def _read_lines(name: str, text: str) -> tuple[list[Any], list[str]]:
    rows, places = [], []
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: U+2028 is content
        if not line.strip():
            continue
        try:
            rows.append(parse_json(line))
        except ValueError as error:
            raise DataError(f"{name}: line {number}: not JSON ({_reason(error)}).") from None
        places.append(f"line {number}")
    return rows, places


def _reason(error: ValueError) -> str:
    """Why a text is no JSON, without its place, which is a line's own."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def _read_csv(name: str, text: str) -> tuple[list[Any], list[str]]:
    previous = csv.field_size_limit(1 << 30)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=SURPLUS, strict=True)
    rows, places = [], []
    try:
        header = list(reader.fieldnames or ())
        # Spreadsheets put commas after the last column, in the header and in rows.
        twice = next((one for one, n in Counter(header).items() if n > 1 and one.strip()), None)
        if len(header) > _MOST_COLUMNS or twice is not None:
            why = "more columns than there is use for" if twice is None else "it is there twice"
            raise DataError(f"{name}: the header: {(twice or '…')[:60]!r}: {why}.")
        for row in reader:
            if not any(map(str.strip, row.get(SURPLUS) or ())):
                row.pop(SURPLUS, None)
            rows.append(row)
            places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise DataError(f"{name}: line {reader.line_num}: not CSV ({error}).") from None
    finally:
        csv.field_size_limit(previous)
    return rows, places


def _read_parquet(path: Path, name: str) -> list[Any]:
    import pyarrow  # type: ignore[import-untyped]  # comes with datasets
    import pyarrow.parquet  # type: ignore[import-untyped]

    rows: list[Any] = []
    held = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_PARQUET_ROWS):
                held += batch.nbytes
                if held > MOST_BYTES:
                    raise DataError(
                        f"{name}: more than {MOST_BYTES >> 30} GiB when unpacked, and files are "
                        "read whole up to that; split it."
                    )
                rows += batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: not a readable Parquet file ({_first_line(error)}).") from None
    return rows


def _read_hub(section: RowsSection) -> list[Any]:
    import datasets

    try:
        loaded = datasets.load_dataset(
            section.path, section.subset, split=section.split, revision=section.revision
        )
    except Exception as error:  # the Hub client's errors share no base class
        subset = f"a config '{section.subset}' and " if section.subset else ""
        raise DataError(
            f"{section.path}: neither a file here nor a Hub dataset with {subset}a split "
            f"'{section.split}' that can be reached ({_first_line(error)})."
        ) from None
    # As stored: a column of pictures or sounds would be fetched from wherever its rows say.
    rows: list[Any] = loaded.to_list()
    return rows


def _hub_file(section: RowsSection) -> Path:
    """Where one file of a Hub dataset lies once it is here: ``hf://datasets/org/name/file.json``.

    For datasets whose rows come from a script, which is never run.
    """
    from huggingface_hub import hf_hub_download

    org, _, rest = section.path.removeprefix(_HUB_FILE).partition("/")
    name, _, file = rest.partition("/")
    if not file:
        raise DataError(f"{section.path}: name a file, as in {_HUB_FILE}org/name/file.json.")
    try:
        found = hf_hub_download(
            f"{org}/{name}", file, repo_type="dataset", revision=section.revision
        )
    except Exception as error:  # as above
        raise DataError(
            f"{section.path}: this file of a Hub dataset cannot be reached ({_first_line(error)})."
        ) from None
    return Path(found)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
