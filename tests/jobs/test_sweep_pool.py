"""Sweeps by several processes and by Ray, killed and not."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchortune.jobs.folder import count_lines
from anchortune.jobs.pool import in_this_process
from anchortune.jobs.sweep import Sweep
from anchortune.lock import holder_of
from anchortune.record import read_record
from tests.jobs.sweeps import made, records, result, start, sweep_tree

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed (anchortune[ray])"
)


def until(ready: Callable[[], bool], *processes: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not ready():
        for process in processes:
            assert process.poll() is None, process.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finished(process: subprocess.Popen[bytes]) -> str:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err.decode()[-2000:]
    return out.decode()


@pytest.fixture
def tree(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> dict[str, Any]:
    return sweep_tree(tmp_path, llama_base, llama_adapter)


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, llama_base: Path, llama_adapter: Path
) -> dict[str, Any]:
    """By digest, the results of the same sweeps done in order by one process."""
    root = tmp_path_factory.mktemp("in-order")
    tree = long_trainings(sweep_tree(root, llama_base, llama_adapter))
    in_this_process(Sweep(made(tree)), None, lambda run, record: None)
    return {digest: result(record) for digest, record in records(root / "results").items()}


def long_trainings(tree: dict[str, Any]) -> dict[str, Any]:
    """Trainings long enough to be caught in the middle."""
    tree["defaults"]["training"]["max_steps"] = 40
    return tree


def results_in(folder: Path) -> dict[str, Any]:
    return {digest: result(record) for digest, record in records(folder / "results").items()}


def trains(folder: Path) -> Path | None:
    """The log of a training that is under way."""
    for log in (folder / "work" / "train").glob("*/log.jsonl"):
        if count_lines(log) >= 6 and not (log.parent / "record.json").is_file():
            return log
    return None


@pytest.mark.slow
def test_two_processes_share_a_sweep(
    tree: dict[str, Any], tmp_path: Path, expected: dict[str, Any]
) -> None:
    long_trainings(tree)
    two = [start(tmp_path, tree), start(tmp_path, tree)]
    told = [process.communicate(timeout=280)[1].decode() for process in two]
    assert [process.returncode for process in two] == [0, 0], told
    lines = [line for text in told for line in text.splitlines() if line.startswith("== ")]
    assert len(lines) == len(set(lines)) == 4  # each by one of them
    assert results_in(tmp_path) == expected


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(
    tree: dict[str, Any], tmp_path: Path, expected: dict[str, Any]
) -> None:
    long_trainings(tree)
    process = start(tmp_path, tree)
    until(lambda: trains(tmp_path) is not None, process)
    log = trains(tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert log is not None
    done = len(list((tmp_path / "results").glob("*.json")))
    assert done < 4
    sweep = Sweep(made(tree))
    assert sweep.counts()["missing"] == 4 - done  # nobody who lives is at it

    finished(start(tmp_path, tree))
    assert read_record(log.parent).metrics["resumed_from_step"] >= 2
    assert results_in(tmp_path) == expected


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    tree: dict[str, Any], tmp_path: Path, expected: dict[str, Any]
) -> None:
    long_trainings(tree)
    process = start(tmp_path, tree, "--jobs", "2")
    kill_a_worker(tmp_path, process)
    assert "4 complete" in finished(process)
    assert results_in(tmp_path) == expected


def kill_a_worker(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Kills whoever holds a training that is under way."""
    until(lambda: trains(folder) is not None, process)
    log = trains(folder)
    assert log is not None
    holder = holder_of(folder / "work" / "locks" / f"train-{log.parent.name}")
    assert holder is not None
    assert holder.pid != process.pid
    os.kill(holder.pid, signal.SIGKILL)


def workers(folder: Path) -> set[int]:
    """The processes that hold a part of the sweep now."""
    places = {lock.with_suffix("") for lock in (folder / "work" / "locks").glob("*")}
    return {holder.pid for place in places if (holder := holder_of(place)) is not None}


@needs_ray
@pytest.mark.slow
def test_a_ray_cluster_loses_a_worker(
    tree: dict[str, Any], tmp_path: Path, expected: dict[str, Any]
) -> None:
    long_trainings(tree)
    half = str((os.cpu_count() or 1) / 2)  # of the cluster's cores: two runs at a time
    process = start(tmp_path, tree, "--ray", "local", "--cpus-per-run", half)
    until(lambda: len(workers(tmp_path)) == 2, process)
    kill_a_worker(tmp_path, process)
    assert "4 complete" in finished(process)
    assert results_in(tmp_path) == expected
