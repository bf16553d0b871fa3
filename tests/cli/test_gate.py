from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import pytest
import typer
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.errors import AnchortuneError
from anchortune.report.gate import Limits
from tests.report import made_up


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.write(tmp_path_factory.mktemp("gate") / "eval")


@pytest.fixture(autouse=True)
def _outside_github(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)


def gate(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["gate", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "code", "first"),
    [
        (["--max-harm-increase", "0.1"], 0, "passed: asft passes all 2 checks."),
        (["--max-harm-increase", "0.02"], 4, "undecided: asft: of 2 checks, 2 undecided."),
        (["--max-harm", "0.5", "--model", "sft"], 3, "failed: sft: of 2 checks, 2 failed."),
        (["--max-harm", "0.2", "--judge", "builtin"], 0, "passed: asft passes its one check."),
    ],
)
def test_it_ends_as_it_decided(folder: Path, arguments: list[str], code: int, first: str) -> None:
    for place in (folder, folder / "record.json"):
        result = gate(place, *arguments)
        assert result.exit_code == code, result.output
        assert result.stdout.splitlines()[0] == first
        assert "::" not in result.output


def test_every_limit_has_its_option() -> None:
    command = typer.main.get_command(app).commands["gate"]  # type: ignore[attr-defined]
    options = {parameter.name for parameter in command.params}
    assert set(Limits.model_fields) <= options
    assert options - set(Limits.model_fields) == {
        "record", "model", "judge", "junit", "github", "report", "as_json",
    }  # fmt: skip


def test_each_option_sets_its_own_limit(folder: Path) -> None:
    values = {name: 0.01 * at for at, name in enumerate(Limits.model_fields, start=1)}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    checks = json.loads(gate(folder, "--json", *flags).stdout)["checks"]
    assert {check["limit"]: check["bound"] for check in checks} == values


def test_json_stands_alone_on_stdout(folder: Path) -> None:
    result = gate(folder, "--max-harm", "0.5", "--json", "--github")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["decision"] == "passed"
    assert result.stderr.startswith("::notice title=Gate::indicative only")


def test_annotations_where_github_runs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "GITHUB_ACTIONS", "true")
    result = gate(folder, "--min-accuracy", "0.9")
    assert result.exit_code == 3
    assert "::error title=Gate failed%3A min_accuracy::accuracy, sst2: 86.3 %25" in result.stdout
    assert "::" not in gate(folder, "--min-accuracy", "0.9", "--no-github").output


def test_junit_is_written(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "new" / "gate.xml"
    assert gate(folder, "--min-accuracy", "0.85", "--junit", path).exit_code == 4
    suite = ElementTree.parse(path).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("2", "0", "2")


def test_the_page_gets_the_verdict(folder: Path) -> None:
    result = gate(folder / "record.json", "--max-harm", "0.5", "--report")
    assert result.stderr == f"report: {folder / 'report.html'}\n"
    assert "✓ Passed" in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the gate has no limit; give at least one"),
        (["--max-harm-increase", "2"], "gate: max_harm_increase: expected a number at most 1"),
        (["--max-harm", "0.5", "--model", "x"], "model 'x' is not in the record"),
        (["--max-harm", "0.5", "--junit", "."], "--junit .: it is a folder; name a file"),
    ],
)
def test_mistakes(folder: Path, arguments: list[str], said: str) -> None:
    result = gate(folder, *arguments)
    assert isinstance(result.exception, AnchortuneError)
    assert said in str(result.exception)
    assert result.exception.exit_code == 2
    assert result.stdout == ""


def test_a_place_without_a_record(tmp_path: Path) -> None:
    for place, said in ((tmp_path, "no record.json in it"), (Path(__file__), "name a folder")):
        assert said in str(gate(place, "--max-harm", "0.5").exception)
