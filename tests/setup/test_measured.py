"""What ``init`` finds to measure, and how many prompts that takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.errors import AnchortuneError
from anchortune.maths.stats import tango
from anchortune.setup.measured import find_sets, find_task, least_prompts
from anchortune.training.template import Template
from tests.setup.conftest import write


@pytest.mark.parametrize(
    ("answers", "match"),
    [
        (["yes", "no"] * 10, "choice"),
        (["3", "1,200", "#### 7"] * 5, "number"),
        ([f"word{'n' * i}" for i in range(12)], "exact"),
        (["a " * 40] * 4, None),
    ],
)
def test_how_answers_are_matched_is_told_by_the_right_ones(
    tmp_path: Path, template: Template, answers: list[str], match: str | None
) -> None:
    rows = [{"instruction": f"q {i}", "input": "", "output": a} for i, a in enumerate(answers)]
    task, why = find_task(write(tmp_path / "t.jsonl", rows), {}, template.tokenizer)
    assert (task.tree["match"] if task else None) == match
    assert bool(why) == (match is None)


def test_the_one_column_of_texts_is_that_of_the_prompts(tmp_path: Path) -> None:
    bad = write(tmp_path / "bad.jsonl", [{"n": i, "request": f"misdeed {i}"} for i in range(4)])
    good = write(tmp_path / "good.jsonl", [{"prompt": f"nice {i}", "x": "y"} for i in range(3)])
    [harm], [benign], notes = find_sets([bad], [good])
    assert harm.tree == {"path": bad, "column": "request"}
    assert benign.tree == {"path": good, "benign": True}
    assert (harm.prompts, benign.prompts, notes) == (4, 3, [])
    two = write(tmp_path / "two.jsonl", [{"a": "x", "b": "y"}])
    with pytest.raises(AnchortuneError, match="name theirs in column"):
        find_sets([two], [])


@pytest.mark.parametrize("limit", [0.03, 0.05, 0.1])
def test_the_fewest_prompts_are_those_of_the_gates_interval(limit: float) -> None:
    least = least_prompts(limit)
    assert tango(0, 0, least)[1] <= limit < tango(0, 0, least - 1)[1]
