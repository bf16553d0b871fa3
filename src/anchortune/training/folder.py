"""A training run's folder: its checkpoints and its log.

<output>/  identity.json  config.yaml  log.jsonl  checkpoints/  adapter/ or model/  record.json
"""

from __future__ import annotations

import contextlib
import json
import logging
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchortune import run_folder
from anchortune.errors import TrainingError
from anchortune.files import is_temporary, write_text
from anchortune.run_folder import State

__all__ = ["OtherRun", "RunFolder", "State"]
logger = logging.getLogger(__name__)

#: Without which a training would go on as another one: the trainer says nothing.
_STATE = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_WEIGHTS = ("adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json")


class OtherRun(run_folder.OtherRun, TrainingError):
    """The folder holds a training of another identity."""


def has_weights(checkpoint: Path) -> bool:
    """Whether a checkpoint has its weights: the trainer deletes old ones file by file."""
    return any((checkpoint / name).is_file() for name in _WEIGHTS)


def _lacks(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is not there; None where it is whole."""
    if not has_weights(checkpoint):
        return "weights"
    return next((name for name in _STATE if not (checkpoint / name).is_file()), None)


def _is_safetensors(file: Path) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


@contextlib.contextmanager
def reading(checkpoint: Path | None) -> Iterator[None]:
    """Tells in a sentence where the trainer refuses a file of ``checkpoint``.

    It reads its own state with ``torch.load(weights_only=True)``, which runs nothing.

    Raises:
        TrainingError: a file holds more than tensors and plain values.
    """
    try:
        yield
    except Exception as error:
        if checkpoint is None or type(error).__name__ != "UnpicklingError":
            raise
        raise TrainingError(
            f"a file of {checkpoint} holds more than tensors and plain values, so it is not the "
            f"trainer's; delete {checkpoint} to go on from the checkpoint before it, or from the "
            "start."
        ) from None


class RunFolder(run_folder.RunFolder):
    """The folder of one training.

    Args:
        path: the folder; made when claimed.
        identity: plain values that decide the run's result: science keys and input hashes.
    """

    error = TrainingError
    other_run = OtherRun

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        super().__init__(path, identity)
        self.checkpoints = self.path / "checkpoints"
        self.log = self.path / "log.jsonl"

    def last_checkpoint(self) -> Path | None:
        """The newest whole checkpoint; one whose saving was cut short is passed over.

        The trainer writes ``trainer_state.json`` last.
        """
        found = []
        for folder in self.checkpoints.glob("checkpoint-*"):
            number = folder.name.removeprefix("checkpoint-")
            try:
                state = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
                step = int(state["global_step"])
            except (OSError, ValueError, TypeError, KeyError):
                continue
            if number.isdigit() and step == int(number):
                found.append((step, folder))
        for _, folder in sorted(found, reverse=True):
            if lacks := _lacks(folder):
                logger.warning("%s is passed over: it has no %s", folder, lacks)
            else:
                return folder
        return None

    def check_checkpoint(self, checkpoint: Path) -> None:
        """Raises where a file of ``checkpoint`` is cut short; only headers are read.

        Raises:
            TrainingError: naming the file, and the folder to delete.
        """
        for file in sorted(checkpoint.iterdir()):
            if is_temporary(file.name):
                continue
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

    def trim_log(self, step: int, *, evaluated: bool = True) -> None:
        """Drops the log's lines past the checkpoint at ``step``, which are about to be made again.

        Args:
            step: of the checkpoint.
            evaluated: whether the training itself evaluates at that step; what comes after that, or
                else at that step, is the evaluation at its end.
        """
        if not self.log.is_file():
            return
        kept, evaluations = [], 0
        for text in self.log.read_text(encoding="utf-8").splitlines():
            try:
                line = json.loads(text)
                if line["step"] > step:
                    continue
            except (ValueError, KeyError, TypeError):  # the last line may have been cut short
                continue
            if line["step"] == step and "eval_loss" in line:
                evaluations += 1
                if evaluations > evaluated:
                    continue
            kept.append(text + "\n")
        write_text(self.log, "".join(kept))
