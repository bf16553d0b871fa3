"""The refusal direction watched in a trainer: it looks every few steps, and logs.

A run that is watched takes the steps of one that is not, to the bit. What later directions are
compared with are those of the model before its training; they are in every checkpoint.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainerCallback

from anchortune.errors import TrainingError
from anchortune.files import atomic_path
from anchortune.maths.separation import Directions
from anchortune.training.mixins import check_trainer, put_in_front
from anchortune.training.refusal_direction import DirectionReading, RefusalDirection

logger = logging.getLogger(__name__)
T = TypeVar("T")
STATE_FILE = "refusal_directions.safetensors"
PREFIX = "refusal/"
_DIGITS = 5


class _Watch:
    """What the seam keeps for one trainer: what it asks and what it has found."""

    def __init__(self, direction: RefusalDirection, by_layer: bool) -> None:
        self.direction = direction
        self.by_layer = by_layer
        self.unlogged: dict[str, Any] = {}

    def start(self, model: Any) -> None:
        """Takes the model before its training as the start, once; it is logged with the first."""
        if self.direction.start is None:
            reading = self.direction.begin(model)
            logger.info(
                "activations: before training, held-out AUC %.3f over %d layers",
                _mean(reading.auc), len(reading.auc),
            )  # fmt: skip

    def look(self, model: Any) -> None:
        """Measures the model, for the next log."""
        self.unlogged = logs_of(self.direction.measure(model), self.by_layer)


def logs_of(reading: DirectionReading, by_layer: bool) -> dict[str, Any]:
    """A reading as what is logged: ``refusal/…``, means over the layers and the lowest cosine.

    Args:
        reading: of one look.
        by_layer: with lists of every layer's figures beside, under ``refusal/layers/…``.
    """
    found: dict[str, Any] = {
        PREFIX + name: _mean(values) for name, values in reading._asdict().items()
    }
    found[PREFIX + "lowest_cosine"] = min(reading.cosine)
    if by_layer:
        for name, values in reading._asdict().items():
            found[f"{PREFIX}layers/{name}"] = [
                round(value, _DIGITS) if math.isfinite(value) else None for value in values
            ]
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


class _Looks(TrainerCallback):  # type: ignore[misc]
    """Looks before the first step, every so many after it, and after the last."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._activations.start(self._trainer.model)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watch = self._trainer._activations
        last = state.global_step >= state.max_steps
        if state.global_step % watch.direction.every == 0 or last:
            watch.look(self._trainer.model)
            control.should_log = True  # beside the penalty's figures of the same step


class ActivationsMixin:
    """Lets a refusal direction be watched in a trainer of ``transformers``."""

    _activations: _Watch

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """Adds what was found since the last log."""
        if "loss" in logs and self._activations.unlogged:
            logs.update(self._activations.unlogged)
            self._activations.unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        start = self._activations.direction.start
        if trainer.args.should_save and start is not None:
            save_start(self._activations.direction, Path(output_dir) / STATE_FILE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            load_start(self._activations.direction, Path(checkpoint) / STATE_FILE)


def save_start(direction: RefusalDirection, path: Path) -> None:
    """Writes the directions before training: ``whole`` and ``halves`` (safetensors, float64).

    Args:
        direction: after ``begin``.
        path: of the file.

    Raises:
        TrainingError: ``begin`` was not called.
    """
    from safetensors.torch import save_file

    if direction.start is None:
        raise TrainingError("there is no direction to save: call begin(model) before training")
    tensors = {name: part.contiguous() for name, part in direction.start._asdict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"prompts_sha256": direction.prompts_sha256})


def load_start(direction: RefusalDirection, path: Path) -> None:
    """Takes the directions before training from a file of ``save_start``.

    Args:
        direction: that asks the same prompts.
        path: of the file.

    Raises:
        TrainingError: it is not there, or was made with other prompts.
    """
    from safetensors import safe_open

    if not path.is_file():
        raise TrainingError(
            f"{path.parent} was saved without activations (it has no {path.name}), so what the "
            "model was before its training is not known: resume from a checkpoint of a run with "
            "them, or start anew"
        )
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("prompts_sha256") != direction.prompts_sha256:
            raise TrainingError(
                f"{path.parent} was saved with other prompts in its activations: resume with the "
                "same, or start anew"
            )
        found: dict[str, torch.Tensor] = {
            name: file.get_tensor(name) for name in Directions._fields
        }
    direction.start = Directions(**found)


def attach_activations(trainer: T, direction: RefusalDirection, *, by_layer: bool = False) -> T:
    """Lets a trainer that exists already be watched for its refusal direction, and returns it.

    The one line before ``trainer.train()``, for ``transformers.Trainer`` and every TRL trainer that
    descends from it, with or without a penalty or a probe. Means over the layers come into the
    logs: ``refusal/cosine``, ``lowest_cosine``, ``gap``, ``auc``, ``auc_start``, ``agreement``. The
    trainer's class becomes a subclass of its own class with ``ActivationsMixin`` in front.

    Args:
        trainer: a trainer with its model, before training.
        direction: with the tokenizer of that model.
        by_layer: log lists of every layer's figures too, which some trackers do not take.

    Raises:
        TrainingError: it is watched already, is no such trainer, or shards the model's weights.
    """
    if isinstance(trainer, ActivationsMixin):
        raise TrainingError("this trainer's activations are watched already: attach once")
    if not isinstance(direction, RefusalDirection):
        raise TrainingError(
            f"direction is {type(direction).__name__}, not a RefusalDirection: make one with "
            "RefusalDirection(harmful, harmless, tokenizer)"
        )
    check_trainer(trainer, "call direction.begin(model), and direction.measure(model) after steps")
    made: Any = trainer
    for engine in ("DeepSpeed", "FSDP"):
        if getattr(made, f"is_{engine.lower()}_enabled", False):
            raise TrainingError(
                f"{engine} may shard the weights, which have to be seen whole: train with DDP or "
                "on one device"
            )
    made._activations = _Watch(direction, by_layer)
    made.add_callback(_Looks(made))
    put_in_front(made, ActivationsMixin, "Watched")
    return trainer


def activation_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a run's log says of its refusal direction, for the record; None where it says nothing.

    Args:
        lines: of ``log.jsonl``.
    """
    found = [line for line in lines if PREFIX + "cosine" in line]
    if not found:
        return None
    last = found[-1]
    names = [*DirectionReading._fields, "lowest_cosine"]
    return {**{name: last[PREFIX + name] for name in names}, "looks_logged": len(found)}
