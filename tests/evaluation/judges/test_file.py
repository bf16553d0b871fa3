"""The file judge: joins by hash, and never guesses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import DataError
from anchortune.evaluation.items import sha256_text
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.file import FileJudge


def written(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "v.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def hashed(prompt: str, answer: str, **more: Any) -> dict[str, Any]:
    return {
        "prompt_sha256": sha256_text(prompt),
        "answer_sha256": sha256_text(answer),
        "judge": "beaver-dam",
        **more,
    }


def test_verdicts_are_joined_by_hash_with_all_they_carry(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        hashed("p", "a", outcome="harmful", score=0.9, details={"categories": ["x"]}),
        hashed("p", "b", outcome="unscored", reason="no verdict in the text"),
        hashed("p", "c", outcome="right") | {"judge": "match"},
        hashed("p", "d", outcome="safe") | {"judge": "refusal"},
    )
    judge = FileJudge(path)
    done: list[int] = []
    first, second, third, fourth = judge.judge(
        [Exchange("p", "a"), Exchange("p", "b"), Exchange("p", "c"), Exchange("q", "a")],
        done.append,
    )
    assert (first.outcome, first.score, first.details) == ("harmful", 0.9, {"categories": ["x"]})
    assert (second.outcome, second.reason) == ("unscored", "no verdict in the text")
    assert (third.outcome, third.reason) == ("unscored", "no verdict in the file")
    assert fourth.outcome == "unscored"
    assert done == [4]
    assert judge.identity()["judges"] == {"beaver-dam": 2}
    assert judge.identity()["answers"] == 2
    assert judge.look_up(sha256_text("p"), sha256_text("a")) == first


def test_peoples_labels_in_csv_by_text(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text(
        'Prompt,Response,label\n"two\nlines",yes é,1\nq,b,0\nr,c,\ns,d,Yes\nt,e,SAFE\nu,,no\n',
        encoding="utf-8",
    )
    judge = FileJudge(str(path))
    asked = [("two\nlines", "yes é"), ("q", "b"), ("r", "c"), ("s", "d"), ("t", "e"), ("u", "")]
    found = judge.judge([Exchange(*pair) for pair in asked])
    assert [v.outcome for v in found] == [
        "harmful", "safe", "unscored", "harmful", "safe", "safe",
    ]  # fmt: skip
    assert found[2].reason == "no verdict given"


@pytest.mark.parametrize(("value", "outcome"), [(True, "safe"), (0, "harmful"), ("no", "harmful")])
def test_a_yes_in_is_safe_means_safe(tmp_path: Path, value: Any, outcome: str) -> None:
    path = written(tmp_path, {"prompt": "p", "answer": "a", "is_safe": value})
    [verdict] = FileJudge(path).judge([Exchange("p", "a")])
    assert verdict.outcome == outcome


def test_the_goal_is_joined_where_a_row_has_one(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "wrapped p", "goal": "p", "answer": "a", "harmful": 1},
        {"prompt": "q", "answer": "a", "harmful": 1},
    )
    found = FileJudge(path).judge([Exchange("p", "a"), Exchange("q", "a")])
    assert [v.outcome for v in found] == ["harmful", "harmful"]


def test_rows_that_disagree_leave_it_open_and_abstentions_do_not_count(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "p", "answer": "a", "label": 1},
        {"prompt": "p", "answer": "a", "label": 0},
        {"prompt": "p", "answer": "a", "label": 1},
        {"prompt": "p", "answer": "b", "label": None},
        {"prompt": "p", "answer": "b", "label": 1},
    )
    first, second = FileJudge(path).judge([Exchange("p", "a"), Exchange("p", "b")])
    assert first.outcome == "unscored"
    assert first.reason == "the file's rows disagree (2 harmful, 1 safe)"
    assert second.outcome == "harmful"


GOOD = {"prompt": "p", "answer": "a", "label": 1}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([GOOD, GOOD | {"label": "maybe"}], r"line 2: 'label' is 'maybe', which is no verdict"),
        ([GOOD, GOOD | {"score": "high"}], "line 2: the score 'high' is no finite number"),
        ([GOOD, {"prompt": "p", "label": 1}], "line 2: neither answer_sha256 nor the text"),
        ([GOOD, GOOD | {"prompt_sha256": "12"}], "line 2: prompt_sha256 is no SHA-256"),
        ([GOOD, [1]], "line 2: not an object"),
        ([{"prompt": "p", "answer": "a"}], "no column of verdicts"),
        ([{"answer": "a", "label": 1}], "no column of prompts"),
        ([{"prompt": "p", "label": 1}], "no column of answers"),
        ([GOOD | {"judge": "refusal"}], "holds no verdict about harm"),
    ],
)
def test_what_cannot_be_read_names_the_line(tmp_path: Path, rows: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        FileJudge(written(tmp_path, *rows))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        FileJudge(str(tmp_path / "none.jsonl"))
