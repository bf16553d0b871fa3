"""How far a long job is: a bar with the time left on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Collection, Iterator
from types import TracebackType
from typing import Any, TypeVar

from anchortune.untrusted import cell

logger = logging.getLogger(__name__)

#: Seconds between two lines where there is no terminal.
_EVERY_S = 15.0
#: What is told of now: a loop within it is part of that, and its bar would overwrite the first.
_shown: list[Progress] = []
T = TypeVar("T")


class Progress:
    """Tells people how far a loop is, on stderr, whenever it is called with how many are done.

    A bar where stderr is a terminal; elsewhere (a pipe, a file, ``TERM=dumb``) lines of the log at
    INFO, now and then, and one at the end. ``NO_COLOR`` is honoured.

    Args:
        label: what is going on, ``advbench of sft``.
        total: how many there are; None: not known yet, see ``__call__``.
        done: how many were done before, which says nothing about the time that the rest takes.
        brief: mostly it takes a moment, so the log is told of its end only where it took longer.
    """

    def __init__(
        self, label: str, total: int | None = None, *, done: int = 0, brief: bool = False
    ) -> None:
        self._label = label
        self._brief = brief
        self._total = total
        self._before = self._done = done
        self._note = ""
        self._bar: Any = None
        self._task: Any = None
        self._silent = False

    def __enter__(self) -> Progress:
        """Opens the bar."""
        self._started = self._told = time.monotonic()
        self._silent = bool(_shown)
        if self._silent:
            return self
        if on_terminal():
            self._bar = _bar()
            self._task = self._bar.add_task(
                cell(self._label), total=self._total, completed=self._done, note=""
            )
            self._bar.start()
        _shown.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the terminal back; the log is told that all are done, if they are."""
        if self._silent:
            return
        if self in _shown:
            _shown.remove(self)
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        elif self._total and self._before < self._total <= self._done:
            took_s = time.monotonic() - self._started
            if not self._brief or took_s >= _EVERY_S:
                took = duration(took_s)
                logger.info("%s: %d done in %s%s", self._label, self._done, took, self._note)

    def __call__(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        """Says how far it is.

        Args:
            done: how many, of all.
            total: of how many, where that is known only now.
            note: what else there is to tell, as the loss; None: as before.
        """
        self._done = done
        self._total = self._total if total is None else total
        if note is not None:
            self._note = f"; {note}" if note else ""
        if self._bar is not None:
            self._bar.update(
                self._task, completed=done, total=self._total, note=cell(self._note[2:])
            )
            return
        now = time.monotonic()
        fresh = done - self._before
        if self._silent or self._total is None or fresh <= 0 or done >= self._total:
            return
        if now - self._told >= _EVERY_S:
            self._told = now
            left = duration((now - self._started) / fresh * (self._total - done))
            logger.info(
                "%s: %d of %d, about %s left%s", self._label, done, self._total, left, self._note
            )


def counted(label: str, items: Collection[T]) -> Iterator[T]:
    """``items``, one after the other; a loop over them that takes long tells how far it is."""
    with Progress(label, len(items), brief=True) as tell:
        for done, item in enumerate(items, 1):
            yield item
            tell(done)


def on_terminal() -> bool:
    """Whether somebody reads stderr on a terminal that can redraw a line."""
    able = os.environ.get("TERM", "") not in {"dumb", "unknown"}
    return able and sys.stderr is not None and sys.stderr.isatty()


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
        transient=True,
        # Rich would send it to stderr; a result that goes into a file or a pipe stays there.
        redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
    )


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
