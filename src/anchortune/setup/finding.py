"""What a look at the machine finds: one line each, with the mend where something is wrong."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from anchortune.errors import sentence
from anchortune.files import flocked
from anchortune.untrusted import without_secrets

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what.
        state: ``ok``; ``warn`` where something will be slow, or cannot be used; ``bad`` where
            nothing can be done until it is mended.
        text: what was found.
        mend: what to do about it; empty where all is well.
    """

    name: str
    state: State
    text: str
    mend: str = ""

    def line(self, wide: int) -> str:
        """For people: one line, its name padded to ``wide`` characters."""
        mend = f"; {self.mend}" if self.mend else ""
        return f"{self.state:<4}  {self.name:<{wide}}  {self.text}{mend}"

    def summary(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


Check = Callable[[], Sequence[Finding]]


def looked_at(name: str, check: Check) -> list[Finding]:
    """What ``check`` finds; where it fails itself, that is what was found.

    Args:
        name: of what is looked at, for the failure.
        check: the look.
    """
    try:
        found = list(check())
    except Exception as error:  # a doctor that dies of the illness helps nobody
        told = sentence(error)
        found = [
            Finding(name, "warn", f"could not be looked at ({told})", "see what the error names")
        ]
    return [
        Finding(one.name, one.state, without_secrets(one.text), without_secrets(one.mend))
        for one in found
    ]


def standing(place: Path) -> Path:
    """``place``, or the nearest folder above it that exists."""
    here = place.expanduser().absolute()
    while not here.exists() and here != here.parent:
        here = here.parent
    return here


def why_not_written(place: Path) -> str | None:
    """Why no file can be made in ``place`` or in what it would be made in; None where one can.

    A file is made there and taken away: the rights that a folder shows say nothing of a disk that
    is read-only, nor to the user root.
    """
    here = standing(place)
    if not here.is_dir():
        return f"{here} is no folder"
    try:
        with tempfile.TemporaryFile(dir=here) as stream:
            stream.write(b"0")
            stream.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


def has_locks(place: Path) -> bool:
    """Whether the disk of ``place``, which can be written to, knows the kernel's locks."""
    with tempfile.NamedTemporaryFile(dir=standing(place)) as stream:
        return flocked(stream.fileno(), wait=False)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries log, warn of and draw when they are imported: the findings say it."""
    import warnings

    before, shown = logging.root.manager.disable, os.environ.get("TRL_EXPERIMENTAL_SILENCE")
    logging.disable(logging.CRITICAL)
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
        if shown is None:
            del os.environ["TRL_EXPERIMENTAL_SILENCE"]
        else:
            os.environ["TRL_EXPERIMENTAL_SILENCE"] = shown
