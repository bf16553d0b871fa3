"""Calibration: what is read as a label, and figures worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.judges.base import Exchange, Verdict
from anchortune.evaluation.judges.calibrate import (
    Columns,
    Labelled,
    calibrate,
    read_labelled,
    score_of,
)
from anchortune.evaluation.judges.refusal import RefusalJudge


class Canned:
    """A judge that says of each answer what is written in it: an outcome and a score."""

    name = "canned"
    measure = "harmful score"
    indicative = False

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        found = []
        for exchange in exchanges:
            outcome, _, score = exchange.answer.partition(" ")
            reason = "unsure" if outcome == "unscored" else ""
            found.append(Verdict(outcome, reason, float(score) if score else None))  # type: ignore[arg-type]
        if on_done is not None:
            on_done(len(found))
        return found


def rows(*pairs: tuple[str, bool], source: str = "a") -> list[Labelled]:
    return [Labelled(Exchange("p", answer), label, source) for answer, label in pairs]


def test_figures_by_hand() -> None:
    data = rows(
        ("harmful 0.9", True),
        ("harmful 0.8", True),
        ("safe 0.3", True),
        ("unscored 0.5", True),
        ("harmful 0.7", False),
        ("safe 0.2", False),
        ("safe 0.1", False),
        ("unscored", False),
    )
    done: list[int] = []
    [found] = calibrate(Canned(), data, 0.0, on_done=done.append)
    assert (found.source, found.harmful, found.safe, found.unscored) == ("a", 4, 4, 2)
    assert found.reasons == {"unsure": 2}
    assert found.found is not None
    assert (found.found.value, found.found.n) == (pytest.approx(2 / 3), 3)
    assert found.alarms is not None
    assert (found.alarms.value, found.alarms.n) == (pytest.approx(1 / 3), 3)
    assert found.agreement is not None
    assert (found.agreement.n, found.agreement.agree) == (6, pytest.approx(4 / 6))
    assert found.agreement.kappa == pytest.approx(1 / 3)
    # Ranked are the seven with a score: of 4 x 3 pairs, those of 0.7 with 0.3 and 0.5 are wrong.
    assert found.ranked == 7
    assert found.area is not None
    assert found.area.value == pytest.approx(10 / 12)
    assert found.recall is not None
    assert (found.recall.value, found.recall.threshold) == (0.5, 0.8)
    assert done == [8]
    assert json.dumps(found.facts())


def test_by_source_and_over_all() -> None:
    data = rows(("harmful 1", True), ("safe 0", False)) + rows(("safe 0", True), source="b")
    first, second, everything = calibrate(Canned(), data, resamples=50)
    assert [first.source, second.source, everything.source] == ["a", "b", "all"]
    assert (first.area, second.area) != (None, None)
    assert second.area is None  # one class alone
    assert second.recall is None
    assert second.alarms is None
    assert everything.harmful + everything.safe == 3
    named = calibrate(Canned(), data + rows(("safe 0", False), source="all"), resamples=50)
    assert [one.source for one in named] == ["a", "b", "all", "all sources"]


def test_a_judge_that_scores_nothing() -> None:
    [found] = calibrate(Canned(), rows(("unscored", True), ("unscored", False)))
    assert (found.agreement, found.area, found.found, found.ranked) == (None, None, None, 0)


def test_what_ranks_an_answer() -> None:
    assert score_of(Verdict("safe", score=0.3)) == 0.3
    assert score_of(Verdict("harmful")) == 1.0
    assert score_of(Verdict("safe")) == 0.0
    assert score_of(Verdict("unscored")) is None
    refused, other = RefusalJudge().judge([Exchange("p", "I can't."), Exchange("p", "Sure.")])
    assert (score_of(refused), score_of(other)) == (0.0, 1.0)


def test_labels_are_read_from_files(tmp_path: Path) -> None:
    first = tmp_path / "people.csv"
    first.write_text("question,Response,label\np,a,1\np,b,0\np,c,\n", encoding="utf-8")
    second = tmp_path / "b.jsonl"
    lines = [
        {"prompt": "p", "answer": "d", "is_safe": False, "source": "x"},
        {"prompt": "p", "answer": "", "is_safe": True, "source": "y"},
    ]
    second.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    found = read_labelled([str(first), str(second)])
    assert [(r.exchange.answer, r.harmful, r.source) for r in found.rows] == [
        ("a", True, "people"),
        ("b", False, "people"),
        ("d", True, "x"),
        ("", False, "y"),
    ]
    assert found.unlabelled == 1
    assert set(found.files) == {str(first), str(second)}


def test_columns_may_have_any_name_and_rows_may_be_a_sample(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    lines = [{"ask": f"p{i}", "said": "a", "bad": i % 2, "who": f"w{i}"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    names = Columns("ask", "said", "bad", "who")
    sample = read_labelled([str(path)], names, max_rows=5, seed=3).rows
    assert len(sample) == 5
    assert sample == read_labelled([str(path)], names, max_rows=5, seed=3).rows
    assert sample != read_labelled([str(path)], names, max_rows=5, seed=4).rows
    assert sample[0].source.startswith("w")


@pytest.mark.parametrize(
    ("line", "columns", "said"),
    [
        ({"prompt": "p", "answer": "a"}, Columns(), "no column of labels"),
        ({"prompt": "p", "label": 1}, Columns(), "no column of answers"),
        ({"answer": "a", "label": 1}, Columns(), "no column of prompts"),
        ({"prompt": "p", "answer": "a", "label": 1}, Columns(label="x"), "no column 'x'; it has"),
        ({"prompt": "p", "answer": "a", "label": 1}, Columns(source="x"), "no column 'x'"),
        ({"prompt": "p", "answer": "a", "label": "so-so"}, Columns(), "line 1: 'label' is 'so-so'"),
        ({"prompt": "p", "answer": 5, "label": 1}, Columns(), "line 1: 'answer' holds no text"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, line: dict[str, Any], columns: Columns, said: str
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(line), encoding="utf-8")
    with pytest.raises(DataError, match=said):
        read_labelled([str(path)], columns)


def test_a_file_without_any_label_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "a", "label": None}), encoding="utf-8")
    with pytest.raises(EvaluationError, match="no row has a label"):
        read_labelled([str(path)])
