"""Where a job is, told from its files alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchortune import lock
from anchortune.cli.app import app
from anchortune.errors import JobError
from anchortune.jobs.folder import JobFolder, JobStatus, StepState, StepStatus
from anchortune.jobs.status import read_status
from anchortune.record import now


@pytest.fixture
def folder(tmp_path: Path) -> JobFolder:
    """A job that trains, at step 30 of 40."""
    made = JobFolder(tmp_path / "job")
    made.claim()
    status = JobStatus(
        "running",
        now(),
        now(),
        [
            StepStatus("anchor", "skipped", now(), 2.0),
            StepStatus("train-asft", "running", now(), folder="train/asft", total=40, before=20),
            StepStatus("evaluate"),
        ],
    )
    made.write_status(status)
    run = made.train("asft")
    run.mkdir(parents=True)
    (run / "log.jsonl").write_text('{"step": 10}\n{"step": 30, "loss": 1.0}\n{"step": 3')
    return made


def hold(folder: JobFolder, holder: lock.Holder) -> None:
    (folder.path / lock.LOCK_FILE).write_text(json.dumps(asdict(holder)))


def test_running_tells_how_far_and_how_long(folder: JobFolder) -> None:
    status = folder.read_status()
    assert status is not None
    status.steps[1].started = "2020-01-01T00:00:00+00:00"
    folder.write_status(status)
    hold(folder, lock.Holder.here())
    report = read_status(folder.path)
    assert report.state == "running"
    step = report.steps[1]
    assert (step.done, step.total, step.unit) == (30, 40, "steps")
    assert step.seconds is not None
    assert step.left_s == pytest.approx(step.seconds)  # 10 steps of 10 since it was resumed
    text = "\n".join(report.lines())
    assert "running for" in text
    assert "30 of 40 steps" in text
    assert "left" in text
    assert "evaluate    waiting" in text


def test_an_evaluation_counts_answers_and_verdicts(folder: JobFolder) -> None:
    status = folder.read_status()
    assert status is not None
    status.steps[1].state, status.steps[1].seconds = "done", 9.0
    status.steps[2] = StepStatus("evaluate", "running", now(), folder="eval", total=10, verdicts=20)
    folder.write_status(status)
    folder.eval.mkdir()
    (folder.eval / "outputs.jsonl").write_text("{}\n" * 7 + "{")
    (folder.eval / "verdicts.jsonl").write_text("{}\n" * 3)
    hold(folder, lock.Holder.here())
    train, evaluate = read_status(folder.path).steps[1:]
    assert (train.state, train.done) == ("done", 40)
    assert (evaluate.done, evaluate.total, evaluate.unit) == (7, 10, "answers")
    assert evaluate.verdicts == (3, 20)
    assert "left to generate" in read_status(folder.path).lines()[3]
    (folder.eval / "outputs.jsonl").write_text("{}\n" * 10)
    assert read_status(folder.path).steps[2].left_s is None  # judges have another pace


def test_a_job_whose_process_is_gone_is_dead(folder: JobFolder) -> None:
    hold(folder, replace(lock.Holder.here(), process="1"))
    report = read_status(folder.path)
    assert report.state == "dead"
    assert [step.state for step in report.steps] == ["skipped", "dead", "waiting"]
    assert "is gone; run the job again and it goes on" in report.lines()[0]


def test_failed_and_complete(folder: JobFolder) -> None:
    status = folder.read_status()
    assert status is not None
    status.state, status.error, status.exit_code = "failed", "d.jsonl: no rows.", 2
    folder.write_status(status)
    report = read_status(folder.path)
    assert (report.state, report.exit_code) == ("failed", 2)
    assert "d.jsonl: no rows." in report.lines()[0]
    status.state, status.error, status.exit_code = "complete", None, 3
    folder.write_status(status)
    folder.finish("release", StepState("d", {"decision": "failed"}, now(), 0.1))
    report = read_status(folder.path)
    assert (report.state, report.decision) == ("complete", "failed")
    assert "gate: failed" in report.lines()[0]


def test_no_job_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="is no job's folder; name the output"):
        read_status(tmp_path)


def test_the_command(folder: JobFolder) -> None:
    shown = CliRunner().invoke(app, ["status", str(folder.path)], catch_exceptions=False)
    assert "train-asft  dead, 30 of 40 steps" in shown.stdout
    told = CliRunner().invoke(app, ["status", str(folder.path), "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["state"] == "dead"
    ended = CliRunner().invoke(app, ["status", str(folder.path), "--watch"], catch_exceptions=False)
    assert "dead" in ended.stdout


def test_it_loads_no_torch() -> None:
    code = "import anchortune.jobs.status, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
