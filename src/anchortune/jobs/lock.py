"""One job at a time in a folder: a lock file that says who holds it, and whether they still live.

On the holder's own machine the process is looked up. From another machine it counts as gone when
it has not touched the file for two minutes, which it does every few seconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from anchortune.errors import JobError
from anchortune.files import write_json
from anchortune.record import now

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = "lock.json"
_BEAT_S = 5.0
_DEAD_S = 120.0


@dataclass(frozen=True)
class Holder:
    """Who runs a job.

    Attributes:
        pid: its process.
        host: its machine.
        started: when, UTC, ISO 8601.
        process: the process's start as the kernel counts it, for numbers are given out again;
            None where it cannot be read.
    """

    pid: int
    host: str
    started: str
    process: str | None = None

    @classmethod
    def here(cls) -> Holder:
        """This process."""
        return cls(os.getpid(), socket.gethostname(), now(), _process_start(os.getpid()))

    def __str__(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}, since {self.started}"


def _process_start(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None where the system has no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()[19]


def holder_of(folder: Path) -> Holder | None:
    """Who holds ``folder``, alive or not; None where nobody does.

    Raises:
        JobError: the lock file is not one of ours.
    """
    path = folder / LOCK_FILE
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise JobError(f"{path} is no lock file ({error}); delete it.") from None


def is_alive(holder: Holder, folder: Path) -> bool:
    """Whether the holder of ``folder`` still runs."""
    if holder.host != socket.gethostname():
        try:
            return time.time() - (folder / LOCK_FILE).stat().st_mtime < _DEAD_S
        except FileNotFoundError:
            return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process, but one that runs
        pass
    return holder.process is None or holder.process == _process_start(holder.pid)


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """So that two that find the same stale lock do not both take it over."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: a tiny race is left
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Holder | None]:
    """Holds ``folder``, which exists; yields the dead holder that was taken over from, if any.

    Raises:
        JobError: somebody else holds it and lives.
    """
    me = Holder.here()
    with _one_at_a_time(folder):
        held = holder_of(folder)
        if held is not None and is_alive(held, folder):
            raise JobError(f"{folder} is in use ({held}); wait for it, or name another output.")
        write_json(folder / LOCK_FILE, asdict(me))
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / LOCK_FILE, stop), daemon=True)
    beat.start()
    try:
        yield held
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(JobError):
            if holder_of(folder) == me:
                (folder / LOCK_FILE).unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)
