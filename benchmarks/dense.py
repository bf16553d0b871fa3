"""The published formulation of AsFT, written from its description: what ours is measured against.

One dense ``C = dW·dWᵀ/‖dW‖_F`` (d_out × d_out) for each adapted layer, kept on the host; each step
moves it to the device, builds an identity of its size, multiplies ``(I − C) @ (B @ A)`` and looks
both parameters up by their names. Autograd holds what the backward pass needs. Names pair layers
with operators here (the published code goes by position), so that both sides compute one number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn


def dense_operator(aligned: Tensor, base: Tensor) -> Tensor:
    """``C = dW·dWᵀ/‖dW‖_F`` (d_out × d_out) in float32, on the host."""
    delta = aligned.float() - base.float()
    return ((delta @ delta.T) / delta.norm()).cpu()


def dense_operators(
    aligned: Mapping[str, Tensor], base: Mapping[str, Tensor], modules: Iterable[str]
) -> dict[str, Tensor]:
    """C by module name.

    Args:
        aligned: weights (d_out × d_in) by name, ``….weight``.
        base: of the same names.
        modules: names without ``.weight``, as an anchor has them.
    """
    return {
        name: dense_operator(aligned[f"{name}.weight"], base[f"{name}.weight"]) for name in modules
    }


class DensePenalty:
    """``Σ ‖(I − C)·s·B·A‖²_F`` as a scalar that autograd differentiates: ``loss + lam * dense()``.

    Args:
        model: of PEFT, with a LoRA adapter on each of the operators' modules.
        operators: C by module name; see ``dense_operators``.
        scale: s; 1.0 is the published setting, ``lora_alpha / r`` is ours.
        adapter: the adapter's name.
    """

    def __init__(
        self,
        model: nn.Module,
        operators: Mapping[str, Tensor],
        *,
        scale: float = 1.0,
        adapter: str = "default",
    ) -> None:
        self.model, self.operators = model, operators
        self.scale, self.adapter = scale, adapter

    def held_bytes(self) -> int:
        """What the operators take on the host."""
        return sum(c.numel() * c.element_size() for c in self.operators.values())

    def __call__(self) -> Tensor:
        """The penalty, on the device of the adapter."""
        total: Tensor | None = None
        for name, held in self.operators.items():
            layer = f"base_model.model.{name}"
            a = self.model.get_parameter(f"{layer}.lora_A.{self.adapter}.weight")
            b = self.model.get_parameter(f"{layer}.lora_B.{self.adapter}.weight")
            c = held.to(b.device, b.dtype)
            identity = torch.eye(c.shape[0], device=c.device, dtype=c.dtype)
            outside = (identity - c) @ (self.scale * (b @ a))
            value = outside.norm() ** 2
            total = value if total is None else total + value.to(total.device)
        if total is None:
            raise ValueError("no layer is adapted")
        return total
