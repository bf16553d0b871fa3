"""One process at a time in a folder or at a file: a lock file that says who, and if they live.

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
from anchortune.files import flocked, write_json
from anchortune.record import now

LOCK_FILE = "lock.json"
_BEAT_S = 5.0
_DEAD_S = 120.0


@dataclass(frozen=True)
class Holder:
    """Who works in a folder.

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

    def is_me(self) -> bool:
        """Whether it is this process."""
        here = Holder.here()
        return (self.pid, self.host, self.process) == (here.pid, here.host, here.process)

    def __str__(self) -> str:
        """For people."""
        return f"process {self.pid} on {self.host}, since {self.started}"


def _process_start(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None where the system has no /proc.

    None too of one that has ended and that its parent has not asked about: in a container, it may
    stay so for ever.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]


def lock_file(place: Path) -> Path:
    """Where the lock of a folder, or of a file to be written, lies: in it, or beside it."""
    return place / LOCK_FILE if place.is_dir() else place.with_name(f".{place.name}.{LOCK_FILE}")


def holder_of(place: Path) -> Holder | None:
    """Who holds a folder or a file, alive or not; None where nobody does.

    Raises:
        JobError: the lock file is not one of ours.
    """
    return _read(lock_file(place))


def _read(path: Path) -> Holder | None:
    try:
        holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
        if not (isinstance(holder.pid, int) and holder.pid > 0):
            raise ValueError(f"process {holder.pid}")
        return holder
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise JobError(f"{path} is no lock file ({error}); delete it.") from None


def is_alive(holder: Holder, place: Path) -> bool:
    """Whether the holder of ``place`` still runs."""
    if holder.host != socket.gethostname():
        try:
            return time.time() - lock_file(place).stat().st_mtime < _DEAD_S
        except FileNotFoundError:
            return False
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):  # or a number that no process has
        return False
    except PermissionError:  # somebody else's process, but one that runs
        pass
    return holder.process is None or holder.process == _process_start(holder.pid)


def refuse_if_held(place: Path) -> Holder | None:
    """The holder of ``place`` that is gone, if any.

    Raises:
        JobError: another process holds it and lives.
    """
    held = holder_of(place)
    if held is not None and is_alive(held, place) and not held.is_me():
        raise JobError(f"{place} is in use ({held}); wait for it, or name another output.")
    return held


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """So that two that find the same stale lock do not both take it over.

    Where a system or a disk has no locks, or the folder may not be read, a tiny race is left.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        flocked(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(place: Path) -> Iterator[Holder | None]:
    """Holds ``place``; yields the dead holder that was taken over from, if any.

    Args:
        place: a folder that exists, or else a file that is to be written.

    Raises:
        JobError: somebody else holds it and lives.
    """
    me, path = Holder.here(), lock_file(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(path.parent):
        held = holder_of(place)
        if held is not None and is_alive(held, place):
            raise JobError(f"{place} is in use ({held}); wait for it, or name another output.")
        write_json(path, asdict(me))
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(path, stop), daemon=True)
    beat.start()
    try:
        yield held
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(JobError):
            if _read(path) == me:
                path.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_BEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)
