"""The new LoRA adapter of a run, by its config."""

from __future__ import annotations

from typing import Any

import torch

from anchortune.config import LoraSection
from anchortune.errors import TrainingError


def lora_config(model: Any, lora: LoraSection) -> Any:
    """PEFT's ``LoraConfig`` for a config's ``lora`` section.

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
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # annotated int, but the arithmetic takes any number
        lora_dropout=lora.dropout,
        target_modules=targets,
        use_rslora=lora.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_lora(model: Any, lora: LoraSection, seed: int) -> Any:
    """The model wrapped by PEFT with a new LoRA adapter, its start drawn from ``seed``.

    Raises:
        TrainingError: ``target_modules`` name nothing in the model.
    """
    from peft import get_peft_model

    config = lora_config(model, lora)
    torch.manual_seed(seed)
    return get_peft_model(model, config)
