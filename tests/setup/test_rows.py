"""What ``init`` sees in a file of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.config import DataSection
from anchortune.data.conversations import load_source
from anchortune.errors import DataError
from anchortune.setup.rows import look_at_data
from anchortune.training.template import Template
from tests.setup.conftest import write

TURNS = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "ok"}]
SHARED = [{"from": "human", "value": "say"}, {"from": "gpt", "value": "ok"}]
#: Rows, the format that is found, and the columns that the config has to name.
LAYOUTS: dict[str, tuple[dict[str, Any], str, dict[str, str]]] = {
    "instruction": ({"instruction": "say", "input": "loud", "output": "ok"}, "instruction", {}),
    "target": (
        {"instruction": "say", "input": "x", "target": "ok"},
        "instruction",
        {"output": "target"},
    ),
    "prompt": ({"prompt": "say", "completion": "ok"}, "prompt_completion", {}),
    "gsm8k": ({"question": "1 + 1?", "answer": "2"}, "prompt_completion", {}),
    "system": (
        {"system": "be brief", "prompt": "say", "response": "ok"},
        "prompt_completion",
        {},
    ),
    "messages": ({"messages": TURNS}, "messages", {}),
    "sharegpt": ({"conversations": SHARED, "id": 3}, "messages", {}),
    "dialogue": ({"dialogue": TURNS}, "messages", {"messages": "dialogue"}),
    "trl": ({"prompt": TURNS[:1], "completion": TURNS[1:]}, "prompt_completion", {}),
    "sentence": (
        {"idx": 1, "sentence": "say", "label": "ok"},
        "prompt_completion",
        {"prompt": "sentence", "completion": "label"},
    ),
    "unknown": (
        {"Frage": "say", "Antwort": "ok", "n": 1},
        "prompt_completion",
        {"prompt": "Frage", "completion": "Antwort"},
    ),
    "half known": (
        {"Frage": "say", "answer": "ok"},
        "prompt_completion",
        {"prompt": "Frage", "completion": "answer"},
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_rows_is_read_as_a_run_reads_it(
    tmp_path: Path, template: Template, layout: str
) -> None:
    row, kind, columns = LAYOUTS[layout]
    path = write(tmp_path / "d.jsonl", [row] * 4)
    found = look_at_data(path, {}, template)
    assert found.report.format == kind
    assert found.section == DataSection(path=path, columns=columns)
    assert found.guessed == bool(columns)
    conversations, _ = load_source(found.section, seed=1)
    assert [turn["role"] for turn in conversations[0].messages][-2:] == ["user", "assistant"]  # type: ignore[union-attr]
    assert found.lengths == [len(template.encode(conversations[0].messages, 999)[0].input_ids)] * 4  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "anchortune align with method: dpo"),
        ({"sentence": "a", "label": 1}, "'label' holds a number in each row"),
        ({"a": "x", "b": "y", "c": "z"}, "--column prompt=NAME --column completion=NAME"),
        ({"prompt": "a"}, "--column prompt=NAME"),
        ({"prompt": "a", "completion": " "}, "4 of 4 rows cannot be used"),
    ],
)
def test_rows_that_mean_nothing_are_refused_with_the_mend(
    tmp_path: Path, template: Template, row: dict[str, Any], said: str
) -> None:
    path = write(tmp_path / "d.jsonl", [row] * 4)
    with pytest.raises(DataError) as caught:
        look_at_data(path, {}, template)
    assert said in str(caught.value)
    assert str(caught.value).startswith(path)


def test_every_kind_of_file_is_read(tmp_path: Path, template: Template) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"question": f"q {i}", "answer": f"a {i}"} for i in range(3)]
    lines = ["question,answer", *(f"{row['question']},{row['answer']}" for row in rows)]
    (tmp_path / "d.csv").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    (tmp_path / "d.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    write(tmp_path / "d.jsonl", rows)
    found = [look_at_data(str(tmp_path / f"d.{kind}"), {}, template).lengths
             for kind in ("csv", "json", "parquet", "jsonl")]  # fmt: skip
    assert found[0] == found[1] == found[2] == found[3]


def test_columns_that_the_user_names_go_before_the_guess(
    tmp_path: Path, template: Template
) -> None:
    path = write(tmp_path / "d.jsonl", [{"a": "x", "b": "y", "c": "z"}] * 4)
    found = look_at_data(path, {"prompt": "c", "completion": "a"}, template)
    assert (found.guessed, found.report.columns) == (False, {"prompt": "c", "completion": "a"})


def test_of_many_rows_a_sample_is_counted_and_said(
    tmp_path: Path, template: Template, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.setup import rows

    monkeypatch.setattr(rows, "COUNTED_ROWS", 5)
    path = write(tmp_path / "d.jsonl", [{"prompt": "a" * i, "answer": "b"} for i in range(1, 21)])
    found = look_at_data(path, {}, template)
    assert (found.rows, found.counted, found.all_counted, found.sequences) == (20, 5, False, 20)
