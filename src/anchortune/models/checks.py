"""What a model's folder says of itself held against its weights, before anything is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anchortune.checkpoints.index import folder_tensors, read_json
from anchortune.errors import CheckpointError

_MOST = 10_000


def check_counts(label: str, file: Path) -> None:
    """Refuses a config whose layers or experts alone would fill the memory, weights or none.

    Args:
        label: what the user calls the model.
        file: its ``config.json``; where there is none, nothing is checked.

    Raises:
        CheckpointError: it claims too many, or is no JSON.
    """
    told = read_json(file) if file.is_file() else {}
    for part in (told, *(value for value in told.values() if isinstance(value, dict))):
        for key, value in part.items():
            counts = key.startswith(("num_", "n_")) and ("layer" in key or "expert" in key)
            if counts and isinstance(value, int | float) and value > _MOST:
                raise CheckpointError(
                    f"{label}: its config.json claims {value} {key}; get it again."
                )


def check_shapes(label: str, folder: Path, skeleton: Any) -> None:
    """Refuses weights of other shapes than the config makes, by their headers alone.

    Sides may be in another order: Transformers turns some models' experts round as it loads them.

    Args:
        label: what the user calls the model.
        folder: of its weights.
        skeleton: what its config makes, with or without weights.

    Raises:
        CheckpointError: a tensor has another shape.
    """
    if getattr(skeleton.config, "quantization_config", None) is not None:
        return  # whose weights are packed
    stored = folder_tensors(folder)
    for name, parameter in skeleton.named_parameters():
        held = stored[name].shape if name in stored else tuple(parameter.shape)
        if sorted(held) != sorted(parameter.shape):
            raise CheckpointError(
                f"{label}: {name} is {list(held)} in its weights and {list(parameter.shape)} by "
                "its config.json; get it again."
            )


def without_tokenizer(folder: Path) -> bool:
    """Whether a local folder holds none of the files that a tokenizer is read from."""
    found = [path for sign in ("tokenizer*", "*.model", "vocab*") for path in folder.glob(sign)]
    return folder.is_dir() and not found


def knows_nothing(tokenizer: Any) -> bool:
    """Whether a tokenizer has special tokens only: transformers 5.0 makes one out of no files."""
    if len(tokenizer) > 100:
        return False
    special = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}
    return not set(tokenizer.get_vocab()) - special


def no_tokenizer(label: str, gguf: str | None) -> CheckpointError:
    """The error for a model that has none.

    Args:
        label: what the user calls the model.
        gguf: the file's name, for a GGUF file.
    """
    mend = "save the model's own there, with tokenizer.save_pretrained"
    if gguf is not None:
        mend = "take a file that has one, or the model's folder"
    return CheckpointError(f"{label}: there is no tokenizer in it; {mend}.")
