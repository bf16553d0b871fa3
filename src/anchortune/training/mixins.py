"""What every door into an existing trainer does: look at it, put a mixin before its class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anchortune.errors import TrainingError

_OWN_BACKWARD = ("lomo", "adalomo", "layerwise")


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

    Methods that somebody has set on the object itself, as unsloth's token budget does, would hide
    the mixin's: they go between the two classes.

    Args:
        trainer: the trainer, which is changed.
        mixin: its methods call the class's own by ``super()``.
        prefix: of the new class's name.
    """
    cls = type(trainer)
    names = [name for name in vars(mixin) if callable(trainer.__dict__.get(name))]
    below = cls
    if names:
        own = {name: _unbound(trainer.__dict__.pop(name)) for name in names}
        below = type(cls.__name__, (cls,), {"__module__": cls.__module__, **own})
    made = type(prefix + cls.__name__, (mixin, below), {"__module__": cls.__module__})
    trainer.__class__ = made


def _unbound(bound: Any) -> Any:
    """A method for a class that calls ``bound``, which knows its object."""

    def method(_self: Any, *args: Any, **kwargs: Any) -> Any:
        return bound(*args, **kwargs)

    return method


def grad_scale(trainer: Any) -> float:
    """What the task's gradients were multiplied by: the GradScaler's scale, 1 without one."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    return float(scaler.get_scale()) if scaler is not None else 1.0


def steps_in_backward(trainer: Any) -> bool:
    """Whether the optimizer updates the weights during backward, each as its gradient comes."""
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim)).lower()
    return any(name in optim for name in _OWN_BACKWARD)


def refuse_backends(trainer: Any, what: str = "the penalty", sharded: bool = False) -> None:
    """Refuses engines and optimizers that leave no moment between backward and clipping.

    Args:
        trainer: of transformers.
        what: is to be added there, for the error.
        sharded: whether it can be added to gradients that FSDP2 has sharded.

    Raises:
        TrainingError: it has one.
    """
    if getattr(trainer, "is_deepspeed_enabled", False):
        raise TrainingError(
            f"DeepSpeed steps inside its own backward, so {what} cannot be added before "
            "clipping: train with DDP or on one device"
        )
    if getattr(trainer, "is_fsdp_enabled", False):
        _refuse_fsdp(trainer, what, sharded)
    if steps_in_backward(trainer):
        optim = getattr(trainer.args.optim, "value", trainer.args.optim)
        raise TrainingError(
            f"the optimizer {optim!r} updates the weights during backward, before {what} can "
            "be added: choose another, for example adamw_torch"
        )


def _refuse_fsdp(trainer: Any, what: str, sharded: bool) -> None:
    if not sharded:
        raise TrainingError(
            f"FSDP shards the trained weights, which {what} does not support: train with DDP or on "
            "one device"
        )
    plugin = getattr(trainer.accelerator.state, "fsdp_plugin", None)
    if getattr(plugin, "fsdp_version", 1) < 2:
        raise TrainingError(
            f"FSDP 1 flattens the trained weights into one, in which {what} cannot find them: set "
            "fsdp_version to 2, or train with DDP or on one device"
        )
    if type(getattr(plugin, "cpu_offload", None)).__name__ == "CPUOffloadPolicy":
        raise TrainingError(
            f"fsdp_offload_params keeps the trained weights on the CPU, where {what} cannot be "
            "summed over the processes: set it to false"
        )


def reads_shards() -> bool:
    """Whether accelerate reads the sharded state of an optimizer back.

    Before 1.13 it reads it into the keys that the fresh optimizer has: into none.
    """
    import accelerate

    return tuple(int(part) for part in accelerate.__version__.split(".")[:2]) >= (1, 13)


def refuse_forgetful(trainer: Any, checkpoint: Path) -> None:
    """Refuses to resume shards where accelerate would leave the optimizer's state behind.

    Raises:
        TrainingError: it would.
    """
    import accelerate

    if not getattr(trainer, "is_fsdp_enabled", False) or not (checkpoint / "optimizer_0").is_dir():
        return
    if not reads_shards():
        raise TrainingError(
            f"accelerate {accelerate.__version__} does not read the sharded state of the optimizer "
            f"in {checkpoint}: install accelerate 1.13 or later, or start anew"
        )
