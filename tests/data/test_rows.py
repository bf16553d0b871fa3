"""Which rows of a source ``where`` means."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from anchortune.data.conversations import load_source
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.sections import DataSection, RowsSection

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "completion": "A", "safe": True, "kind": "x", "label": 0.0},
    {"prompt": "b", "completion": "B", "safe": False, "kind": "y", "label": 1.0},
    {"prompt": "c", "completion": "C", "safe": False, "kind": "z ", "label": 2.0},
    {"prompt": "d", "completion": "D", "safe": None, "kind": "Y", "label": 1.0},
]


def written(folder: Path, suffix: str) -> str:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    elif suffix == ".csv":
        cells = [",".join("" if v is None else str(v) for v in row.values()) for row in ROWS]
        path.write_text("\n".join([",".join(ROWS[0]), *cells]), "utf-8")
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    else:
        path.write_text(json.dumps(ROWS), "utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize(
    ("where", "prompts"),
    [
        ({"safe": False}, "bc"),
        ({"safe": "FALSE"}, "bc"),
        ({"kind": "y"}, "bd"),
        ({"kind": ["x", "z"]}, "ac"),
        ({"safe": False, "kind": ["y"]}, "b"),
        ({"prompt": "a"}, "a"),
        ({"safe": ""}, "d"),
    ],
)
def test_the_rows_that_are_meant_whatever_the_file(
    tmp_path: Path, suffix: str, where: dict[str, Any], prompts: str
) -> None:
    path = written(tmp_path, suffix)
    found = read_rows(RowsSection(path=path, where=where))
    whole = read_rows(RowsSection(path=path))
    assert [(row or {})["prompt"] for row in found.rows] == list(prompts)
    places = dict(zip("abcd", whole.places, strict=True))
    assert found.places == [
        places[prompt] for prompt in prompts
    ]  # of the file, not of what is left
    assert (found.sha256, found.columns) == (whole.sha256, whole.columns)


@pytest.mark.parametrize("suffix", [".json", ".csv", ".parquet"])
def test_a_number_is_the_same_written_either_way(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path, suffix)
    for value in (1, 1.0, "1"):
        assert len(read_rows(RowsSection(path=path, where={"label": value})).rows) == 2


def test_what_it_cannot_mean_is_refused_by_name(tmp_path: Path) -> None:
    path = written(tmp_path, ".json")
    with pytest.raises(DataError, match=r"no column 'is_safe' \(named in where\); it has prompt"):
        read_rows(RowsSection(path=path, where={"is_safe": False}))
    with pytest.raises(DataError, match=r"no row has kind w \(kind is x, y, z\); name in where"):
        read_rows(RowsSection(path=path, where={"kind": "w"}))
    with pytest.raises(DataError, match="no row has safe true and kind y"):
        read_rows(RowsSection(path=path, where={"safe": True, "kind": "y"}))
    # YAML reads yes as true: in a list with a value that occurs it must not pass unseen.
    with pytest.raises(DataError, match=r"no row has kind true \(kind is x, y, z\).*in quotes"):
        read_rows(RowsSection(path=path, where={"kind": ["x", True]}))
    for wrong in ({}, {"kind": []}, {"kind": None}):
        with pytest.raises(ValidationError):
            RowsSection(path=path, where=wrong)


def test_texts_of_rows_are_not_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "how to " + "x" * 60, "n": i} for i in range(3)]))
    with pytest.raises(DataError) as caught:
        read_rows(RowsSection(path=str(path), where={"prompt": "y"}))
    assert "how to" not in str(caught.value)


def test_training_reads_and_samples_the_rows_that_are_meant(tmp_path: Path) -> None:
    section = DataSection(path=written(tmp_path, ".csv"), where={"safe": False}, max_rows=1)
    conversations, report = load_source(section, seed=0)
    assert (report.rows, report.sampled, len(conversations)) == (2, 1, 1)


def test_a_section_without_it_is_written_as_it_was_before_there_was_any() -> None:
    assert "where" not in DataSection(path="a.json").model_dump(mode="json")
    told = DataSection(path="a.json", where={"safe": [False]}).model_dump(mode="json")
    assert told["where"] == {"safe": [False]}
    assert DataSection.model_validate(told).where == {"safe": [False]}
