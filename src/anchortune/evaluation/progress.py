"""How far a long job is: a bar with the time left on a terminal, lines in the log elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator

from anchortune.untrusted import inert

logger = logging.getLogger(__name__)

#: Seconds between two lines where there is no terminal.
_EVERY_S = 15.0


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function to be told, again and again, how many of ``total`` are done.

    It writes to stderr: a bar of rich's where that is a terminal, else a line of the log now and
    then.

    Args:
        label: what is going on, ``advbench of sft``.
        total: how many there are.
    """
    if not sys.stderr.isatty():
        yield _lines(label, total)
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(inert(label)), total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(label: str, total: int) -> Callable[[int], None]:
    started = told = time.monotonic()

    def tell(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if done >= total:
            logger.info("%s: %d done in %s", label, done, duration(now - started))
        elif done and now - told >= _EVERY_S:
            told = now
            left = (now - started) / done * (total - done)
            logger.info("%s: %d of %d, about %s left", label, done, total, duration(left))

    return tell


def duration(seconds: float) -> str:
    """``45 s``, ``12 min`` or ``1.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
