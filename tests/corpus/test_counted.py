"""What can be used is used, and what cannot is counted, named and limited; never more memory."""

from __future__ import annotations

import json
import logging
import resource
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from anchortune.data import rows
from anchortune.data.conversations import load_source
from anchortune.errors import DataError
from anchortune.sections import DataSection, RowsSection
from tests.corpus import writers
from tests.corpus.case import jsonl, put
from tests.corpus.command import call
from tests.corpus.rows import GOOD, mixed
from tests.warm import Warm


def read(path: Path, **options: Any) -> Any:
    return load_source(DataSection(path=str(path), **options), 0)


def test_rows_that_cannot_be_used_are_counted_by_reason_with_the_first_place(
    tmp_path: Path,
) -> None:
    bad = [GOOD | {"completion": ""}, GOOD | {"completion": 5}, GOOD | {"prompt": None}, 7]
    path = put(tmp_path / "a.jsonl", jsonl(*[GOOD] * 96, *bad))
    found, report = read(path)
    assert (len(found), report.used, report.rows) == (96, 96, 100)
    assert dict(report.dropped) == {
        "empty completion": 1,
        "completion is not a text": 1,
        "no prompt": 1,
        "not an object": 1,
    }
    assert report.first_bad == "line 97: empty completion"
    assert "96 of 100 rows" in report.line()
    assert "1 x no prompt" in report.line()
    with pytest.raises(DataError, match=r"4 of 100 rows cannot be used .*first is line 97"):
        read(path, max_bad_frac=0.03)


def test_reasons_that_rows_make_up_are_limited(tmp_path: Path) -> None:
    turns = [{"messages": [{"role": f"r{n}", "content": "a"}]} for n in range(500)]
    good = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    path = put(tmp_path / "a.jsonl", jsonl(*turns, good))
    _, report = read(path, max_bad_frac=1.0)
    assert report.dropped.total() == 500
    assert len(report.dropped) == 9
    assert report.dropped["other reasons"] == 492
    assert len(report.line()) < 600


def test_a_field_too_many_is_no_answer_cut_short(tmp_path: Path) -> None:
    lines = ["prompt,completion", *["say it,it"] * 30, "say it,it, and more"]
    found, report = read(put(tmp_path / "a.csv", "\n".join(lines)))
    assert len(found) == 30
    assert dict(report.dropped) == {"more fields than columns": 1}
    assert report.first_bad.startswith("line 32")


def test_half_a_character_is_told_and_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(
        tmp_path / "a.jsonl", jsonl(GOOD | {"completion": "it \ud83d"}, GOOD | {"prompt": "b"})
    )
    found, _ = read(path)
    assert found[0].messages[-1]["content"] == "it ?"
    assert "1 texts hold half a character" in caplog.text
    assert call([str(word) for word in mixed(path, tmp_path)], monkeypatch) == 0
    whole = put(tmp_path / "b.jsonl", jsonl(GOOD | {"completion": "it 😀"}))
    caplog.clear()
    assert read(whole)[0][0].messages[-1]["content"] == "it 😀"
    assert "half a character" not in caplog.text


def test_the_facts_of_a_mix_count_what_was_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [GOOD | {"prompt": f"say {n}"} for n in range(40)]
    path = put(tmp_path / "a.jsonl", jsonl(*good, GOOD | {"completion": " "}))
    assert call([*map(str, mixed(path, tmp_path)), "--json"], monkeypatch) == 0
    [source] = json.loads(capsys.readouterr().out)["benign"]["sources"]
    assert source["unusable"] == {"empty completion": 1}


def test_a_parquet_file_that_unpacks_to_more_than_the_bound_is_refused_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    import pyarrow.parquet

    answers = pyarrow.array(
        ["b" * 10_000] * 20_000
    )  # 200 MB, which a dictionary holds in kilobytes
    table = pyarrow.table({"prompt": answers, "completion": answers})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(rows, "MOST_BYTES", 64 << 20)
    seen = []
    batches = pyarrow.parquet.ParquetFile.iter_batches

    def counted(self: Any, *given: Any, **more: Any) -> Any:
        for batch in batches(self, *given, **more):
            seen.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "iter_batches", counted)
    with pytest.raises(DataError, match="GiB when unpacked"):
        rows.read_rows(RowsSection(path=str(path)))
    assert sum(seen) < 6000


def _grown(words: list[str], told: str) -> None:
    """A command in this process; writes how many MiB its memory grew by at most."""
    from anchortune.cli.app import main

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.argv = ["anchortune", *words]
    logging.disable()
    try:
        main()
    finally:
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        Path(told).write_text(str((after - before) // 1024))


def _header_of_lists(folder: Path) -> list[str]:
    """The longest header that is read, of what takes most memory as objects."""
    text = b'{"a": [' + b"[]," * (10 << 20) + b"[]]}"
    put(folder / "bad" / "model.safetensors", struct.pack("<Q", len(text)) + text)
    return _build(folder / "bad")


def _build(aligned: Path) -> list[str]:
    folder = str(aligned)
    return ["anchor", "build", "--aligned", folder, "--base", folder, "-o", f"{folder}-out"]


def _lists_in_gguf(folder: Path) -> list[str]:
    many = writers.pair("a", writers.ARRAY, writers.listed(writers.U8, 32 << 20, bytes(32 << 20)))
    return _build(put(folder / "bad.gguf", writers.gguf([writers.ARCHITECTURE, many])))


def _line(folder: Path) -> list[str]:
    text = b'{"prompt": "a", "completion": ["' + b"b" * (50 << 20) + b'"]}'
    return [str(word) for word in mixed(put(folder / "bad.jsonl", text), folder)]


BOMBS = {
    "a header of lists": (_header_of_lists, 1100),
    "32 MiB of numbers in a GGUF file": (_lists_in_gguf, 80),
    "50 MiB in a line": (_line, 400),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded(name: str, tmp_path: Path) -> None:
    make, most_mib = BOMBS[name]
    process = Warm(_grown, make(tmp_path), str(tmp_path / "grown"))
    _, told = process.communicate(200)
    assert process.returncode == 2, told
    assert int((tmp_path / "grown").read_text()) < most_mib
