"""A sweep of many tiny runs in one process: does it hold what it is done with?

``python -m tests.resilience.soak --runs 200`` prints, every ten runs, what the process holds:
resident memory, open files, threads, objects that the garbage collector tracks, live tensors.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from anchortune.jobs.pool import in_this_process
from anchortune.jobs.sweep import Run, Sweep
from anchortune.report.runs import RunRecord
from tests import tiny
from tests.jobs.sweeps import made, sweep_tree


@dataclass(frozen=True)
class Held:
    """What the process holds after so many runs."""

    runs: int
    resident_bytes: int
    files: int
    threads: int
    objects: int
    tensors: int

    def line(self) -> str:
        """For people."""
        return (
            f"{self.runs:>5} runs: {self.resident_bytes / 2**20:7.1f} MiB, {self.files} files, "
            f"{self.threads} threads, {self.objects} objects, {self.tensors} tensors"
        )


def held(runs: int) -> Held:
    """What this process holds now, garbage collected."""
    gc.collect()
    objects = gc.get_objects()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Held(
        runs=runs,
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        files=len(list(Path("/proc/self/fd").iterdir())),
        threads=threading.active_count(),
        objects=len(objects),
        tensors=sum(isinstance(one, torch.Tensor) for one in objects),
    )


def soak(root: Path, runs: int, told: Callable[[Held], None] | None = None) -> list[Held]:
    """What is held after each of so many runs of a sweep in ``root``: plain, mended, penalised."""
    base = tiny.tiny_llama(root / "base", seed=1, tokenizer=True)
    adapter = tiny.tiny_adapter(root / "lora", base, seed=3)
    tree = sweep_tree(root, base, adapter)
    sweep = Sweep(made(tree, seeds=list(range(-(-runs // len(tree["axes"]["defence"]))))))
    found: list[Held] = []

    def look(run: Run, record: RunRecord) -> None:
        if record.state != "complete":
            raise RuntimeError(f"{run.line()}: {record.error}")
        found.append(held(len(found) + 1))
        if told is not None:
            told(found[-1])

    in_this_process(sweep, None, look)
    return found


def main() -> None:
    """Prints figures as it goes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    runs = parser.parse_args().runs

    def told(now: Held) -> None:
        if now.runs % 10 == 0 or now.runs <= 5:
            print(now.line(), flush=True)  # noqa: T201 - its result

    with tempfile.TemporaryDirectory() as place:
        soak(Path(place), runs, told)


if __name__ == "__main__":
    main()
