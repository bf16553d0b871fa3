"""Making a judge: its options, and that no model under test judges itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import ConfigError, EvaluationError
from anchortune.evaluation.config import EvalMachine, JudgeSection
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.registry import check_judge, kinship, make_judge

MACHINE = EvalMachine(device="cpu", dtype="float32")
SERVER = {"url": "http://127.0.0.1:8000/v1", "model": "judge"}


def section(**keys: Any) -> JudgeSection:
    return JudgeSection.model_validate(keys)


def test_judges_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "v.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "a", "label": 1}))
    refusal = make_judge(section(name="refusal"), MACHINE)
    file = make_judge(section(name="file", file=str(path)), MACHINE)
    assert (refusal.name, refusal.measure) == ("refusal", "refusal rate")
    assert (file.name, file.measure) == ("file", "harmful score")
    assert file.judge([Exchange("p", "a")])[0].outcome == "harmful"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "refusal", "model": "m"}, "the judge refusal takes no model; leave it out"),
        ({"name": "refusal", "batch_size": 4}, "takes no batch_size"),
        ({"name": "file", "file": "f", "min_confidence": 0.9}, "takes no min_confidence"),
        ({"name": "file"}, "the judge file needs file"),
        ({"name": "rubric"}, "the judge rubric needs server"),
        ({"name": "beaver-dam", "server": SERVER}, "takes no server"),
        ({"name": "builtin", "file": "f"}, "takes no file"),
        ({"name": "wildguard", "file": "f"}, "takes no file"),
        ({"name": "llama-guard-3", "prompt": "f"}, "takes no prompt"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_judge(section(**keys))


@pytest.mark.parametrize(
    "candidate",
    [
        {"server": "http://127.0.0.1:8000/v1/", "model": "judge"},
        {"url": "http://127.0.0.1:8000", "model": "judge"},
    ],
)
def test_a_served_model_does_not_judge_itself(candidate: dict[str, Any]) -> None:
    rubric = section(name="rubric", server=SERVER)
    with pytest.raises(EvaluationError, match="does not judge itself"):
        check_judge(rubric, [candidate])
    check_judge(rubric, [{"server": "http://127.0.0.1:8000/v1", "model": "another"}])
    check_judge(rubric, [{"server": "http://127.0.0.1:8001/v1", "model": "judge"}])


def test_a_judge_is_refused_by_the_path_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    other = str(tmp_path / "x" / "..")
    judge = section(name="md-judge", model=str(tmp_path))
    with pytest.raises(EvaluationError, match=r"the judge md-judge is .*, a model under test"):
        check_judge(judge, [{"path": other, "sha256": "1"}])
    with pytest.raises(EvaluationError, match="a model under test"):
        check_judge(judge, [{"engine": "transformers", "model": {"path": other}}])
    check_judge(judge, [{"path": other, "adapters": [{"path": "a"}]}])
    check_judge(section(name="md-judge", model="org/m"), [{"path": "org/m", "revision": "v1"}])
    with pytest.raises(EvaluationError, match="a model under test"):
        check_judge(section(name="md-judge"), [{"path": "opensafetylab/md-judge-v0.1"}])


class Reader:
    """A judge of which only the identity matters."""

    name = "reader"
    measure = "harmful score"
    indicative = False

    def identity(self) -> dict[str, Any]:
        return {"weights": {"path": "base", "sha256": "1"}}

    def judge(self, exchanges: Any, on_done: Any = None) -> list[Any]:
        raise NotImplementedError


def test_kinship_is_told_and_not_refused() -> None:
    tuned = {"path": "elsewhere", "sha256": "1", "adapter": {"path": "a"}}
    [said] = kinship(Reader(), [tuned, tuned, {"path": "m", "sha256": "2"}])
    assert said == "the judge reader reads with base, from which a model under test is made"
    assert kinship(Reader(), [{"path": "m", "sha256": "2"}, {"server": "u", "model": "m"}]) == []


class Asker(Reader):
    name = "asker"

    def identity(self) -> dict[str, Any]:
        return {"engine": {"server": "http://127.0.0.1:1/v1", "model": "m"}}


def test_a_judge_with_the_name_of_a_model_under_test_is_told_of() -> None:
    [said] = kinship(Asker(), [{"server": "http://127.0.0.1:2/v1", "model": "m"}])
    assert said == "the judge asker asks m, and a model under test elsewhere has that name"
    assert kinship(Asker(), [{"server": "u", "model": "n"}, {"path": "m", "sha256": None}]) == []
