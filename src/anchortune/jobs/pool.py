"""Who does the runs of a sweep: this process, several of them, or tasks of a Ray cluster.

All work by the same locks and records, so that they may be mixed, and any of them be killed.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchortune.errors import JobError
from anchortune.jobs.sweep import Run, Sweep, work_through
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.report.runs import RunRecord

logger = logging.getLogger(__name__)
Told = Callable[[Run, RunRecord], None]
_LOOK_S = 0.5
#: Workers that die are replaced this often, each.
_REPLACED = 2
#: What a task on another machine is told of ours.
_ENVIRONMENT = ("ANCHORTUNE_DATA", "ANCHORTUNE_COMMIT", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


@dataclass(frozen=True)
class Order:
    """What workers are told; plain values, for they may be on other machines.

    Attributes:
        config: of the sweep.
        only: the choice of its runs.
        retry_failed_before: see ``work_through``.
        folder: where relative paths start.
        environment: variables.
    """

    config: dict[str, Any]
    only: dict[str, list[str]]
    retry_failed_before: float | None
    folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(
        default_factory=lambda: {k: os.environ[k] for k in _ENVIRONMENT if k in os.environ}
    )

    @classmethod
    def of(cls, sweep: Sweep, only: dict[str, list[str]], before: float | None) -> Order:
        """To do what is left of ``sweep``."""
        return cls(sweep.config.model_dump(mode="json"), only, before)

    def sweep(self) -> Sweep:
        """The sweep, in the worker."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)
        os.environ.update(self.environment)
        return Sweep(SweepConfig.model_validate(self.config), self.only)


def in_this_process(sweep: Sweep, retry_failed_before: float | None, told: Told) -> None:
    """Does what is left, one run after the other."""
    from anchortune.jobs.sweep_run import execute

    work_through(sweep, execute, retry_failed_before=retry_failed_before, told=told)


def in_processes(sweep: Sweep, order: Order, jobs: int, told: Told) -> None:
    """Does what is left in ``jobs`` processes of this machine.

    A process that dies is replaced, and its run taken up where it was. What they log lies in
    ``work/logs``.

    Raises:
        JobError: they keep dying.
    """
    context = multiprocessing.get_context("spawn")
    logs = sweep.store.path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    spare = _REPLACED * jobs
    with _finished(sweep, told) as look, _threads(jobs):

        def start(number: int) -> Any:
            log = str(logs.resolve() / f"worker-{number}.log")
            process = context.Process(target=_work, args=(order, log), daemon=False)
            process.start()
            return process

        workers = {number: start(number) for number in range(jobs)}
        try:
            while workers:
                time.sleep(_LOOK_S)
                look()
                for number, worker in list(workers.items()):
                    if worker.is_alive():
                        continue
                    del workers[number]
                    if worker.exitcode == 0:
                        continue
                    if not spare:
                        raise JobError(
                            f"workers keep dying (the last with {worker.exitcode}): see "
                            f"{logs}/worker-{number}.log; with less memory at hand, start fewer."
                        )
                    spare -= 1
                    logger.warning("worker %d died (%s); another", number, worker.exitcode)
                    workers[number] = start(number)
        finally:
            for worker in workers.values():
                worker.terminate()
            for worker in workers.values():
                worker.join()


def _work(order: Order, log: str) -> None:
    """A worker process: its output goes to ``log``."""
    stream = Path(log).open("a", encoding="utf-8", buffering=1)  # noqa: SIM115 - till the end
    os.dup2(stream.fileno(), sys.stderr.fileno())
    os.dup2(stream.fileno(), sys.stdout.fileno())
    logging.getLogger("anchortune").setLevel(logging.INFO)
    logging.getLogger("anchortune").addHandler(logging.StreamHandler(stream))
    in_this_process(order.sweep(), order.retry_failed_before, lambda run, record: None)


@contextlib.contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """Shares the cores out among the processes started in it."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextlib.contextmanager
def _finished(sweep: Sweep, told: Told) -> Iterator[Callable[[], None]]:
    """Yields what tells of every record that is new since the last look."""
    seen = {run.digest: _written(sweep, run) for run in sweep.runs}

    def look() -> None:
        for run in sweep.runs:
            written = _written(sweep, run)
            if written != seen[run.digest]:
                seen[run.digest] = written
                record = sweep.record(run)
                if record is not None:
                    told(run, record)

    yield look
    look()


def _written(sweep: Sweep, run: Run) -> int | None:
    try:
        return sweep.path(run).stat().st_mtime_ns
    except FileNotFoundError:
        return None


#: In a worker of Ray, the sweep of the last order: its files need not be hashed for each task.
_AT_HAND: dict[str, Sweep] = {}


def _one(order: Order, digest: str) -> str:
    """A task of Ray: one run; its state in the end."""
    from anchortune.jobs.sweep_run import execute

    logging.getLogger("anchortune").setLevel(logging.INFO)
    key = repr(order)
    if key not in _AT_HAND:
        _AT_HAND.clear()
        _AT_HAND[key] = order.sweep()
    sweep = _AT_HAND[key]
    run = next(run for run in sweep.runs if run.digest == digest)
    work_through(sweep, execute, retry_failed_before=order.retry_failed_before, runs=[run])
    return sweep.state(run)


def on_ray(
    sweep: Sweep, order: Order, address: str, *, gpus: float | None, cpus: float, told: Told
) -> None:
    """Does what is left as Ray tasks, one a run; where a worker dies, its task is tried again.

    Args:
        sweep: whose runs.
        order: for the workers; all must see the same results and work folders.
        address: of a cluster, ``auto`` for the one that is running here, or ``local`` to start one.
        gpus: of each run; a fraction lets several share one. None: one, where the cluster has any.
        cpus: of each run.
        told: of every record.

    Raises:
        JobError: Ray is not installed, cannot be reached, or a run's workers keep dying.
    """
    try:
        import ray
    except ImportError:
        raise JobError(
            "--ray needs Ray, which is not installed: pip install 'anchortune[ray]'."
        ) from None
    try:
        ray.init(
            address=None if address == "local" else address,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise JobError(
            f"--ray {address}: the cluster cannot be reached ({reason}); see `ray status` there."
        ) from None
    try:
        if gpus is None:  # Ray hides all GPUs from a task that asks for none
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        remote = ray.remote(num_gpus=gpus, num_cpus=cpus, max_retries=_REPLACED)(_one)
        held = ray.put(order)
        tasks = {remote.remote(held, run.digest): run for run in sweep.runs}
        lost: list[str] = []
        with _finished(sweep, told) as look:
            left = list(tasks)
            while left:
                done, left = ray.wait(left, timeout=_LOOK_S)
                look()
                for task in done:
                    try:
                        ray.get(task)
                    except ray.exceptions.RayError as error:
                        logger.warning("%s: %s", tasks[task].line(), type(error).__name__)
                        lost.append(tasks[task].line())
        if lost:
            raise JobError(
                f"{len(lost)} runs were lost with their workers, the first: {lost[0]}"
                "; run the same command again."
            )
    finally:
        ray.shutdown()
