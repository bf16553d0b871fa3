from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from anchortune.config import DataSection
from anchortune.data.conversations import load_source
from anchortune.data.named import local_path, name_for_records
from anchortune.data.rows import read_rows
from anchortune.errors import DataError


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that ``data:`` names go by, with one file in it."""
    folder = tmp_path / "somewhere"
    (folder / "set").mkdir(parents=True)
    rows = [{"instruction": "Say hi", "output": "hi"}]
    (folder / "set" / "a.json").write_text(json.dumps(rows), "utf-8")
    monkeypatch.setenv("ANCHORTUNE_DATA", str(folder))
    return folder


def test_a_name_is_read_and_stays_a_name(data: Path) -> None:
    assert local_path("data:set/a.json") == data / "set" / "a.json"
    section = DataSection(path="data:set/a.json")
    assert read_rows(section).rows[0] == {"instruction": "Say hi", "output": "hi"}
    [conversation], report = load_source(section, seed=0)
    assert conversation.place == "data:set/a.json: row 1"
    assert report.summary()["path"] == "data:set/a.json"
    assert str(data) not in json.dumps(report.summary())


def test_another_path_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANCHORTUNE_DATA", raising=False)
    assert local_path("set/a.json") == Path("set/a.json")
    assert local_path("~/a.json") == Path("~/a.json").expanduser()


def test_evaluations_go_by_names_too(data: Path) -> None:
    from anchortune.evaluation.config import PromptSetSection, TaskSection
    from anchortune.evaluation.prompt_sets import load_prompts
    from anchortune.evaluation.tasks.load import load_task

    (data / "p.jsonl").write_text('{"prompt": "a", "target": "x"}\n', "utf-8")
    asked = load_prompts(
        PromptSetSection(path="data:p.jsonl"), part="all", selection_frac=0.5, seed=0
    )
    assert asked.name == "p"
    task = load_task(
        TaskSection(path="data:p.jsonl", match="exact"), part="all", selection_frac=0.5, seed=0
    )
    for source in (asked.source, task.source):
        assert source["path"] == "data:p.jsonl"
        assert str(data) not in json.dumps(source)


def test_a_cleaned_file_is_made_from_a_name(data: Path, tmp_path: Path) -> None:
    from anchortune.data.clean import write_clean

    (data / "p.jsonl").write_text('{"a": 1}\n{"a": 2}\n', "utf-8")
    assert write_clean(DataSection(path="data:p.jsonl"), {"line 1"}, tmp_path / "c.jsonl") == 1
    assert (tmp_path / "c.jsonl").read_text("utf-8") == '{"a": 2}\n'
    with pytest.raises(DataError, match="is the data itself"):
        write_clean(DataSection(path="data:p.jsonl"), {"line 1"}, data / "p.jsonl")


@pytest.mark.parametrize(
    "name", ["data:../a", "data:set/../../a", "data:/etc/a", "data:", "data:~/a", "data:C:/a"]
)
def test_a_name_stays_below_the_folder(data: Path, name: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"{name}: expected data:FOLDER/FILE")):
        local_path(name)


def test_a_backslash_does_not_climb_out(data: Path) -> None:
    with pytest.raises(DataError, match="expected data:FOLDER/FILE"):
        local_path("data:set\\..\\..\\a")


def test_what_is_missing_is_said_without_the_folder(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, said in (
        (str(data), "no such file under ANCHORTUNE_DATA"),
        (str(data / "none"), "ANCHORTUNE_DATA names no folder"),
        ("", "the folder in which the data lies, is not set"),
    ):
        monkeypatch.setenv("ANCHORTUNE_DATA", value)
        with pytest.raises(DataError, match=said) as caught:
            read_rows(DataSection(path="data:set/b.json"))
        assert str(caught.value).startswith("data:set/b.json: ")
        assert "experiments/fetch.py" in str(caught.value)
        assert str(data) not in str(caught.value)


def test_errors_inside_a_file_name_it_by_its_name(data: Path) -> None:
    (data / "bad.jsonl").write_text('{"a": 1}\n{\n', "utf-8")
    (data / "bad.csv").write_text('a,b\n"x', "utf-8")
    (data / "bad.parquet").write_text("no", "utf-8")
    for name in ("bad.jsonl", "bad.csv", "bad.parquet"):
        with pytest.raises(DataError) as caught:
            read_rows(DataSection(path=f"data:{name}"))
        assert str(caught.value).startswith(f"data:{name}: ")


def test_records_hold_no_absolute_path(tmp_path: Path) -> None:
    for path in ("data:set/a.json", "org/set", "sub/a.json", "hf://datasets/o/n/a.json"):
        assert name_for_records(path) == path
    assert name_for_records(str(tmp_path / "a.json")) == "a.json"
    assert name_for_records("~/private/a.json") == "a.json"
