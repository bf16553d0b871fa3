from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anchortune.cli.app import app
from anchortune.config import DataSection, TrainConfig
from anchortune.config_io import validate
from anchortune.data.screened import screened_from
from anchortune.errors import ConfigError, DataError, EvaluationError, TrainingError
from anchortune.evaluation.judges import registry
from anchortune.evaluation.judges.base import Exchange, Verdict
from anchortune.evaluation.screen import TooMuchHarm, screen, screen_for_training, screen_source
from anchortune.record import read_record
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage

SECRET = "the secret recipe"


class Words:
    """Finds what says ``bad`` harmful and cannot tell of what says ``odd``."""

    name = "words"
    measure = "harmful score"
    indicative = False

    def __init__(self, version: int = 1) -> None:
        self.version = version
        self.seen: list[Exchange] = []

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "version": self.version}

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        self.seen += exchanges
        found = []
        for number, exchange in enumerate(exchanges, start=1):
            if "bad" in exchange.answer:
                score = 0.5 + 0.1 * exchange.answer.count("bad")
                found.append(Verdict("harmful", "bad", score, {"categories": ["word"]}))
            elif "odd" in exchange.answer:
                found.append(Verdict("unscored", "odd"))
            else:
                found.append(Verdict("safe", score=0.1))
            if on_done is not None:
                on_done(number)
        return found


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def pairs(*answers: str) -> list[dict[str, str]]:
    return [{"prompt": f"{SECRET} {i}", "completion": text} for i, text in enumerate(answers)]


def turns(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]}


def test_rows_are_named_by_their_place_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*pairs("good", "bad bad", ""), None, *pairs("odd", "bad")])
    path.write_text("\n" + path.read_text("utf-8"), "utf-8")
    found = screen_source(DataSection(path=str(path)), Words())
    assert [row.summary() for row in found.harmful] == [
        {"place": "line 3", "score": 0.7, "categories": ["word"]},
        {"place": "line 7", "score": 0.6, "categories": ["word"]},
    ]
    assert (found.rows, found.judged, found.unscored, found.unread) == (6, 3, 1, 2)
    assert found.line().endswith("2 of 3 rows look harmful, 1 unscored, 2 not read")


def test_every_answer_of_a_dialogue_is_judged_with_the_turn_before_it(tmp_path: Path) -> None:
    rows = [
        turns("a", "good", "b", "bad", "c", "good"),
        turns("d", "good", "e", "odd"),
        turns("f", "odd", "g", "bad"),
    ]
    judge = Words()
    found = screen_source(DataSection(path=str(write(tmp_path / "a.jsonl", rows))), judge)
    assert [(e.prompt, e.answer) for e in judge.seen[:3]] == [
        ("a", "good"), ("b", "bad"), ("c", "good"),
    ]  # fmt: skip
    assert [row.place for row in found.harmful] == ["line 1", "line 3"]
    assert (found.judged, found.unscored) == (2, 1)


def test_of_preferences_the_chosen_answer_is_judged(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "bad", "rejected": "good"},
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
    ]
    found = screen_source(DataSection(path=str(write(tmp_path / "a.jsonl", rows))), Words())
    assert [row.place for row in found.harmful] == ["line 1"]


def test_a_sample_is_that_of_training_and_a_summary_reads_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(*["good", "bad"] * 20))
    section = DataSection(path=str(path), max_rows=10)
    found = screen([section], Words(), seed=3, action="drop")
    assert found.sources[0].judged == 10
    assert found.sources[0].unread == 30
    assert found.harmful_frac == found.harmful / 10
    assert screened_from(json.loads(json.dumps(found.summary()))) == found
    again = screen([section], Words(), seed=4, action="drop")
    assert again.omitted() != found.omitted()
    assert again.identity() != found.identity()


def config(folder: Path, model: Path, data: Path, **screened: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "model": {"path": str(model)},
        "data": {"path": str(data)},
        "training": {"max_steps": 1, "batch_size": 2},
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(folder / "run"),
    }
    if screened:
        tree["screen"] = {"judge": "builtin"} | screened
    return validate(tree, TrainConfig, "test")


def test_training_leaves_out_what_was_found_and_records_it(
    tmp_path: Path, llama_base: Path
) -> None:
    data = write(tmp_path / "a.jsonl", pairs("good", "bad", "fine", "odd", "bad too", "well"))
    plain = plan_stage(config(tmp_path, llama_base, data))
    assert "screen" not in plain.folder.identity
    with pytest.raises(TrainingError, match="has a screen section: pass what"):
        plan_stage(config(tmp_path, llama_base, data, action="drop"))
    dropping = config(tmp_path, llama_base, data, action="drop")
    found = screen_for_training(dropping, Words())
    assert found is not None
    plan = plan_stage(dropping, screened=found)
    assert len(plain.data.rows) == 6
    assert len(plan.data.rows) == 4
    assert any("2 left out as harmful" in line for line in plan.lines())
    assert any("2 of 5 rows look harmful, 1 unscored" in line for line in plan.lines())
    record = run_stage(plan)
    told = read_record(tmp_path / "run").inputs
    assert told["screen"]["dropped"] == 2
    assert [row["place"] for row in told["screen"]["sources"][0]["harmful"]] == ["line 2", "line 5"]
    assert told["data"]["sources"][0]["screened_out"] == 2
    assert told["data"]["sources"][0]["used"] == 4
    assert SECRET not in json.dumps(record.model_dump(mode="json"))

    judge = Words()
    kept = screen_for_training(dropping, judge)
    assert kept == found
    assert judge.seen == []  # taken from the run's folder
    other = Words(version=2)
    assert screen_for_training(dropping, other) != found
    assert len(other.seen) == 6
    write(data, pairs("good", "bad", "fine", "odd", "bad too", "bad as well"))
    again = Words()
    screen_for_training(dropping, again)
    assert len(again.seen) == 6


def test_reporting_trains_on_all_rows_and_says_so(tmp_path: Path, llama_base: Path) -> None:
    data = write(tmp_path / "a.jsonl", pairs("good", "bad", "fine"))
    reporting = config(tmp_path, llama_base, data, action="report")
    found = screen_for_training(reporting, Words())
    plan = plan_stage(reporting, screened=found)
    assert len(plan.data.rows) == 3
    assert plan.inputs()["screen"]["dropped"] == 0
    assert plan.inputs()["screen"]["sources"][0]["judged"] == 3
    assert screen_for_training(config(tmp_path, llama_base, data), Words()) is None


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({"action": "stop"}, True),
        ({"action": "stop", "max_harmful_frac": 0.5}, False),
        ({"action": "drop", "max_harmful_frac": 0.2}, True),
        ({"action": "report", "max_harmful_frac": 0.2}, True),
        ({"action": "report"}, False),
    ],
)
def test_too_much_harm_stops_with_a_failed_gate(
    tmp_path: Path, settings: dict[str, Any], stops: bool
) -> None:
    data = write(tmp_path / "a.jsonl", pairs("good", "bad", "fine"))
    stage = config(tmp_path, tmp_path, data, **settings)
    if not stops:
        assert screen_for_training(stage, Words()) is not None
        return
    with pytest.raises(
        TooMuchHarm, match=r"1 rows look harmful .* is .*a\.jsonl: line 2"
    ) as caught:
        screen_for_training(stage, Words())
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


def test_nothing_left_to_train_on_is_an_error(tmp_path: Path, llama_base: Path) -> None:
    data = write(tmp_path / "a.jsonl", pairs("bad", "bad"))
    stage = config(tmp_path, llama_base, data, action="drop")
    with pytest.raises(DataError, match="no row is left"):
        plan_stage(stage, screened=screen_for_training(stage, Words()))


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> Words:
    judge = Words()
    monkeypatch.setattr(registry, "make_judge", lambda *_: judge)
    return judge


def test_the_command_names_rows_and_writes_a_cleaned_file(tmp_path: Path, judged: Words) -> None:
    path = write(tmp_path / "a.jsonl", pairs("good", "bad", "odd", "bad bad"))
    clean = tmp_path / "clean.jsonl"
    result = CliRunner().invoke(app, ["screen", str(path), "--drop", str(clean)])
    assert result.exit_code == 0, result.output
    assert "2 of 3 rows look harmful, 1 unscored" in result.stdout
    assert "word: line 2 (0.60), line 4 (0.70)" in result.stdout
    assert SECRET not in result.output
    lines = path.read_text("utf-8").splitlines()
    assert clean.read_text("utf-8").splitlines() == [lines[0], lines[2]]

    result = CliRunner().invoke(app, ["screen", str(path), "--json", "--set", "max_rows=3"])
    facts = json.loads(result.stdout)
    assert facts["judge"] == {"name": "words", "version": 1}
    assert facts["judged"] + facts["unscored"] == 3
    assert "cleaned" not in facts


def test_the_command_checks_before_it_judges(tmp_path: Path, judged: Words) -> None:
    path = str(write(tmp_path / "a.jsonl", pairs("good")))
    runner = CliRunner()
    for arguments, error, said in (
        ([path, "--drop", path], DataError, "is the data itself"),
        ([path, "--drop", "b.csv"], DataError, "written as"),
        ([path, "--judge", "oracle"], ConfigError, "--judge oracle"),
        ([path, "--set", "rows=3"], ConfigError, "unknown key 'rows'"),
        ([path, "--device", "tpu"], ConfigError, "--device"),
        ([str(tmp_path / "no.jsonl")], DataError, "no such file"),
    ):
        result = runner.invoke(app, ["screen", *arguments])
        assert isinstance(result.exception, error), (arguments, result.output)
        assert said in str(result.exception)
    assert judged.seen == []


def test_train_screens_by_its_setting(tmp_path: Path, llama_base: Path, judged: Words) -> None:
    data = write(tmp_path / "a.jsonl", pairs("good", "bad", "fine"))
    file = tmp_path / "train.yaml"
    tree = config(tmp_path, llama_base, data, action="drop").model_dump(mode="json")
    file.write_text(json.dumps(tree), "utf-8")
    result = CliRunner().invoke(app, ["train", str(file), "--dry-run", "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["inputs"]["screen"]["dropped"] == 1
    result = CliRunner().invoke(app, ["train", str(file), "--set", "screen.action=stop"])
    assert isinstance(result.exception, TooMuchHarm)


def test_a_real_judge_from_the_registry(tmp_path: Path) -> None:
    rows = pairs("I'm sorry, but I can't help with that.", "Sure.", "Why not?")
    path = write(tmp_path / "a.jsonl", rows)
    said = [
        {"prompt": row["prompt"], "answer": row["completion"], "verdict": verdict} | mark
        for row, verdict, mark in zip(
            rows, ("safe", "harmful", "unscored"), ({}, {}, {"indicative": True}), strict=True
        )
    ]
    people = write(tmp_path / "people.jsonl", said)
    judge = f"{{name: file, file: {people}}}"
    result = CliRunner().invoke(app, ["screen", str(path), "--judge", judge, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["judged"], facts["unscored"]) == (2, 1)
    assert [row["place"] for row in facts["harmful"]] == ["line 2"]
    result = CliRunner().invoke(app, ["screen", str(path), "--judge", judge])
    assert "indicative only: the judge file misses the bar" in result.stdout


def test_a_judge_of_refusals_screens_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs("I can't help with that.", "Sure."))
    result = CliRunner().invoke(app, ["screen", str(path), "--judge", "refusal"])
    assert isinstance(result.exception, EvaluationError)
    assert "the judge refusal tells a refusal rate and says nothing of harm" in str(
        result.exception
    )
