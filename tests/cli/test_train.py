"""``train`` and ``align``: what goes to stdout, what a dry run leaves, how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from anchortune.cli.align import align
from anchortune.cli.train import train
from anchortune.errors import ConfigError, DataError

app = typer.Typer()
app.command()(train)
app.command()(align)


@pytest.fixture
def config(tmp_path: Path, llama_aligned: Path) -> Path:
    data = tmp_path / "d.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(8)]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    path = tmp_path / "c.yaml"
    path.write_text(
        f"model: {{path: {llama_aligned}}}\ndata: {{path: {data}}}\noutput: {tmp_path}/out\n"
        "training: {max_steps: 2}\nmachine: {device: cpu, dtype: float32}\n"
    )
    return path


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.mark.parametrize("command", ["train", "align"])
def test_a_dry_run_prints_the_plan_and_trains_nothing(config: Path, command: str) -> None:
    result = call(command, str(config), "--dry-run")
    assert result.exit_code == 0
    for part in ("8 of 8 rows, format prompt_completion", "2 steps of 8 rows", "time    about"):
        assert part in result.stdout
    assert not (config.parent / "out").exists()
    plan = json.loads(call(command, str(config), "--dry-run", "--json").stdout)
    assert plan["kind"] == command
    assert plan["estimate"]["seconds"] > 0


@pytest.mark.parametrize("command", ["train", "align"])
def test_the_result_is_on_stdout_and_the_rest_is_not(
    config: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = call(command, str(config), "--set", "training.max_steps=1", "--json")
    record = json.loads(result.stdout)
    assert record["kind"] == command
    assert record["metrics"]["steps"] == 1
    card = config.parent / "out" / "adapter" / "README.md"
    assert "**Nothing was measured of it**" in card.read_text(encoding="utf-8")
    card.write_text("by hand")
    again = call(command, str(config), "--set", "training.max_steps=1")
    assert again.stdout.splitlines()[0] == str(config.parent / "out" / "adapter")
    assert len(again.stdout.splitlines()) == 2
    assert card.read_text() == "by hand"  # nothing was trained anew

    def broken(run: Path) -> None:
        raise DataError("the records are not what a run writes")

    monkeypatch.setattr("anchortune.report.card.write_cards", broken)
    without = call(command, str(config), "--set", "training.max_steps=1")
    assert without.stdout == again.stdout
    assert "no card was written beside the result: the records are not" in without.stderr


def test_few_log_lines_still_hold_the_last_step(config: Path) -> None:
    sets = ("--set", "training.max_steps=4", "--set", "machine.logging_steps=100")
    result = call("train", str(config), *sets)
    assert "4 steps in" in result.stdout
    assert "loss" in result.stdout
    log = (config.parent / "out" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 4]


def test_a_run_without_a_late_loss_is_told_without_it(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.training import stage

    metrics = stage._metrics
    monkeypatch.setattr(
        stage, "_metrics", lambda *given: metrics(*given) | {"loss_last_tenth": None}
    )
    result = call("train", str(config), "--set", "training.max_steps=1")
    assert result.stdout.splitlines()[1].startswith("1 steps in ")
    assert ", loss" not in result.stdout


def test_a_mistake_names_the_key(config: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_steps'"):
        call("train", str(config), "--set", "training.max_step=1")


def test_the_commands_import_nothing_heavy() -> None:
    code = (
        "import sys, anchortune.cli.train, anchortune.cli.align\n"
        "assert not {'torch', 'transformers', 'pydantic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
