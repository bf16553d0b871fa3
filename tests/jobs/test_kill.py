"""A job whose process is killed, -9, in the middle of a step; and what another terminal sees."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.config_io import dump_yaml, load_config
from anchortune.evaluation.outputs import OutputLog
from anchortune.files import sha256_file
from anchortune.jobs.config import JobConfig
from anchortune.jobs.folder import JobFolder, count_lines
from anchortune.jobs.run import run_job
from anchortune.jobs.status import read_status
from anchortune.record import read_record
from anchortune.training.loop import Journal
from tests.jobs.conftest import Make, write_rows
from tests.warm import Warm, call_command

WEIGHTS = "adapter_model.safetensors"


def run_and_die(job: Path, kind: type, method: str, times: int) -> None:
    """Runs the job, and ends by SIGKILL once ``method`` of ``kind`` was done so many times."""
    whole, done = getattr(kind, method), 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal done
        result = whole(*given, **named)
        done += 1
        if done == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(kind, method, counted)
    call_command(["run", str(job)])


def killed(job: Path, kind: type, method: str, times: int) -> None:
    """See `run_and_die`: in a process of its own."""
    process = Warm(run_and_die, job, kind, method, times)
    _, told = process.communicate(200)
    assert process.returncode == -signal.SIGKILL, told.decode()


@pytest.fixture
def written(make: Make, tmp_path: Path, tree: dict[str, Any]) -> Callable[..., Path]:
    """Writes a job as a file, with enough to do that there is a middle."""

    def write(**changes: Any) -> Path:
        write_rows(
            Path(tree["evaluate"]["harm"][0]["path"]),
            [{"prompt": f"misdeed {i}"} for i in range(10)],
        )
        one = {
            **tree["evaluate"],
            "machine": {"batch_size": 1},
            "generation": {"max_new_tokens": 8},
        }
        config = make(
            compare_with=[], method="sft", evaluate=one, training={"max_steps": 16}, **changes
        )
        path = tmp_path / "job.yaml"
        path.write_text(dump_yaml(config))
        return path

    return write


def test_killed_in_training(written: Callable[..., Path], make: Make, tmp_path: Path) -> None:
    job = written()
    folder = JobFolder(tmp_path / "job")
    killed(job, Journal, "on_log", 10)
    assert count_lines(folder.train("sft") / "log.jsonl") == 10
    report = read_status(folder.path)
    assert report.state == "dead"
    [train] = [step for step in report.steps if step.name == "train-sft"]
    assert train.state == "dead"
    assert (train.done, train.total) == (10, 16)
    assert not (folder.path / "adapter").exists()

    config = load_config(job, JobConfig)
    result = run_job(config)
    assert read_record(folder.train("sft")).metrics["resumed_from_step"] == 8  # every second
    whole = run_job(config.model_copy(update={"output": str(tmp_path / "whole")}))
    assert sha256_file(result.adapter / WEIGHTS) == sha256_file(whole.adapter / WEIGHTS)


def test_killed_in_evaluation(written: Callable[..., Path], tmp_path: Path) -> None:
    job = written(machine={"save_steps": None})
    folder = JobFolder(tmp_path / "job")
    outputs = folder.eval / "outputs.jsonl"
    killed(job, OutputLog, "append", 5)
    held = outputs.read_bytes()
    report = read_status(folder.path)
    assert report.state == "dead"
    [evaluate] = [step for step in report.steps if step.name == "evaluate"]
    assert (evaluate.state, evaluate.unit) == ("dead", "answers")
    assert (evaluate.done, evaluate.total) == (5, 32)
    trained = sha256_file(folder.train("sft") / "record.json")

    run_job(load_config(job, JobConfig))
    assert sha256_file(folder.train("sft") / "record.json") == trained
    assert outputs.read_bytes().startswith(held[: held.rindex(b"\n") + 1])
    assert count_lines(outputs) == 32
    status = folder.read_status()
    assert status is not None
    assert next(step.before for step in status.steps if step.name == "evaluate") == 5


def write_threads(path: Path) -> None:
    path.write_text(str(torch.get_num_threads()))


def test_a_process_computes_on_as_many_threads_as_its_parent(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        process = Warm(write_threads, tmp_path / "threads")
    finally:
        torch.set_num_threads(before)
    assert process.wait(200) == 0
    assert (tmp_path / "threads").read_text() == "3"
