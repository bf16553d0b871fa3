"""A LoRA adapter folded into the weights it was trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from anchortune.adapter.compose import CONFIG, WEIGHTS
from anchortune.errors import CheckpointError


def locate_adapter(adapter: str | Path) -> tuple[Path, str | None]:
    """(the folder that holds ``adapter``, its commit on the Hub or None for a local folder).

    Raises:
        CheckpointError: there is no such adapter, or it holds pickled weights only.
    """
    folder, commit = Path(adapter).expanduser(), None
    if not folder.is_dir():
        name = str(adapter)
        if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
            raise CheckpointError(f"adapter {adapter} is no folder with {CONFIG} and {WEIGHTS}.")
        folder = _snapshot(name)
        commit = folder.name
    for wanted in (CONFIG, WEIGHTS):
        if not (folder / wanted).is_file():
            pickled = wanted == WEIGHTS and any(folder.glob("*.bin"))
            mend = "pickled weights are not read, save it again with save_pretrained"
            raise CheckpointError(
                f"adapter {adapter} has no {wanted}"
                + (f"; {mend}." if pickled else ", so it is no adapter that PEFT saved.")
            )
    return folder, commit


def check_adapter(adapter: str | Path) -> tuple[Path, str | None]:
    """As ``locate_adapter``, its config and the header of its weights read as well.

    Raises:
        CheckpointError: there is no such adapter, or one of its files is broken.
    """
    from safetensors import SafetensorError, safe_open

    folder, commit = locate_adapter(adapter)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"adapter {adapter}: {CONFIG} cannot be read ({error}).") from None
    if not isinstance(config, dict) or "peft_type" not in config:
        raise CheckpointError(f"adapter {adapter}: {CONFIG} names no peft_type; get it again.")
    try:
        with safe_open(folder / WEIGHTS, framework="pt"):
            return folder, commit
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"adapter {adapter}: {WEIGHTS} cannot be read ({error}).") from None


def _snapshot(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS]))
    except Exception as error:  # the Hub client's errors share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"adapter {name} is no folder here and cannot be fetched from the Hub ({reason})."
        ) from None


def merge_adapter(model: Any, adapter: str | Path) -> Any:
    """The model with ``adapter`` merged into its weights, in the dtype that it had.

    What could be trained before still can, though PEFT freezes everything on the way.

    The sum is taken in float32 whatever the model's dtype, for in 16 bits most of a small update
    would be rounded away before it is added; only the result is rounded.

    Args:
        model: the model that the adapter was trained on; it is changed.
        adapter: a PEFT folder or Hub id.

    Raises:
        CheckpointError: the adapter cannot be read, is pickled, or does not fit the model.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    folder, _ = locate_adapter(adapter)
    dtype = model.dtype
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        wrapped = PeftModel.from_pretrained(
            model.to(torch.float32), str(folder), use_safetensors=True
        )
        merged = wrapped.merge_and_unload(safe_merge=True).to(dtype)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"adapter {adapter} does not load on the model ({reason[0]}): it belongs on the model "
            "that it was trained on"
        ) from None
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(name in trained)
    return merged
