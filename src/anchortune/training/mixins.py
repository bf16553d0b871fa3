"""What every door into an existing trainer does: look at it, put a mixin before its class."""

from __future__ import annotations

from typing import Any

from anchortune.errors import TrainingError


def check_trainer(trainer: Any, instead: str) -> None:
    """Refuses what is no trainer.

    Args:
        trainer: what the user gave.
        instead: what to do in a loop of one's own, for the error.

    Raises:
        TrainingError: it is no ``transformers.Trainer``.
    """
    if not all(hasattr(trainer, name) for name in ("training_step", "accelerator", "add_callback")):
        raise TrainingError(
            f"{type(trainer).__name__} is not a transformers.Trainer: in a loop of your own "
            f"{instead}"
        )


def put_in_front(trainer: Any, mixin: type, prefix: str) -> None:
    """Makes the trainer's class a subclass of its own class with ``mixin`` before it.

    Args:
        trainer: the trainer, which is changed.
        mixin: its methods call the class's own by ``super()``.
        prefix: of the new class's name.
    """
    cls = type(trainer)
    trainer.__class__ = type(prefix + cls.__name__, (mixin, cls), {"__module__": cls.__module__})


def grad_scale(trainer: Any) -> float:
    """What the task's gradients were multiplied by: the GradScaler's scale, 1 without one."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0
