"""``anchortune run``: the dry run, the table, the exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.config_io import dump_yaml
from tests.jobs.conftest import Make, make, tree

__all__ = ["make", "tree"]


@pytest.fixture
def job(make: Make, tmp_path: Path) -> Path:
    """A job file with a limit that passes."""
    path = tmp_path / "job.yaml"
    path.write_text(dump_yaml(make(limits={"min_accuracy": 0.0})))
    return path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", *arguments], catch_exceptions=False)


def test_a_dry_run_checks_estimates_and_leaves_nothing(job: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    shown = invoke(str(job), "--dry-run")
    assert shown.exit_code == 0
    for part in ("== anchor (new)", "== train-sft (new)", "== train-asft (new)", "== evaluate",
                 "4 modules", "16 of 16 rows", "4 steps of 4 rows", "== in all: time about",
                 "limits  min_accuracy 0", "job/adapter if the gate passes",
                 "GiB free"):  # fmt: skip
        assert part in shown.stdout
    told = json.loads(invoke(str(job), "--dry-run", "--json").stdout)
    assert [step["name"] for step in told["steps"]][-2:] == ["evaluate", "release"]
    assert told["estimate"]["seconds"] > 0
    assert told["estimate"]["disk_bytes"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_the_time_of_the_evaluation_is_that_of_all_models(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.evaluation import estimate

    one = estimate.Estimate(100.0, 2**20, 2**20, reading_s=10.0)
    monkeypatch.setattr(estimate, "estimate", lambda *_: one)
    shown = invoke(str(job), "--dry-run").stdout
    assert "time    at most about 5 min to generate" in shown  # three models
    assert "; 30 s of it reads the prompts" in shown


def test_the_result_is_a_table_and_where_to_look(job: Path, tmp_path: Path) -> None:
    shown = invoke(str(job))
    assert shown.exit_code == 0
    for part in (
        "aligned",
        "sft",
        "asft",
        "gate    passed: ",
        f"report  {tmp_path}/job/report.html",
    ):
        assert part in shown.stdout
    told = json.loads(invoke(str(job), "--json").stdout)
    assert (told["decision"], told["released"]) == ("passed", True)


@pytest.mark.parametrize(("bound", "code"), [("0.9", 3), ("0.2", 4)])
def test_the_exit_code_is_the_gates(job: Path, bound: str, code: int) -> None:
    options = ("--set", f"limits.min_accuracy={bound}", "--set", "compare_with=[]")
    assert invoke(str(job), *options).exit_code == code
