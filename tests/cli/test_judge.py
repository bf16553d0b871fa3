"""``judge run`` and ``judge calibrate``: tables, JSON, and how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anchortune.cli.judge import app
from anchortune.errors import AnchortuneError, ConfigError, DataError, EvaluationError
from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.outputs import OutputLog


def call(*arguments: str) -> Any:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An evaluation's folder with two models' answers, and people's verdicts about them."""
    with OutputLog(tmp_path / "outputs.jsonl") as log:
        for model, text in (("[old]", "I can't help."), ("new", "Sure, take flour.")):
            for number in range(2):
                log.append(Answer(model, Item("advbench", f"p{number}"), f"{text} {number}"))
        log.append(Answer("new", Item("sst2", "good?", target="positive"), "positive"))
    people = [
        {"prompt": "p0", "answer": "I can't help. 0", "label": 0},
        {"prompt": "p1", "answer": "I can't help. 1", "label": 0},
        {"prompt": "p0", "answer": "Sure, take flour. 0", "label": 1},
    ]
    (tmp_path / "people.jsonl").write_text("\n".join(map(json.dumps, people)))
    return tmp_path


def people(folder: Path) -> str:
    return f"{{name: file, file: {folder}/people.jsonl}}"


def test_old_answers_are_judged_and_told(folder: Path) -> None:
    output = folder / "new" / "verdicts.jsonl"
    result = call(
        "run", str(folder), "--judge", people(folder), "--judge", "refusal", "-o", str(output)
    )
    assert result.exit_code == 0
    told = result.stdout
    assert "[old]" in told
    assert "100.0 % (20.7–100.0)" in told  # of the one that the file is about
    assert "file, new, advbench: 1 unscored, no verdict in the file" in told
    assert "1 answers to tasks are left out" in told
    assert told.rstrip().endswith(str(output))
    assert len(output.read_text().splitlines()) == 8


def test_the_same_as_json(folder: Path) -> None:
    result = call("run", str(folder), "--judge", people(folder), "--json")
    facts = json.loads(result.stdout)
    assert [(r["model"], r["judge"]) for r in facts["rates"]] == [
        ("[old]", "file"),
        ("new", "file"),
    ]
    assert facts["rates"][1]["figure"]["unscored"] == 1
    assert facts["judges"][0]["answers"] == 3
    assert (facts["agreements"], facts["task_answers_left_out"]) == ([], 1)


def test_two_judges_and_their_agreement(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second judge of another name, which the registry makes."""
    from anchortune.evaluation.judges import registry
    from anchortune.evaluation.judges.file import FileJudge

    class Second(FileJudge):
        name = "builtin"

    build = registry._build
    monkeypatch.setattr(
        registry,
        "_build",
        lambda section, machine: (
            Second(f"{folder}/people.jsonl")
            if section.name == "builtin"
            else build(section, machine)
        ),
    )
    result = call("run", str(folder), "--judge", people(folder), "--judge", "builtin")
    assert "file and builtin on advbench: 100.0 % of 3 agree, κ 1.00" in result.stdout


def test_of_many_reasons_the_commonest_are_told(folder: Path) -> None:
    rows = [{"prompt": f"p{n}", "answer": "a"} for n in range(9)]
    said = [row | {"verdict": "", "reason": f"why {max(2, n)}"} for n, row in enumerate(rows)]
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "said.jsonl").write_text("\n".join(map(json.dumps, said)))
    judge = f"{{name: file, file: {folder}/said.jsonl}}"
    told = call("run", str(folder / "many.jsonl"), "--judge", judge).stdout
    assert told.count("unscored, why") == 5
    assert told.index("3 unscored, why 2") < told.index("1 unscored, why 3")
    assert "many: 2 unscored for 2 other reasons" in told


def test_a_judge_is_measured_against_labels(folder: Path) -> None:
    labels = folder / "labels.csv"
    labels.write_text(
        "question,Response,label,where\np,I can't.,0,a\np,Sure.,1,a\np,Sorry I can't.,0,b\np,x,,b\n"
    )
    result = call(
        "calibrate", "--judge", "refusal", "--data", str(labels), "--source-column", "where"
    )
    assert result.exit_code == 0
    assert "refusal against labels" in result.stdout
    assert "a: 1 unscored, no refusal phrase, which says nothing of harm" in result.stdout
    assert "1 rows have no label and are left out" in result.stdout
    asked = ("calibrate", "--judge", "refusal", "--data", str(labels), "--json")
    facts = json.loads(call(*asked).stdout)
    [one] = facts["sources"]
    assert (one["source"], one["harmful"], one["safe"]) == ("labels", 1, 2)
    assert one["area"]["value"] == 1.0  # the harmful one has no phrase, the safe ones have
    assert facts["false_positive_rate"] == 0.05
    assert facts["unlabelled"] == 1


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["run", "HERE/none", "--judge", "refusal"], EvaluationError, "no file of answers"),
        (["run", "HERE", "--judge", "refusl"], ConfigError, "refusl"),
        (["run", "HERE", "--judge", "{name: file}"], ConfigError, "the judge file needs file"),
        (["run", "HERE", "--judge", "refusal", "--only", "x"], EvaluationError, "no set 'x'"),
        (["run", "HERE", "--judge", "refusal", "-o", "HERE"], EvaluationError, "cannot be written"),
        (["run", "HERE", "--judge", "refusal", "--device", "tpu"], ConfigError, "device"),
        (["calibrate", "--judge", "refusal", "--data", "HERE/people.jsonl", "--label-column", "x"],
         DataError, "no column 'x'"),
        (["calibrate", "--judge", "refusal", "--data", "HERE/no.csv"], DataError, "no such file"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_sentence(
    folder: Path, arguments: list[str], kind: type[AnchortuneError], said: str
) -> None:
    with pytest.raises(kind, match=said):
        call(*(text.replace("HERE", str(folder)) for text in arguments))


def test_the_command_exits_with_2_and_without_a_traceback(folder: Path) -> None:
    code = "from anchortune.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "judge", "run", str(folder / "none"), "--judge", "refusal"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("anchortune: ")
    assert "Traceback" not in done.stderr
