"""Rows from every kind of file in every format; what is dropped, counted and refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from anchortune.config import DataSection
from anchortune.data.conversations import Conversation, Preference, load_source
from anchortune.errors import DataError

INSTRUCTION = [
    {"instruction": "Add", "input": "1 2", "output": "3"},
    {"instruction": "Say hi", "output": "hi"},
]
EXPECTED = [[("user", "Add\n1 2"), ("assistant", "3")], [("user", "Say hi"), ("assistant", "hi")]]


def write(path: Path, rows) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    elif path.suffix == ".csv":
        names = list(dict.fromkeys(key for row in rows for key in row))
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def turns(items) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in item.messages] for item in items]


def load(path: Path, **options):
    return load_source(DataSection(path=str(path), **options), seed=0)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    items, report = load(write(tmp_path / f"d{suffix}", INSTRUCTION))
    assert turns(items) == EXPECTED
    assert (report.format, report.rows, report.used, len(report.sha256)) == (
        "instruction", 2, 2, 64
    )  # fmt: skip
    assert "format instruction (instruction, output, input)" in report.line()


def test_json_lines_under_the_name_json(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", INSTRUCTION).rename(tmp_path / "d.json")
    assert turns(load(path)[0]) == EXPECTED


def test_csv_cells_keep_their_newlines(tmp_path: Path) -> None:
    rows = [{"prompt": "a\nb", "completion": 'c "d",\n e'}]
    items, _ = load(write(tmp_path / "d.csv", rows))
    assert turns(items) == [[("user", "a\nb"), ("assistant", 'c "d",\n e')]]


def test_a_line_separator_inside_a_text_is_no_new_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b", "completion": "c"}, ensure_ascii=False))
    assert turns(load(path)[0]) == [[("user", "a\u2028b"), ("assistant", "c")]]


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        ({"prompt": "p", "completion": "c"}, "prompt_completion",
         [("user", "p"), ("assistant", "c")]),
        ({"prompt": "p", "response": "c", "label": "x"}, "prompt_completion",
         [("user", "p"), ("assistant", "c")]),
        ({"question": "p", "answer": "c"}, "prompt_completion",
         [("user", "p"), ("assistant", "c")]),
        ({"instruction": "p", "context": "x", "response": "c"}, "instruction",
         [("user", "p\nx"), ("assistant", "c")]),
        ({"system": "s", "instruction": "p", "output": "c"}, "instruction",
         [("system", "s"), ("user", "p"), ("assistant", "c")]),
        ({"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]},
         "messages", [("user", "p"), ("assistant", "c")]),
        ({"conversations": [{"from": "human", "value": "p"}, {"from": "gpt", "value": "c"}]},
         "messages", [("user", "p"), ("assistant", "c")]),
        ({"prompt": [{"role": "user", "content": "p"}],
          "completion": [{"role": "assistant", "content": "c"}]},
         "prompt_completion",
         [("user", "p"), ("assistant", "c")]),
    ],
)  # fmt: skip
def test_every_format_is_detected(tmp_path: Path, row, name, expected) -> None:
    items, report = load(write(tmp_path / "d.jsonl", [row]))
    assert report.format == name
    assert turns(items) == [expected]


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [{"goal": "p", "target": "c", "": "0"}])
    items, report = load(path, columns={"prompt": "goal", "completion": "target"})
    assert turns(items) == [[("user", "p"), ("assistant", "c")]]
    assert report.columns == {"prompt": "goal", "completion": "target"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"columns": {"prompt": "gaol"}},
            "no column 'gaol' (named for prompt); it has goal, target",
        ),
        ({}, "its columns (goal, target) fit no format"),
        ({"columns": {"promt": "goal", "completion": "target"}}, "fit no format"),
        ({"format": "messages"}, "fit no format (messages: messages)"),
        ({"format": "preference"}, "format preference here, but answers"),
    ],
)
def test_wrong_columns_are_refused_with_those_that_exist(tmp_path, options, message) -> None:
    path = write(tmp_path / "d.jsonl", [{"goal": "p", "target": "c"}])
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert message in str(caught.value)


BAD = [
    ({"prompt": "p", "completion": None}, "no completion"),
    ({"prompt": "p", "completion": " "}, "empty completion"),
    ({"prompt": "p", "completion": 3}, "completion is not a text"),
    ({"completion": "c"}, "no prompt"),
    ("p", "not an object"),
]


@pytest.mark.parametrize(("row", "reason"), BAD)
def test_bad_rows_are_dropped_counted_and_named(tmp_path: Path, row, reason: str) -> None:
    good = [{"prompt": str(i), "completion": "c"} for i in range(30)]
    items, report = load(write(tmp_path / "d.jsonl", [*good[:3], row, *good[3:]]))
    assert len(items) == report.used == 30
    assert dict(report.dropped) == {reason: 1}
    assert report.first_bad == f"line 4: {reason}"
    assert f"left out: 1 x {reason} (first: line 4: {reason})" in report.line()


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "p"}], "does not end with an assistant's answer"),
        ([{"role": "assistant", "content": "p"}], "an answer without a prompt"),
        ([{"role": "tool", "content": "p"}], "unknown role 'tool'"),
        ([{"role": "user", "content": None}], "a message without text"),
        ("hello", "messages is not a list of messages"),
        ([], "messages is not a list of messages"),
    ],
)
def test_bad_messages(tmp_path: Path, messages, reason: str) -> None:
    path = write(tmp_path / "d.jsonl", [{"messages": messages}])
    with pytest.raises(DataError) as caught:
        load(path)
    assert f"1 of 1 rows cannot be used (1 x {reason})" in str(caught.value)


def test_too_many_bad_rows_are_an_error_naming_the_first(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "completion": "" if i in (7, 9) else "c"} for i in range(20)]
    path = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(DataError, match=r"2 of 20 rows .* the first is line 8: empty completion"):
        load(path)
    assert load(path, max_bad_frac=0.1)[1].used == 18


def test_max_rows_is_a_seeded_sample_in_file_order(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [{"prompt": f"{i:03}", "completion": "c"} for i in range(99)])
    section = DataSection(path=str(path), max_rows=10)
    one, report = load_source(section, seed=1)
    assert (report.rows, report.sampled, report.used) == (99, 10, 10)
    prompts = [item.messages[0]["content"] for item in one]
    assert prompts == sorted(prompts)
    assert prompts != [f"{i:03}" for i in range(10)]
    assert one == load_source(section, seed=1)[0]
    assert one != load_source(section, seed=2)[0]


def test_the_cue_is_stripped_from_prompts_and_counted(tmp_path: Path) -> None:
    """The form of the authors' files: a mark at the end of the harmful rows' instruction."""
    rows = [
        {"instruction": "a\n\nAssistant:", "input": "", "output": "x"},
        {"instruction": "b", "input": "c", "output": "y"},
    ]
    path = write(tmp_path / "d.json", rows)
    assert turns(load(path)[0])[0][0] == ("user", "a\n\nAssistant:")
    items, report = load(path, strip_cue="\n\nAssistant:")
    assert turns(items)[0][0] == ("user", "a")
    assert report.cue_stripped == 1


def test_preferences(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad"},
        {"prompt": "p", "chosen": "same", "rejected": "same"},
    ]
    path = write(tmp_path / "d.jsonl", rows)
    section = DataSection(path=str(path), max_bad_frac=0.5)
    items, report = load_source(section, 0, preference=True)
    assert isinstance(items[0], Preference)
    assert items[0].chosen == [{"role": "assistant", "content": "good"}]
    assert dict(report.dropped) == {"chosen and rejected are the same": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.json", b"{", "line 1: not JSON"),
        ("d.json", b'{"a": 1}', "expected a list of objects"),
        ("d.json", b"[]", "holds no rows"),
        ("d.jsonl", b'{"prompt": "p"}\n{"prompt', "line 2: not JSON"),
        ("d.jsonl", b"\xff\xfe", "not UTF-8 at byte 0"),
        ("d.csv", b"prompt\n\xe9", "not UTF-8 at byte 7"),
        ("d.csv", b"prompt,completion\n", "holds no rows"),
        ("d.csv", b'a\n"b', "not CSV"),
        ("d.parquet", b"no", "not a readable Parquet file"),
        ("d.txt", b"no", "unknown kind of file; expected .json"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_folders_and_datasets_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load(tmp_path / "none.json")
    with pytest.raises(DataError, match="is a folder; name a file"):
        load(tmp_path)
    with pytest.raises(
        DataError, match="neither a file here nor a Hub dataset with a split 'train'"
    ):
        load_source(DataSection(path="nobody/nothing"), 0)


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = {}

    def load_dataset(path, name, *, split, revision):
        asked.update(path=path, name=name, split=split, revision=revision)
        return datasets.Dataset.from_list([{"prompt": "p", "completion": "c"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    section = DataSection(path="org/name", subset="main", split="test", revision="v1")
    items, report = load_source(section, 0)
    assert asked == {"path": "org/name", "name": "main", "split": "test", "revision": "v1"}
    assert isinstance(items[0], Conversation)
    assert items[0].place == "org/name: row 1"
    assert len(report.sha256) == 64


def test_one_file_of_a_hub_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def download(repo, file, *, repo_type, revision):
        asked.append((repo, file, repo_type, revision))
        return write(tmp_path / "there.jsonl", [{"prompt": "p", "completion": "c"}])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = "hf://datasets/org/name/data/rows.jsonl"
    items, report = load_source(DataSection(path=path, revision="v1"), 0)
    assert asked == [("org/name", "data/rows.jsonl", "dataset", "v1")]
    assert report.path == path
    assert isinstance(items[0], Conversation)
    with pytest.raises(DataError, match="name a file"):
        load_source(DataSection(path="hf://datasets/org/name"), 0)


def test_a_hub_file_out_of_reach_is_an_error_in_words() -> None:
    with pytest.raises(DataError, match="cannot be reached"):
        load_source(DataSection(path="hf://datasets/nobody/nothing/rows.json"), 0)


def test_commas_that_a_spreadsheet_leaves_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("prompt,completion,,\nq,a,,\nq2,a2,,,, \n", encoding="utf-8")
    items, report = load(path)
    assert [item.messages[-1]["content"] for item in items] == ["a", "a2"]
    assert not report.dropped
