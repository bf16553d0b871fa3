"""A run's folder: claimed by one config, resumable while unfinished, complete once recorded.

<output>/  identity.json  config.yaml  log.jsonl  checkpoints/  adapter/ or model/  record.json
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from enum import Enum
from pathlib import Path
from typing import Any

from anchortune.errors import TrainingError
from anchortune.files import write_json
from anchortune.record import RECORD_FILE

_IDENTITY = "identity.json"


class OtherRun(TrainingError):
    """The folder holds a run of another identity."""


class State(Enum):
    """What a run's folder holds when the run starts."""

    NEW = "new"
    UNFINISHED = "unfinished"
    COMPLETE = "complete"


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


def _is_safetensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when claimed.
        identity: plain values that decide the run's result: science keys and input hashes.
    """

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path).expanduser()
        self.identity: dict[str, Any] = json.loads(json.dumps(identity))
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"

    @property
    def digest(self) -> str:
        """SHA-256 of the identity, in hexadecimal."""
        text = json.dumps(self.identity, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def state(self) -> State:
        """What is there.

        Raises:
            OtherRun: the folder holds another run.
            TrainingError: it holds files that are no run's.
        """
        if self.path.exists() and not self.path.is_dir():
            raise TrainingError(f"output {self.path} is a file; name a folder.")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return State.NEW
        try:
            held = json.loads((self.path / _IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise TrainingError(
                f"output {self.path} holds files that are not a run's; name another folder."
            ) from None
        if held != self.identity:
            before, now = _flat(held), _flat(self.identity)
            key = next(k for k in {**now, **before} if before.get(k) != now.get(k))
            raise OtherRun(
                f"output {self.path} holds another run ({key} was {before.get(key)!r}, is "
                f"{now.get(key)!r}); name another folder, or delete that one."
            )
        return State.COMPLETE if (self.path / RECORD_FILE).is_file() else State.UNFINISHED

    def claim(self) -> None:
        """Marks the folder as this run's."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / _IDENTITY, self.identity)

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; one whose saving was cut short is passed over.

        The trainer writes ``trainer_state.json`` last.
        """
        found = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            number = folder.name.removeprefix("checkpoint-")
            try:
                state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if number.isdigit() and state.get("global_step") == int(number):
                found.append((int(number), folder))
        return max(found)[1] if found else None

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Raises where a file of ``checkpoint`` is cut short; only headers are read.

        Raises:
            TrainingError: naming the file, and the folder to delete.
        """
        for file in sorted(checkpoint.iterdir()):
            if file.suffix in {".pt", ".pth"} and not zipfile.is_zipfile(file):
                whole = False  # torch.save writes a zip, whose directory comes last
            elif file.suffix == ".safetensors":
                whole = _is_safetensors(file)
            else:
                continue
            if not whole:
                raise TrainingError(
                    f"{file} is cut short; delete {checkpoint} to go on from the checkpoint "
                    "before it, or from the start."
                )

    def trim_log(self, step: int) -> None:
        """Drops the log's lines past ``step``, which are about to be trained again."""
        if not self.log.is_file():
            return
        kept = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):  # the last line may have been cut short
                continue
        self.log.write_text("".join(kept), encoding="utf-8")
