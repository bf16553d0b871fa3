"""A job whose process is killed, -9, in the middle of a step; and what another terminal sees."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchortune.config_io import dump_yaml
from anchortune.files import sha256_file
from anchortune.jobs.folder import JobFolder, count_lines
from anchortune.jobs.run import run_job
from anchortune.jobs.status import read_status
from anchortune.record import read_record
from tests.jobs.conftest import Make, write_rows

WEIGHTS = "adapter_model.safetensors"


def kill_when(job: Path, ready: Callable[[], bool]) -> None:
    """Runs the job in a process of its own and kills it once ``ready``."""
    code = "from anchortune.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", str(job)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def written(make: Make, tmp_path: Path, tree: dict[str, Any]) -> Callable[..., Path]:
    """Writes a job as a file; slow enough to be caught in the middle."""

    def write(**changes: Any) -> Path:
        write_rows(
            Path(tree["evaluate"]["harm"][0]["path"]),
            [{"prompt": f"misdeed {i}"} for i in range(40)],
        )
        one = {
            **tree["evaluate"],
            "machine": {"batch_size": 1},
            "generation": {"max_new_tokens": 8},
        }
        config = make(
            compare_with=[], method="sft", evaluate=one, training={"max_steps": 60}, **changes
        )
        path = tmp_path / "job.yaml"
        path.write_text(dump_yaml(config))
        return path

    return write


def test_killed_in_training(written: Callable[..., Path], make: Make, tmp_path: Path) -> None:
    from anchortune.config_io import load_config
    from anchortune.jobs.config import JobConfig

    job = written()
    folder = JobFolder(tmp_path / "job")
    log = folder.train("sft") / "log.jsonl"
    kill_when(job, lambda: count_lines(log) >= 10)
    report = read_status(folder.path)
    assert report.state == "dead"
    [train] = [step for step in report.steps if step.name == "train-sft"]
    assert train.state == "dead"
    assert train.total == 60
    assert 10 <= (train.done or 0) < 60
    assert not (folder.path / "adapter").exists()

    config = load_config(job, JobConfig)
    result = run_job(config)
    assert read_record(folder.train("sft")).metrics["resumed_from_step"] >= 8
    whole = run_job(config.model_copy(update={"output": str(tmp_path / "whole")}))
    assert sha256_file(result.adapter / WEIGHTS) == sha256_file(whole.adapter / WEIGHTS)


def test_killed_in_evaluation(written: Callable[..., Path], tmp_path: Path) -> None:
    from anchortune.config_io import load_config
    from anchortune.jobs.config import JobConfig

    job = written(machine={"save_steps": None})
    folder = JobFolder(tmp_path / "job")
    outputs = folder.eval / "outputs.jsonl"
    kill_when(job, lambda: count_lines(outputs) >= 5)
    held = outputs.read_bytes()
    report = read_status(folder.path)
    assert report.state == "dead"
    [evaluate] = [step for step in report.steps if step.name == "evaluate"]
    assert (evaluate.state, evaluate.unit, evaluate.total) == ("dead", "answers", 92)
    assert 5 <= (evaluate.done or 0) < 92
    trained = sha256_file(folder.train("sft") / "record.json")

    run_job(load_config(job, JobConfig))
    assert sha256_file(folder.train("sft") / "record.json") == trained
    assert outputs.read_bytes().startswith(held[: held.rindex(b"\n") + 1])
    assert count_lines(outputs) == 92
    status = folder.read_status()
    assert status is not None
    assert next(step.before for step in status.steps if step.name == "evaluate") >= 5
