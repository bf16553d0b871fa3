"""A LoRA adapter folded into the weights it was trained on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from anchortune.adapter.compose import CONFIG, WEIGHTS
from anchortune.checkpoints.adapter_config import read_adapter_config
from anchortune.checkpoints.tensor_file import read_header
from anchortune.errors import CheckpointError
from anchortune.progress import Progress


def locate_adapter(adapter: str | Path) -> tuple[Path, str | None]:
    """(the folder that holds ``adapter``, its commit on the Hub or None for a local folder).

    Raises:
        CheckpointError: there is no such adapter, or it holds pickled weights only.
    """
    folder, commit = Path(adapter).expanduser(), None
    if not folder.is_dir():
        name = str(adapter)
        if folder.exists() or folder.is_absolute() or name.startswith((".", "~")):
            raise CheckpointError(
                f"adapter {adapter} is no folder with {CONFIG} and {WEIGHTS}; check the path."
            )
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
    folder, commit = locate_adapter(adapter)
    read_adapter_config(folder, str(adapter))
    read_header(folder / WEIGHTS)
    return folder, commit


def check_fit(skeleton: Any, adapter: str | Path) -> None:
    """Checks, from the header of an adapter's weights, that it changes layers of this model.

    Args:
        skeleton: the model; its weights are not looked at.
        adapter: a PEFT folder or Hub id.

    Raises:
        CheckpointError: it changes layers that the model has not or of another shape, or none.
    """
    folder, _ = check_adapter(adapter)
    found = 0
    for key, info in read_header(folder / WEIGHTS)[0].items():
        module, mark, rest = key.partition(".lora_")
        found += rest in {"A.weight", "B.weight", "embedding_A", "embedding_B"}
        if not mark or rest not in {"A.weight", "B.weight"}:
            continue
        # Of a second weight of one module (experts), PEFT's layer lies round the first one's.
        name = module.removeprefix("base_model.model.").replace(".base_layer", "")
        try:
            layer = skeleton.get_submodule(name)
        except AttributeError:
            raise CheckpointError(
                f"adapter {adapter} changes {name}, which the model has not: it belongs on "
                "the model that it was trained on"
                ", so load that one"
            ) from None
        wide = getattr(layer, "in_features" if rest[0] == "A" else "out_features", None)
        if wide is not None and info.shape[1 if rest[0] == "A" else 0 :][:1] != (wide,):
            raise CheckpointError(
                f"adapter {adapter}: {name} has {wide} features in the model and another "
                f"number in the adapter ({list(info.shape)}): it belongs on the model that it was "
                "trained on"
                ", so load that one"
            )
    if not found and read_adapter_config(folder, str(adapter))["peft_type"] == "LORA":
        raise CheckpointError(
            f"adapter {adapter} holds no lora_A and lora_B, so it does nothing"
            "; name one that PEFT saved"
        )


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
    from peft import PeftModel, get_peft_model_state_dict

    folder, _ = check_adapter(adapter)
    held = {name for name in read_header(folder / WEIGHTS)[0] if "lora_" in name}
    dtype = model.dtype
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        wrapped = PeftModel.from_pretrained(
            model.to(torch.float32), str(folder), use_safetensors=True
        )
        wanted = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        other = sorted(held ^ {name for name in wanted if "lora_" in name})
        if other:  # PEFT passes over what the model has no place for, and warns of what is missing
            raise ValueError(
                f"{other[0]} is {'only in the file' if other[0] in held else 'missing'}"
            )
        with _told(wrapped, adapter):
            merged = wrapped.merge_and_unload(safe_merge=True).to(dtype)
    except Exception as error:  # what PEFT raises on a broken adapter shares no base class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"adapter {adapter} does not load on the model ({reason[0]}): it belongs on the model "
            "that it was trained on"
            ", so load that one"
        ) from None
    for name, parameter in merged.named_parameters():
        parameter.requires_grad_(name in trained)
    return merged


@contextlib.contextmanager
def _told(wrapped: Any, adapter: str | Path) -> Iterator[None]:
    """Tells how many of the layers are merged, for PEFT's own bar draws into files as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in wrapped.modules() if isinstance(layer, BaseTunerLayer)]
    merged = 0

    def counting(merge: Callable[..., None]) -> Callable[..., None]:
        def merge_and_tell(*args: Any, **options: Any) -> None:
            nonlocal merged
            merge(*args, **options)
            merged += 1
            tell(merged)

        return merge_and_tell

    with Progress(f"merging {Path(adapter).name}", len(layers), brief=True) as tell:
        for layer in layers:
            vars(layer)["merge"] = counting(layer.merge)
        try:
            yield
        finally:
            for layer in layers:
                del vars(layer)["merge"]
