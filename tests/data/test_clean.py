from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from anchortune.config import DataSection
from anchortune.data import clean
from anchortune.data.clean import write_clean
from anchortune.data.rows import read_rows
from anchortune.errors import DataError


def section(path: Path) -> DataSection:
    return DataSection(path=str(path))


def test_json_lines_keep_every_other_byte(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "out" / "b.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"a":  1}\n\n{"a": "\xe2\x80\xa8"}\r\n{"a": 3}\n{"a": 4}')
    assert read_rows(section(source)).places == ["line 1", "line 3", "line 4", "line 5"]
    assert write_clean(section(source), {"line 4"}, target) == 1
    assert target.read_bytes() == source.read_bytes().replace(b'{"a": 3}\n', b"")
    assert write_clean(section(source), {"line 1", "line 5"}, target) == 2
    assert target.read_bytes() == b'\n{"a": "\xe2\x80\xa8"}\r\n{"a": 3}'


def test_rows_that_are_not_read_are_kept(tmp_path: Path) -> None:
    source, target = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    source.write_text('{"a": 1}\n{"a": 2}\n{"a": 2}', "utf-8")
    part = DataSection(path=str(source), where={"a": 2})
    assert write_clean(part, {"line 2"}, target) == 1
    assert target.read_text("utf-8") == '{"a": 1}\n{"a": 2}'


def test_csv_keeps_every_other_byte_and_knows_lines_within_a_field(tmp_path: Path) -> None:
    source, target = tmp_path / "a.csv", tmp_path / "b.csv"
    records = [b"p,q\r\n", b'"a\nb", x\r\n', b'c,"d ""e"""\r\n', b"f,g\r\n", b'"h\n\ni",j']
    source.write_bytes(b"".join(records))
    places = read_rows(section(source)).places
    assert places == ["line 3", "line 4", "line 5", "line 8"]
    for number, place in enumerate(places, start=1):
        write_clean(section(source), {place}, target)
        assert target.read_bytes() == b"".join(records[:number] + records[number + 1 :])
    source.write_bytes(b"\xef\xbb\xbf" + b"".join(records))
    write_clean(section(source), set(), target)
    assert target.read_bytes() == source.read_bytes()


def test_a_json_list_and_json_lines_of_that_name(tmp_path: Path) -> None:
    source, target = tmp_path / "a.json", tmp_path / "b.json"
    rows = [{"a": 1, "b": "é"}, {"a": 2}, {"a": 3}]
    source.write_text(json.dumps(rows), "utf-8")
    write_clean(section(source), {"row 2"}, target)
    assert json.loads(target.read_text("utf-8")) == [rows[0], rows[2]]
    source.write_text('{"a": 1}\n{"a": 2}\n', "utf-8")
    write_clean(section(source), {"line 1"}, target)
    assert target.read_bytes() == b'{"a": 2}\n'


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    table = pyarrow.table(
        {"a": pyarrow.array([1, 2, 3], pyarrow.int8()), "m": [[{"r": "u"}], [], None]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    write_clean(section(tmp_path / "a.parquet"), {"row 1"}, tmp_path / "b.parquet")
    found = pyarrow.parquet.read_table(tmp_path / "b.parquet")
    assert found.schema == table.schema
    assert found.to_pylist() == table.to_pylist()[1:]


def test_rows_of_the_hub_become_json_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anchortune.data.rows import RawRows

    raw = RawRows([{"a": "é"}, {"a": "b"}], ["row 1", "row 2"], "0", ["a"])
    monkeypatch.setattr(clean, "read_rows", lambda _: raw)
    write_clean(DataSection(path="user/set"), {"row 2"}, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text("utf-8") == '{"a": "é"}\n'
    with pytest.raises(DataError, match=r"written as \.jsonl"):
        write_clean(DataSection(path="user/set"), set(), tmp_path / "b.csv")


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text('{"a": 1}\n', "utf-8")
    with pytest.raises(DataError, match="is the data itself"):
        write_clean(section(source), set(), source)
    with pytest.raises(DataError, match=r"are written as \.jsonl"):
        write_clean(section(source), set(), tmp_path / "b.csv")
    with pytest.raises(DataError, match="has no line 7"):
        write_clean(section(source), {"line 7"}, tmp_path / "b.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        write_clean(section(source), set(), tmp_path / "file" / "b.jsonl")
    assert source.read_text("utf-8") == '{"a": 1}\n'
