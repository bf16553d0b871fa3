from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import EvaluationError
from anchortune.evaluation.items import Answer, Item, sha256_text
from anchortune.evaluation.outputs import (
    OutputLog,
    answer_of,
    read_answers,
    read_outputs,
    redact,
    row_of,
)

ITEM = Item("trees", "How tall is an oak?\u2028And an elm?", "oak", "Be brief.", 3, "wood")


def answers(count: int, model: str = "m") -> list[Answer]:
    return [
        Answer(model, Item("s", f"question {i}"), f"answer {i} é", "stop", 3) for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_row_and_back() -> None:
    answer = Answer("m", ITEM, "Tall.", "length", 2, {"near_tie": 0.003})
    row = row_of(answer)
    assert row["prompt_sha256"] == sha256_text("oak")
    assert row["answer_sha256"] == sha256_text("Tall.")
    assert answer_of(json.loads(json.dumps(row))) == answer
    plain = row_of(Answer("m", Item("s", "p"), ""))
    assert set(plain) == {
        "model", "set", "id", "prompt", "prompt_sha256", "answer", "answer_sha256", "tokens",
        "finish",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answer": "Small."}, "does not fit its hash"),
        ({"prompt": "How tall?"}, "does not fit its hash"),
    ],
)
def test_a_changed_row_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        answer_of(row_of(Answer("m", ITEM, "Tall.")) | change)


def test_a_cut_line_is_asked_again_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    made = answers(4)
    with OutputLog(path) as log:
        for answer in made[:3]:
            log.append(answer)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert len(read_outputs(path)) == 2
    with OutputLog(path) as log:
        assert [("m", "s", a.item.id) in log for a in made] == [True, True, False, False]
        for answer in made:
            log.append(answer)
        assert list(log.answers("m")) == made
        assert list(log.answers("other")) == []
    assert (
        path.read_bytes()
        == whole + json.dumps(row_of(made[3]), ensure_ascii=False).encode() + b"\n"
    )


def test_a_line_without_its_newline_counts_as_cut(tmp_path: Path) -> None:
    path = tmp_path / "outputs.jsonl"
    with OutputLog(path) as log:
        for answer in answers(2):
            log.append(answer)
    path.write_bytes(path.read_bytes()[:-1])
    with OutputLog(path) as log:
        assert len(log.done) == 1
    assert path.read_bytes().endswith(b"}\n")


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "outputs.jsonl", [row_of(a) for a in answers(3)])
    lines = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2], ""]), "utf-8")
    with pytest.raises(EvaluationError, match=r"outputs\.jsonl: line 2: not an output"):
        OutputLog(path)
    path.write_text('{"a": 1}\n' + lines[0] + "\n", "utf-8")
    with pytest.raises(EvaluationError, match="line 1: not an output"):
        read_outputs(path)


def test_a_lone_surrogate_is_written(tmp_path: Path) -> None:
    with OutputLog(tmp_path / "outputs.jsonl") as log:
        log.append(Answer("m", Item("s", "p"), "a\ud800b"))
    assert read_outputs(tmp_path / "outputs.jsonl")[0]["answer"] == "a?b"


def test_hashes_stay_and_texts_go(tmp_path: Path) -> None:
    path = write(tmp_path / "outputs.jsonl", [row_of(Answer("m", ITEM, "Tall."))])
    before = path.read_bytes()
    redact(path, "text")
    assert path.read_bytes() == before
    redact(path, "hash")
    text = path.read_text("utf-8")
    assert "Tall" not in text
    assert "oak" not in text
    assert json.loads(text)["answer_sha256"] == sha256_text("Tall.")
    with pytest.raises(EvaluationError, match="keep: hash"):
        read_answers(path)
    with pytest.raises(EvaluationError, match="keep: hash"):
        answer_of(json.loads(text))
    redact(path, "purge")
    assert not path.exists()
    redact(path, "purge")


def test_answers_made_elsewhere_under_the_usual_names(tmp_path: Path) -> None:
    rows = [{"prompt": "p1", "response": "r1"}, {"prompt": "p2", "response": ""}]
    found = read_answers(write(tmp_path / "gpt.jsonl", rows))
    assert [(a.model, a.item.set, a.item.prompt, a.text) for a in found] == [
        ("gpt", "gpt", "p1", "r1"),
        ("gpt", "gpt", "p2", ""),
    ]
    rows = [{"instruction": "Add", "input": "1 2", "output": "3", "set": "sums", "model": "x"}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows), "utf-8")
    [answer] = read_answers(path, model="y", set_name="z")
    assert (answer.model, answer.item.set, answer.item.prompt) == ("x", "sums", "Add\n1 2")


def test_an_outputs_file_is_read_whole(tmp_path: Path) -> None:
    made = [Answer("m", ITEM, "Tall.", "length", 2, {"near_tie": 0.1}), *answers(2)]
    assert read_answers(write(tmp_path / "outputs.jsonl", [row_of(a) for a in made])) == made


def test_csv_and_parquet(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "a\nb", "answer": "c", "tokens": "7", "category": ""}]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    [answer] = read_answers(tmp_path / "a.csv")
    assert (answer.item.prompt, answer.text, answer.tokens) == ("a\nb", "c", 7)
    assert answer.item.category is None
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": ["p"], "completion": ["c"], "target": [4]}), tmp_path / "a.parquet"
    )
    [answer] = read_answers(tmp_path / "a.parquet")
    assert (answer.text, answer.item.target) == ("c", 4)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p", "reply": "r"}], r"no column answer \(response.*it has prompt, reply"),
        ([{"text": "p", "answer": "r"}], r"no column prompt"),
        ([{"prompt": "p", "answer": "r", "output": "s"}], "answer and output could both be"),
        ([{"prompt": "p", "answer": "r"}, {"prompt": "p"}], "line 2, column 'answer': .*nothing"),
        ([{"prompt": 3, "answer": "r"}], "line 1, column 'prompt': expected a text, found a int"),
        ([{"prompt": " ", "answer": "r"}], "line 1, column 'prompt': is empty"),
        ([{"prompt": "p", "answer": "r", "tokens": -1}], "column 'tokens': expected a whole"),
        ([{"prompt": "p", "answer": "r", "finish": "eos"}], "column 'finish': expected stop"),
        ([{"prompt": "p", "answer": "r", "notes": 1}], "column 'notes': expected a mapping"),
        ([{"prompt": "p", "answer": "r"}, 4], "line 2: not an object"),
        (
            [{"prompt": "p", "answer": "r"}, {"prompt": "p", "answer": "s"}],
            "line 1 and line 2 answer the same prompt",
        ),
    ],
)
def test_what_is_wrong_is_placed(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(EvaluationError, match=said) as caught:
        read_answers(write(tmp_path / "x.jsonl", rows))
    assert "x.jsonl" in str(caught.value)


def test_a_repeated_row_counts_once_and_a_missing_file_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "answer": "r"}] * 3
    assert len(read_answers(write(tmp_path / "x.jsonl", rows))) == 1
    for name in ("none.jsonl", "x.txt"):
        with pytest.raises(EvaluationError, match="no file of answers"):
            read_answers(tmp_path / name)


def test_a_category_may_be_a_number(tmp_path: Path) -> None:
    values = (3, 2.0, None, "", "a")
    rows = [{"prompt": f"p{n}", "answer": "x", "category": v} for n, v in enumerate(values)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = [answer.item.category for answer in read_answers(tmp_path / "a.json")]
    assert found == ["3", "2", None, None, "a"]
    (tmp_path / "b.jsonl").write_text('{"prompt": "p", "answer": "x", "category": NaN}\n')
    assert read_answers(tmp_path / "b.jsonl")[0].item.category is None
