"""A run's folder: claimed by one identity, resumable while unfinished, complete once recorded.

<output>/  identity.json  lock.json  …  record.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from anchortune.errors import AnchortuneError
from anchortune.files import clear_killed, discard, is_temporary, why_not_writable, write_json
from anchortune.lock import LOCK_FILE, locked, refuse_if_held
from anchortune.record import RECORD_FILE

IDENTITY_FILE = "identity.json"


class State(Enum):
    """What a run's folder holds when the run starts."""

    NEW = "new"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


class OtherRun(AnchortuneError):
    """The folder holds a run of another identity."""


def is_empty(folder: Path) -> bool:
    """Whether nobody has put anything into a folder.

    A lock, and what a killed writer left half-written, are nothing.
    """
    return all(path.name == LOCK_FILE or is_temporary(path.name) for path in folder.iterdir())


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    found = {}
    for key, item in items:
        found.update(_flat(item, f"{prefix}.{key}" if prefix else str(key)))
    return found if items else {prefix: value}


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when claimed.
        identity: plain values that decide the run's result: science keys and input hashes.

    Attributes:
        error: what is raised where the folder holds files that are no run's.
        other_run: what is raised where it holds another run.
    """

    error: type[AnchortuneError] = AnchortuneError
    other_run: type[OtherRun] = OtherRun

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, in hexadecimal."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def state(self) -> State:
        """What is there.

        Raises:
            OtherRun: the folder holds another run.
            AnchortuneError: it holds files that are no run's, another process is at work in it, or
                there is something to do and it may not be written to.
        """
        found = self._state()
        if found is not State.COMPLETE:
            if reason := why_not_writable(self.path / IDENTITY_FILE):
                raise self.error(f"output {self.path} cannot be written: {reason}.")
            refuse_if_held(self.path)
        return found

    def _state(self) -> State:
        if self.path.exists() and not self.path.is_dir():
            raise self.error(f"output {self.path} is a file; name a folder.")
        if not self.path.is_dir() or is_empty(self.path):
            return State.NEW
        try:
            held = json.loads((self.path / IDENTITY_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise self.error(
                f"output {self.path} holds files that are not a run's; name another folder."
            ) from None
        if held != self.identity:
            before, now = _flat(held), _flat(self.identity)
            key = next(k for k in {**now, **before} if before.get(k) != now.get(k))
            raise self.other_run(
                f"output {self.path} holds another run ({key} was {before.get(key)!r}, is "
                f"{now.get(key)!r}); name another folder, or delete that one."
            )
        return State.COMPLETE if (self.path / RECORD_FILE).is_file() else State.UNFINISHED

    @contextlib.contextmanager
    def held(self) -> Iterator[State]:
        """Keeps other processes out of the folder, and claims it unless its run is complete.

        Yields what it holds by now: since the run was planned, another process may have done it.

        Raises:
            AnchortuneError: as ``state``.
        """
        self.state()  # a folder that is somebody else's gets no lock put into it
        self.path.mkdir(parents=True, exist_ok=True)
        with locked(self.path):
            clear_killed(self.path)
            found = self._state()
            if found is not State.COMPLETE:
                self.claim()
            yield found

    def tidy(self, *unneeded: Path) -> None:
        """Takes away what a process left that was killed when its run was complete.

        Args:
            unneeded: folders that nobody needs any more, besides its lock.
        """
        if not (self.path / LOCK_FILE).is_file():
            return
        # A complete run may lie where nothing may be written any more, and is read all the same.
        with contextlib.suppress(OSError), locked(self.path):
            for folder in unneeded:
                clear_killed(folder)
                if folder.is_dir():
                    discard(folder)

    def claim(self) -> None:
        """Marks the folder as this run's."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / IDENTITY_FILE, self.identity)
