"""Bound modules of one shape side by side, so that a step is a few batched products."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import Target
from anchortune.maths import operators
from anchortune.maths.operators import LayerWeights, Operator, Projection

Pair = tuple[nn.Parameter, nn.Parameter | None]
"""(B, A) of a LoRA layer, or (weight, None) of a fully trained one."""


@dataclass
class Stack:
    """Targets of one shape, dtype and device, with their constants side by side.

    Attributes:
        targets: the modules.
        places: where they stand among all that are bound.
        projection: what the operator keeps of the anchor.
        unit: singular values of each module's unit vector D, (n, k).
        scale: s of each module, (n, 1, 1).
        start_b: ``−B₀`` of adapters that do not start at 0, (n, d_out, r).
        start_a: their ``A₀``, (n, r, d_in).
        start: of fully trained modules, the weights that U is measured from.
        weights: what the modules' penalties are multiplied by, (n,); None where all are 1.
    """

    targets: list[Target]
    places: list[int]
    projection: Projection
    unit: Tensor
    scale: Tensor
    start_b: Tensor | None = None
    start_a: Tensor | None = None
    start: list[Tensor] = field(default_factory=list)
    weights: Tensor | None = None

    def updates(self, pairs: list[Pair]) -> tuple[Tensor, Tensor | None]:
        """``(s·B, A)`` stacked (with ``−s·B₀, A₀`` beside them), or ``(W − W₀, None)``.

        Args:
            pairs: the targets' parameters as they are now.
        """
        dtype = self.scale.dtype
        b = torch.stack([weight for weight, _ in pairs]).to(dtype)
        if self.start:
            torch._foreach_sub_(list(b.unbind()), self.start)
            return (b.transpose(1, 2) if self.targets[0].stored_transposed else b), None
        a = torch.stack([weight for _, weight in pairs if weight is not None]).to(dtype)
        if self.start_b is not None and self.start_a is not None:
            b, a = torch.cat([b, self.start_b], dim=2), torch.cat([a, self.start_a], dim=1)
        return b.mul_(self.scale), a

    def to_parameters(
        self, gradient: operators.Gradients, pairs: list[Pair], times: float | Tensor = 1.0
    ) -> list[Tensor]:
        """``times`` the gradients, in the order, shapes and dtypes of ``parameters_of(pairs)``.

        All of one kind are multiplied, rounded and laid out as the parameters are by one call.
        """

        def laid_out(found: Tensor, like: Tensor, factor: Tensor | float) -> tuple[Tensor, ...]:
            made = torch.empty((len(pairs), *like.shape), dtype=like.dtype, device=like.device)
            return torch.mul(found, factor, out=made).unbind()

        if isinstance(times, Tensor):
            times = times.to(self.scale.device, self.scale.dtype)
        weight, other = pairs[0]
        if gradient.a is None or other is None:
            flip = self.targets[0].stored_transposed
            found = gradient.b.transpose(1, 2) if flip else gradient.b
            return list(laid_out(found, weight, times))
        rank = weight.shape[1]
        return [
            *laid_out(gradient.b[:, :, :rank], weight, self.scale * times),
            *laid_out(gradient.a[:, :rank], other, times),
        ]


def parameters_of(pairs: list[Pair]) -> list[nn.Parameter]:
    """``[B₁ … Bₙ, A₁ … Aₙ]``, or the weights."""
    return [b for b, _ in pairs] + [a for _, a in pairs if a is not None]


def is_sharded(pairs: list[Pair]) -> bool:
    """Whether parameters are DTensors, of which this process may hold a part alone."""
    return any(is_dtensor(p) for pair in pairs for p in pair)


def is_dtensor(tensor: Tensor | None) -> bool:
    """Whether it is a DTensor, without importing their package."""
    return type(tensor).__name__ == "DTensor"


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
    groups: dict[tuple[object, ...], list[tuple[int, Target, float | None]]] = {}
    for place, (target, weight) in enumerate(zip(targets, weights, strict=True)):
        b, a = target.parameters()
        key = (
            b.device,
            b.dtype,
            b.shape,
            None if a is None else (a.dtype, a.shape),
            used_rank(target, rank),
            target.stored_transposed,
            target.start_a is not None,
        )
        groups.setdefault(key, []).append((place, target, weight))
    whole = math.sqrt(
        math.fsum(
            float(target.factors.sigma[: used_rank(target, rank)].double().square().sum())
            for target in targets
        )
    )
    return [_stack(group, operator, rank, scaled, whole) for group in groups.values()]


def _stack(
    group: list[tuple[int, Target, float | None]],
    operator: Operator,
    rank: int | None,
    scaled: bool,
    whole: float,
) -> Stack:
    """One group; ``whole`` is the norm of dW's kept part over all modules, for one direction."""
    targets = [target for _, target, _ in group]
    shares = [share for _, _, share in group if share is not None]
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
    stack = Stack(
        targets,
        [place for place, _, _ in group],
        Projection(left, right, weights),
        operators.eigenvalues("direction", sigma, norm),
        scale[:, None, None],
        weights=torch.tensor(shares, **like) if shares else None,
    )
    starts = [target.start_b for target in targets if target.start_b is not None]
    if full:
        stack.start = [start.to(weight.device, weight.dtype) for start in starts]
    elif starts:
        stack.start_b = -torch.stack(starts).to(**like)
        stack.start_a = pile(lambda t: cast(Tensor, t.start_a))
    return stack
