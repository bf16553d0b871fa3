"""A saved adapter read as factors of its update, and factors written as a standard adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from anchortune.adapter.compose import as_lora, plain_factors, read_adapter, write_adapter
from anchortune.errors import CheckpointError
from anchortune.files import atomic_directory
from anchortune.maths.lowrank import LowRank, Update

#: Keys of an ``adapter_config.json`` that say what the adapter is for and leave s·B·A alone.
_CARRIED = ("auto_mapping", "lora_dropout", "inference_mode")


def read_update(folder: str | Path) -> tuple[Update, dict[str, Any]]:
    """What a saved LoRA adapter adds to its model's weights, and its ``adapter_config.json``.

    rsLoRA and patterns of ranks and alphas are read as PEFT reads them.

    Args:
        folder: a folder that PEFT saved.

    Returns:
        By module, without PEFT's prefix, ``s·B @ A`` of shape (d_out, d_in) in float32, whichever
        way round the model stores the weight.

    Raises:
        CheckpointError: it cannot be read, or is more than s·B·A (DoRA, biases, saved modules, …).
    """
    state, config = read_adapter(Path(folder))
    try:
        factors = plain_factors(state, config)
    except CheckpointError as error:
        raise CheckpointError(
            f"adapter {folder}: {error}; only a plain LoRA (rsLoRA and rank patterns too) is an "
            "update that can be mended."
        ) from None
    return {module: LowRank(b, a) for module, (a, b) in sorted(factors.items())}, config


def adapter_label(folder: str | Path) -> str:
    """An adapter by its folder's name; ``adapter`` is that of every run, so by the run's then."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "adapter" else path.name


def update_as_lora(
    update: Update,
    *,
    base: str | None,
    revision: str | None = None,
    like: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A plain LoRA that adds ``update``: (tensors, ``adapter_config.json``).

    Args:
        update: by module, as ``read_update`` gives it; scales are folded into B, in float32.
        base: the model that it belongs on.
        revision: that model's, on the Hub.
        like: the config of the adapter that it comes from, for what it is for (``task_type``) and
            how the base stores its weights (``fan_in_fan_out``).

    Raises:
        CheckpointError: the update is of no module.
    """
    if not update:
        raise CheckpointError("an update of no module makes no adapter; check target_modules")
    like = like or {}
    state, config = as_lora(
        {module: (part.right, part.left) for module, part in update.items()},
        base,
        revision,
        task_type=like.get("task_type", "CAUSAL_LM"),
        fan_in_fan_out=bool(like.get("fan_in_fan_out")),
    )
    config.update({key: like[key] for key in _CARRIED if key in like})
    return state, config


def write_update(
    folder: str | Path,
    update: Update,
    *,
    base: str | None,
    revision: str | None = None,
    like: Mapping[str, Any] | None = None,
) -> None:
    """Writes ``update`` as a standard PEFT folder, whole or not at all; one in its place goes.

    See ``update_as_lora`` for the arguments.

    Raises:
        CheckpointError: the update is of no module.
    """
    state, config = update_as_lora(update, base=base, revision=revision, like=like)
    with atomic_directory(folder) as temporary:
        write_adapter(temporary, state, config)
