"""Bound modules of one shape side by side, so that a step is a few batched products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import Target
from anchortune.errors import AnchorError
from anchortune.maths import operators
from anchortune.maths.operators import LayerWeights, Operator, Projection


@dataclass
class Stack:
    """Targets of one shape, dtype and device, with their constants side by side.

    ``weights`` are what the modules' penalties are multiplied by, (n,); None where all are 1.
    """

    targets: list[Target]
    projection: Projection
    unit: Tensor
    scale: Tensor
    start_b: list[Tensor | None]
    start_a: list[Tensor | None]
    weights: Tensor | None = None

    def updates(self) -> tuple[Tensor, Tensor | None]:
        """``(s·B, A)`` stacked (with ``−s·B₀, A₀`` beside them), or ``(W − W₀, None)``."""
        parameters = [target.parameters() for target in self.targets]
        dtype = self.scale.dtype
        b = torch.stack([_plain(weight).to(dtype) for weight, _ in parameters])
        if self.targets[0].adapter is None:
            b = b - torch.stack([start.to(dtype) for start in self.start_b if start is not None])
            return (b.transpose(1, 2) if self.targets[0].stored_transposed else b), None
        a = torch.stack(
            [_plain(weight).to(dtype) for _, weight in parameters if weight is not None]
        )
        if self.start_b[0] is not None:
            b = torch.cat([b, -torch.stack([s for s in self.start_b if s is not None])], dim=2)
            a = torch.cat([a, torch.stack([s for s in self.start_a if s is not None])], dim=1)
        return b * self.scale[:, None, None], a

    def to_parameters(self, gradient: operators.Gradients) -> list[Tensor]:
        """Gradients in the order and shape of ``[B₁ … Bₙ, A₁ … Aₙ]`` (or of the weights)."""
        if gradient.a is None:
            flip = self.targets[0].stored_transposed
            return list((gradient.b.transpose(1, 2) if flip else gradient.b).unbind())
        rank = self.targets[0].parameters()[0].shape[1]
        b = gradient.b[:, :, :rank] * self.scale[:, None, None]
        return [*b.unbind(), *gradient.a[:, :rank].unbind()]

    def flat_parameters(self) -> list[nn.Parameter]:
        """The parameters in the order of ``to_parameters``."""
        pairs = [target.parameters() for target in self.targets]
        return [b for b, _ in pairs] + [a for _, a in pairs if a is not None]


def _plain(parameter: Tensor) -> Tensor:
    if type(parameter.data).__name__ == "DTensor":
        raise AnchorError(
            "the model's parameters are sharded (DTensor), which the penalty does not support: "
            "train with DDP or on one device"
        )
    return parameter.detach()


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What a penalty on weights of ``dtype`` is computed in: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def used_rank(target: Target, rank: int | None) -> int:
    """How many of the target's singular triplets are used where at most ``rank`` are asked for."""
    return min(target.factors.rank, rank or target.factors.rank)


def build_stacks(
    targets: Sequence[Target],
    operator: Operator,
    rank: int | None,
    scaled: bool,
    layer_weights: LayerWeights = "none",
) -> list[Stack]:
    """The targets grouped by shape, device and dtype, with what ``operator`` needs of the anchor.

    Args:
        targets: the bound modules.
        operator: what the update is measured against.
        rank: singular triplets used at most.
        scaled: whether ``s`` is part of the update.
        layer_weights: what a module's penalty is weighted by.
    """
    weights: Sequence[float | None] = [None] * len(targets)
    if layer_weights != "none":
        norms = torch.tensor([target.factors.norm for target in targets], dtype=torch.float64)
        weights = operators.module_weights(layer_weights, norms).tolist()
    groups: dict[tuple[object, ...], list[tuple[Target, float | None]]] = {}
    for target, weight in zip(targets, weights, strict=True):
        b, a = target.parameters()
        key = (
            b.device,
            compute_dtype(b.dtype),
            b.shape,
            None if a is None else a.shape,
            used_rank(target, rank),
            target.stored_transposed,
            target.start_a is not None,
        )
        groups.setdefault(key, []).append((target, weight))
    whole = math.sqrt(
        math.fsum(
            float(target.factors.sigma[: used_rank(target, rank)].double().square().sum())
            for target in targets
        )
    )
    return [_stack(group, operator, rank, scaled, whole) for group in groups.values()]


def _stack(
    group: list[tuple[Target, float | None]],
    operator: Operator,
    rank: int | None,
    scaled: bool,
    whole: float,
) -> Stack:
    """One group; ``whole`` is the norm of dW's kept part over all modules, for one direction."""
    targets = [target for target, _ in group]
    shares = [share for _, share in group if share is not None]
    first = targets[0]
    weight = first.parameters()[0]
    full = first.adapter is None
    like: dict[str, Any] = {"device": weight.device, "dtype": compute_dtype(weight.dtype)}
    used = used_rank(first, rank)

    def pile(pick: Callable[[Target], Tensor]) -> Tensor:
        return torch.stack([pick(target) for target in targets]).to(**like).contiguous()

    left = pile(lambda t: t.factors.left[:, :used])
    right = pile(lambda t: t.factors.right[:, :used])
    if first.stored_transposed:
        left, right = right, left
    sigma = pile(lambda t: t.factors.sigma[:used])
    norm = torch.tensor([target.factors.norm for target in targets], **like)
    if operator == "direction_global":
        weights = sigma / whole
    else:
        weights = operators.eigenvalues(operator, sigma, norm)
    scale = torch.tensor([t.scale if scaled and not full else 1.0 for t in targets], **like)
    keep = weight.dtype if full else like["dtype"]
    return Stack(
        targets,
        Projection(left, right, weights),
        operators.eigenvalues("direction", sigma, norm),
        scale,
        [None if t.start_b is None else t.start_b.to(weight.device, keep) for t in targets],
        [None if t.start_a is None else t.start_a.to(**like) for t in targets],
        torch.tensor(shares, **like) if shares else None,
    )
