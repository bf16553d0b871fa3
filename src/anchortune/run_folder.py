"""A run's folder: claimed by one identity, resumable while unfinished, complete once recorded.

<output>/  identity.json  …  record.json
"""

from __future__ import annotations

import hashlib
import json
from enum import Enum
from pathlib import Path
from typing import Any

from anchortune.errors import AnchortuneError
from anchortune.files import write_json
from anchortune.record import RECORD_FILE

IDENTITY_FILE = "identity.json"


class State(Enum):
    """What a run's folder holds when the run starts."""

    NEW = "new"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


class OtherRun(AnchortuneError):
    """The folder holds a run of another identity."""


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
            AnchortuneError: it holds files that are no run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise self.error(f"output {self.path} is a file; name a folder.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
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

    def claim(self) -> None:
        """Marks the folder as this run's."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / IDENTITY_FILE, self.identity)
