"""Processes of their own that start warm: forks of a server that has imported what is slow.

A fresh interpreter spends five seconds and more of processor time on importing torch, Transformers
and PEFT, which is nearly all of what most tests of a process take. The server (multiprocessing's
``forkserver``, one for each process of pytest) imports them once and does nothing else, so a child
is what a fresh interpreter is after these imports: its own process number, signals, working folder,
environment, standard streams and exit code. What is about the imports themselves (what is loaded,
what they print) needs a fresh interpreter, not this.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

#: For tests that shard with FSDP2: torch 2.6 does so on a GPU alone.
shards_on_a_cpu = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 7),
    reason="torch 2.6 shards on a GPU alone",
)
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.warm_imports"])


@cache
def _streams() -> Path:
    """Where what the processes say lies until this one ends."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


@atexit.register  # after that of multiprocessing.util, so before it
def _end() -> None:
    """What a failed test left running is not waited for."""
    for process in multiprocessing.active_children():
        process.kill()


class Warm:
    """A process that calls ``target(*arguments)``; used as ``subprocess.Popen`` is.

    ``target`` is a function at the top of a module and the arguments can be pickled. The process
    sees this one's environment and ``environment``, computes on as many threads as this one, and
    writes its standard streams to files.
    """

    def __init__(
        self,
        target: Callable[..., object],
        *arguments: object,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        place = Path(tempfile.mkdtemp(dir=_streams()))
        self._streams = place / "stdout", place / "stderr"
        whole = {**os.environ, **(environment or {})}
        given = (target, arguments, str(cwd or Path.cwd()), whole, *map(str, self._streams))
        threads = torch.get_num_threads()
        self._process = _context.Process(target=_child, args=(*given, threads))
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, minus a signal's number where one ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self.returncode

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended.

        Raises:
            TimeoutError: It still runs after ``timeout`` seconds.
        """
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"the process still runs after {timeout} seconds")
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[bytes, bytes]:
        """All it wrote to its standard output and error, once it has ended."""
        self.wait(timeout)
        out, err = (path.read_bytes() if path.exists() else b"" for path in self._streams)
        return out, err


def together(
    target: Callable[..., object], *arguments: object, processes: int, timeout: float = 200
) -> None:
    """``target(*arguments)`` in each of ``processes`` that make up a gloo group, to their end.

    They find each other over a file, for a port that is free now may be taken by then.
    """
    meeting = Path(tempfile.mkdtemp(dir=_streams())) / "meeting"
    group = [
        Warm(_join, str(meeting), rank, processes, target, arguments) for rank in range(processes)
    ]
    try:
        for process in group:
            _, told = process.communicate(timeout)
            assert process.returncode == 0, told.decode()[-2000:]
    finally:
        for process in group:
            process.kill()


def command(*words: str | Path, **options: Any) -> Warm:
    """``anchortune WORDS`` under way; for the options see `Warm`."""
    return Warm(call_command, [str(word) for word in words], **options)


def run_command(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """``anchortune WORDS`` run to its end."""
    process = command(*words, **options)
    out, err = process.communicate()
    return subprocess.CompletedProcess(
        ["anchortune", *map(str, words)], process.wait(), out.decode(), err.decode()
    )


def _join(
    meeting: str,
    rank: int,
    processes: int,
    target: Callable[..., object],
    arguments: tuple[object, ...],
) -> None:
    import torch.distributed

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_ADDR": "localhost"}
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes
    )
    target(*arguments)
    torch.distributed.destroy_process_group()


def call_command(words: list[str]) -> None:
    """``anchortune WORDS`` in this process, to its end."""
    from anchortune.cli.app import main

    sys.argv = ["anchortune", *words]
    main()


def _child(
    target: Callable[..., object],
    arguments: tuple[object, ...],
    cwd: str,
    environment: dict[str, str],
    out: str,
    err: str,
    threads: int,
) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    torch.set_num_threads(threads)
    target(*arguments)
