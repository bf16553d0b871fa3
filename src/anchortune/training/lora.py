"""What is trained: a new LoRA adapter by its config, or the weights; in some layers or in all."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from anchortune.config import LoraSection
from anchortune.errors import TrainingError

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|blocks|block|h)\.(\d+)\.")


def bare_model(model: Any) -> Any:
    """The model under its adapter; a model without one is it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def layer_of(name: str) -> int | None:
    """The number of the layer that a module or parameter lies in; None outside of all."""
    match = _LAYER.search(name)
    return None if match is None else int(match[1])


def lora_config(model: Any, lora: LoraSection, layers: Sequence[int] | None = None) -> Any:
    """PEFT's ``LoraConfig`` for a config's ``lora`` section.

    Args:
        model: that is to be adapted.
        lora: the section.
        layers: the numbers of the layers to adapt; None: all.

    Raises:
        TrainingError: ``target_modules`` name nothing in the model.
    """
    from peft import LoraConfig

    targets: list[str] | str = lora.target_modules
    if targets != "all-linear":
        targets = [targets] if isinstance(targets, str) else list(targets)
        modules = [name for name, _ in model.named_modules() if name]
        for wanted in targets:
            if not any(name == wanted or name.endswith("." + wanted) for name in modules):
                leaves = {name.rsplit(".", 1)[-1] for name in modules}
                known = sorted(leaf for leaf in leaves if "proj" in leaf or "attn" in leaf)
                raise TrainingError(
                    f"lora.target_modules: the model has no module '{wanted}'; it has "
                    f"{', '.join(known or sorted(leaves))}."
                )
    elif layers is not None:
        targets = _linear_leaves(model)  # PEFT takes numbers of layers beside names alone
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # annotated int, but the arithmetic takes any number
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        layers_to_transform=None if layers is None else list(layers),
        bias="none",
        task_type="CAUSAL_LM",
    )


def _linear_leaves(model: Any) -> list[str]:
    """The last names of the linear modules inside numbered layers."""
    from torch import nn

    found = set()
    for name, module in model.named_modules():
        linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if linear and layer_of(name) is not None:
            found.add(name.rsplit(".", 1)[-1])
    return sorted(found)


def add_lora(model: Any, lora: LoraSection, seed: int, layers: Sequence[int] | None = None) -> Any:
    """The model wrapped by PEFT with a new LoRA adapter, its start drawn from ``seed``.

    Raises:
        TrainingError: ``target_modules`` name nothing in the model.
    """
    from peft import get_peft_model

    config = lora_config(model, lora, layers)
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def freeze_other_layers(model: Any, layers: Sequence[int]) -> None:
    """Trains the parameters of ``layers`` and of what lies in no layer; the others are frozen."""
    for name, parameter in model.named_parameters():
        number = layer_of(name)
        if number is not None and number not in layers:
            parameter.requires_grad_(False)
