"""A process that dies, or whose disk is full, at its n-th act of writing.

What kill -9 and a full disk do at some moment, made exact: every act that changes a file is counted
(a file opened for writing, each block that reaches the system, a sync, a rename, a deletion, a
folder made, tensors saved by safetensors or torch), and at a given one the process ends before it,
after half of it, or right after it.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

How = Literal["before", "torn", "after"]
HOWS: tuple[How, ...] = ("before", "torn", "after")


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and when.

    Attributes:
        within: the folder whose files are watched; others are written as ever.
        at: number of the act, from 1; None: nothing goes wrong, acts are counted.
        how: how far the act gets.
        full: from then on the disk is full, instead of the process being killed.
        after_s: killed after so many seconds instead.
        count: a file that gets the number of acts at the end.
    """

    within: Path
    at: int | None = None
    how: How = "before"
    full: bool = False
    after_s: float | None = None
    count: Path | None = None


def die() -> None:
    """What kill -9 does."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Acts:
    """Counts the acts of one process, and lets one of them go wrong."""

    def __init__(self, fault: Fault) -> None:
        self.fault, self.done = fault, 0
        self.place = os.path.realpath(fault.within)
        self._full = False

    def watches(self, path: object, dir_fd: int | None = None) -> bool:
        if isinstance(path, int):
            return False
        name = Path(os.fsdecode(os.fspath(path)))  # type: ignore[arg-type]
        if dir_fd is not None:
            name = Path(f"/proc/self/fd/{dir_fd}").readlink() / name
        return os.path.realpath(name).startswith(self.place)

    def do(
        self,
        act: Callable[[], Any],
        half: Callable[[], Any] | None = None,
        *,
        needs: bool = False,
        name: str | None = None,
    ) -> Any:
        """Does one act, or what is left of it.

        Args:
            act: does it.
            half: does half of it.
            needs: it takes room on the disk.
            name: which the system names where there is no room.
        """
        self.done += 1
        mine = self.done == self.fault.at
        if self.fault.full:
            if mine and needs and self.fault.how == "torn" and half is not None:
                half()
            self._full |= self.fault.at is not None and self.done >= self.fault.at
            if self._full and needs:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
            return act()
        if mine and self.fault.how == "before":
            die()
        try:
            return half() if mine and self.fault.how == "torn" and half is not None else act()
        finally:  # one that fails has been tried, too
            if mine:
                die()


class _Raw(io.FileIO):
    """A file whose blocks are acts."""

    acts: _Acts

    def write(self, data: Any) -> int:
        block = bytes(data)
        whole = super().write
        return int(
            self.acts.do(lambda: whole(block), lambda: whole(block[: len(block) // 2]), needs=True)
        )


def _opening(acts: _Acts) -> Callable[..., Any]:
    real = io.open

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
        errors: str | None = None, newline: str | None = None, closefd: bool = True,
        opener: Any = None,
    ) -> Any:  # fmt: skip
        if not set(mode) & set("wax+") or not acts.watches(file):
            return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
        plain = mode.replace("b", "").replace("t", "")
        raw: _Raw = acts.do(lambda: _Raw(file, plain, closefd, opener))
        raw.acts = acts
        if buffering == 0:
            return raw
        buffer = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffer
        return io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)

    return opened


def _counted(acts: _Acts, name: str, *, needs: bool = False) -> Callable[..., Any]:
    real = getattr(os, name)

    def counted(path: Any, *rest: Any, **named: Any) -> Any:
        there = name == "mkdir"  # what does nothing is no act: a folder that is there is made
        if not acts.watches(path, named.get("dir_fd")) or there == _exists(path, **named):
            return real(path, *rest, **named)
        return acts.do(
            lambda: real(path, *rest, **named), needs=needs, name=os.fsdecode(os.fspath(path))
        )

    return counted


def _exists(path: Any, dir_fd: int | None = None, **_: Any) -> bool:
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _saving(acts: _Acts, real: Callable[..., Any], full: Callable[[], Exception]) -> Any:
    """A library's function that writes ``given`` to a path, with its own error of a full disk."""

    def save(given: Any, path: Any, *rest: Any, **named: Any) -> Any:
        if not isinstance(path, str | Path) or not acts.watches(path):
            return real(given, path, *rest, **named)

        def whole() -> Any:
            return real(given, path, *rest, **named)

        def half() -> None:
            whole()
            _cut(Path(path))

        try:
            return acts.do(whole, half, needs=True)
        except OSError:
            raise full() from None

    return save


@contextlib.contextmanager
def faulty(fault: Fault) -> Iterator[_Acts]:
    """Lets ``fault`` happen in this process.

    Yields what counts the acts.
    """
    acts = _Acts(fault)
    saved: list[tuple[Any, str, Any]] = []

    def patch(place: Any, name: str, value: Any) -> None:
        saved.append((place, name, getattr(place, name)))
        setattr(place, name, value)
        paths = getattr(pathlib, "_NormalAccessor", None)  # Python 3.10 keeps its own names
        if place in (io, os) and hasattr(paths, name):
            saved.append((paths, name, getattr(paths, name)))
            setattr(paths, name, staticmethod(value))

    opened = _opening(acts)
    patch(io, "open", opened)
    patch(builtins, "open", opened)
    for name in ("replace", "rename", "unlink", "remove", "rmdir"):
        patch(os, name, _counted(acts, name))
    patch(os, "mkdir", _counted(acts, "mkdir", needs=True))
    real_sync = os.fsync
    patch(os, "fsync", lambda descriptor: acts.do(lambda: real_sync(descriptor)))
    import safetensors.torch
    import torch
    from safetensors import SafetensorError

    for place, name, error in (
        (
            safetensors.torch,
            "serialize_file",
            lambda: SafetensorError(
                "Error while serializing: I/O error: No space left on device (os error 28)"
            ),
        ),
        (
            torch,
            "save",
            lambda: RuntimeError(
                "[enforce fail at inline_container.cc:861] . PytorchStreamWriter failed writing "
                "file data/0: file write failed"
            ),
        ),
    ):
        patch(place, name, _saving(acts, getattr(place, name), error))
    if fault.after_s is not None:
        clock = threading.Timer(fault.after_s, die)
        clock.daemon = True
        clock.start()
    try:
        yield acts
    finally:
        for place, name, value in reversed(saved):
            setattr(place, name, value)
        if fault.count is not None:
            fault.count.write_text(str(acts.done))


def command(fault: Fault, words: list[str]) -> None:
    """``anchortune WORDS`` in this process, under a fault; for `tests.warm.Warm`."""
    from tests.warm import call_command

    with faulty(fault):
        call_command(words)
