"""The AsFT penalty bound to a live model: a scalar for autograd, or gradients added in place.

Modules of one shape are stacked, so a step costs a few batched products of width r and k whatever
the number of layers. All of it is computed in float32 (float64 for float64 weights) outside of
autocast; gradients are added in the dtype that the parameters' gradients have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import Coverage, Target, cover
from anchortune.errors import AnchorError
from anchortune.maths import operators
from anchortune.maths.operators import OPERATORS, SIDES, Operator, Projection, Side

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

DEFAULT_OPERATOR: Operator = "subspace"
DEFAULT_LAM = 1.0


class Movement(NamedTuple):
    """How far a model has moved, and how that lies to the anchor; shares are of the energy.

    Attributes:
        energy: ``Σ ‖U‖²_F`` over the adapted modules.
        penalised: the penalty over the energy: the share that the operator punishes.
        inside: the share within the left singular subspaces.
        forwards: the share along ``+dW`` of its module (towards more alignment).
        backwards: the share along ``−dW`` (back to the base model).
    """

    energy: float
    penalised: float
    inside: float
    forwards: float
    backwards: float


@dataclass
class _Stack:
    """Targets of one shape, dtype and device, with their constants side by side."""

    targets: list[Target]
    projection: Projection
    unit: Tensor
    scale: Tensor
    start_b: list[Tensor | None]
    start_a: list[Tensor | None]

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


class Penalty:
    """``R = Σ ‖(I − C)·U‖²_F`` over the adapted modules of one model (or its ``along`` side).

    Calling it returns R as a scalar that autograd differentiates: ``loss + lam * penalty()``.
    ``add_gradient_`` adds ``λ·∇R`` to the parameters' ``.grad`` without a graph, for trainers.

    Attributes:
        operator: what the update is measured against; see ``anchortune.maths.operators``.
        side: ``off`` or ``along``.
        scaled: whether ``U = s·B·A`` (True) or the authors' unscaled ``B·A`` (False).
        rank: the number of singular triplets used at most, None for all that the anchor has.
        coverage: the bound modules, and what is trained without a penalty.
    """

    def __init__(
        self,
        coverage: Coverage,
        *,
        operator: Operator = DEFAULT_OPERATOR,
        side: Side = "off",
        scaled: bool = True,
        rank: int | None = None,
    ) -> None:
        self.operator: Operator = operator
        self.side: Side = side
        self.scaled = scaled
        self.rank = rank
        self.coverage = coverage
        self._stacks: list[_Stack] = []
        self._built_for: tuple[tuple[torch.device, torch.dtype], ...] = ()

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """R as a scalar tensor on the first adapted module's device, differentiable."""
        parameters = [p for stack in self._ready() for p in stack.flat_parameters()]
        with torch.enable_grad():
            value: Tensor = _ClosedForm.apply(self, *parameters)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def add_gradient_(self, lam: float, *, grad_scale: float = 1.0) -> Tensor:
        """Adds ``grad_scale · λ · ∇R`` to the parameters' gradients.

        Args:
            lam: λ.
            grad_scale: what the task's gradients were multiplied by (a GradScaler's scale).

        Returns:
            The value of R (neither λ nor the scale applied), a detached scalar on the device.
        """
        value, gradients = self.value_and_gradients()
        found = [p for stack in self._stacks for p in stack.flat_parameters()]
        held: list[Tensor] = []
        added: list[Tensor] = []
        for parameter, gradient in zip(found, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            held.append(parameter.grad)
            added.append((gradient * (lam * grad_scale)).to(parameter.grad.dtype))
        torch._foreach_add_(held, added)
        return value

    @torch.no_grad()
    def value_and_gradients(self) -> tuple[Tensor, list[Tensor]]:
        """R and its gradients, one for each bound parameter, in the computation's dtype."""
        stacks = self._ready()
        with _no_autocast(stacks[0].scale.device):
            updates = [stack.updates() for stack in stacks]
            total = self._total_along(updates)
            value = stacks[0].scale.new_zeros(())
            gradients: list[Tensor] = []
            for stack, (b, a) in zip(stacks, updates, strict=True):
                here = None if total is None else total.to(b.device, b.dtype)
                result = operators.penalty(self.operator, self.side, b, a, stack.projection, here)
                value = value + result.value.sum().to(value.device, value.dtype)
                gradients.extend(stack.to_parameters(result))
        return value, gradients

    @torch.no_grad()
    def movement(self) -> Movement:
        """How far the model has moved by now and how that lies to the anchor."""
        rows = []
        value = 0.0
        stacks = self._ready()
        with _no_autocast(stacks[0].scale.device):
            updates = [stack.updates() for stack in stacks]
            total = self._total_along(updates)
            for stack, (b, a) in zip(stacks, updates, strict=True):
                here = None if total is None else total.to(b.device, b.dtype)
                value += float(
                    operators.penalty(
                        self.operator, self.side, b, a, stack.projection, here
                    ).value.sum()
                )
                part = operators.shares(
                    b, a, stack.projection.left, stack.projection.right, stack.unit
                )
                along = part.along.sign() * part.along.square()
                rows.append(
                    [
                        part.energy.sum(),
                        part.inside.sum(),
                        along.clamp(min=0).sum(),
                        (-along).clamp(min=0).sum(),
                    ]
                )
        energy, inside, forwards, backwards = (
            math.fsum(float(row[i]) for row in rows) for i in range(4)
        )
        if energy == 0:
            return Movement(0.0, 0.0, 0.0, 0.0, 0.0)
        return Movement(
            energy, value / energy, inside / energy, forwards / energy, backwards / energy
        )

    @torch.no_grad()
    def aligned_share(self) -> float:
        """The share that the operator punishes of a move along dW itself, in [0, …).

        0 for an operator that leaves the aligned direction free; near 1 for one that is nearly
        plain norm decay. Weighted over modules by ``‖dW‖²``; off side.
        """
        punished = whole = 0.0
        for stack in self._ready():
            energy = torch.stack(
                [t.factors.sigma[: self._rank_of(t)].double().square() for t in stack.targets]
            )
            if self.operator in ("gram", "none"):
                punished += float(
                    (energy * (1 - stack.projection.weight.cpu().double()) ** 2).sum()
                )
            whole += float(energy.sum())
        return punished / whole

    @torch.no_grad()
    def start_fingerprint(self) -> float:
        """A number for the weights that U is measured from: ``Σ‖W₀‖_F``, or ``Σ‖B₀‖ + ‖A₀‖``."""
        starts = [s for t in self.coverage.targets for s in (t.start_b, t.start_a) if s is not None]
        return math.fsum(float(start.float().norm()) for start in starts)

    def _total_along(self, updates: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
        if self.operator != "direction_global":
            return None
        parts = [
            operators.along(b, a, stack.projection).value.sum().cpu()
            for stack, (b, a) in zip(self._stacks, updates, strict=True)
        ]
        return torch.stack(parts).sum()

    def _ready(self) -> list[_Stack]:
        """The stacks, made anew when the model has moved to another device or dtype."""
        now = tuple(
            (p.device, _compute_dtype(p.dtype))
            for p in (target.parameters()[0] for target in self.coverage.targets)
        )
        if now != self._built_for:
            self._stacks = self._build(now)
            self._built_for = now
        return self._stacks

    def _build(self, now: tuple[tuple[torch.device, torch.dtype], ...]) -> list[_Stack]:
        groups: dict[tuple[object, ...], list[Target]] = {}
        for target, (device, dtype) in zip(self.coverage.targets, now, strict=True):
            b, a = target.parameters()
            key = (
                device,
                dtype,
                b.shape,
                None if a is None else a.shape,
                self._rank_of(target),
                target.stored_transposed,
                target.start_a is not None,
            )
            groups.setdefault(key, []).append(target)
        whole = math.sqrt(
            math.fsum(
                float(target.factors.sigma[: self._rank_of(target)].double().square().sum())
                for target in self.coverage.targets
            )
        )
        return [self._stack(targets, whole) for targets in groups.values()]

    def _rank_of(self, target: Target) -> int:
        return min(target.factors.rank, self.rank or target.factors.rank)

    def _stack(self, targets: list[Target], whole: float) -> _Stack:
        weight = targets[0].parameters()[0]
        like: dict[str, Any] = {"device": weight.device, "dtype": _compute_dtype(weight.dtype)}
        rank = self._rank_of(targets[0])

        def pile(pick: Callable[[Target], Tensor]) -> Tensor:
            return torch.stack([pick(target) for target in targets]).to(**like).contiguous()

        left = pile(lambda t: t.factors.left[:, :rank])
        right = pile(lambda t: t.factors.right[:, :rank])
        if targets[0].stored_transposed:
            left, right = right, left
        sigma = pile(lambda t: t.factors.sigma[:rank])
        norm = torch.tensor([target.factors.norm for target in targets], **like)
        if self.operator == "direction_global":
            eigen = sigma / whole
        else:
            eigen = operators.eigenvalues(self.operator, sigma, norm)
        unit = operators.eigenvalues("direction", sigma, norm)
        scaled = self.scaled and targets[0].adapter is not None
        scale = torch.tensor([t.scale if scaled else 1.0 for t in targets], **like)
        full = targets[0].adapter is None
        keep = weight.dtype if full else like["dtype"]
        starts_b = [
            None if t.start_b is None else t.start_b.to(weight.device, keep) for t in targets
        ]
        starts_a = [None if t.start_a is None else t.start_a.to(**like) for t in targets]
        return _Stack(targets, Projection(left, right, eigen), unit, scale, starts_b, starts_a)


class _ClosedForm(torch.autograd.Function):
    """R with its closed-form gradients, so that autograd never walks through the projection."""

    @staticmethod
    def forward(ctx: Any, penalty: Penalty, *parameters: Tensor) -> Tensor:
        value, gradients = penalty.value_and_gradients()
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [p.dtype for p in parameters]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (
            None,
            *(
                (upstream.to(g.device, g.dtype) * g).to(dtype)
                for g, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
            ),
        )


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _no_autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, enabled=False)


def bind(
    anchor: Anchor,
    model: nn.Module,
    *,
    operator: Operator = DEFAULT_OPERATOR,
    side: Side = "off",
    scaled: bool = True,
    rank: int | None = None,
) -> Penalty:
    """The penalty of ``anchor`` on ``model``, every adapted module matched by name.

    Args:
        anchor: the anchor; see ``Anchor.from_checkpoints``.
        model: a PEFT model with LoRA layers, or a model whose own weights are trained (its
            weights as they are now are then what U is measured from, and are copied).
        operator: what the update is measured against.
        side: the part that is penalised.
        scaled: penalise ``s·B·A`` (True) or, as the authors' code does, ``B·A`` (False).
        rank: use the top singular triplets only; None for all that the anchor holds.

    Raises:
        AnchorError: an unknown operator or side, a rank that the anchor does not hold, a penalty
            that would vanish, or modules that do not match (see ``binding.cover``).
    """
    if operator not in OPERATORS:
        raise AnchorError(f"operator {operator!r} is unknown: choose one of {', '.join(OPERATORS)}")
    if side not in SIDES:
        raise AnchorError(f"side {side!r} is unknown: choose off or along")
    if rank is not None and rank < 1:
        raise AnchorError(f"rank {rank} is below 1: leave it out to use all that the anchor holds")
    if operator == "none" and side == "along":
        raise AnchorError("operator 'none' has no along side (its C is 0): use side='off'")
    coverage = cover(model, anchor.modules)
    penalty = Penalty(coverage, operator=operator, side=side, scaled=scaled, rank=rank)
    for target in coverage.targets:
        _check_rank(penalty, target)
    return penalty


def _check_rank(penalty: Penalty, target: Target) -> None:
    held = target.factors.rank
    d_out = target.factors.shape[1 if target.stored_transposed else 0]
    if penalty.rank is not None and penalty.rank > held and target.factors.tail > 0:
        raise AnchorError(
            f"rank {penalty.rank} is more than the {held} singular triplets that the anchor holds "
            f"of {target.name!r}: build it with a higher rank"
        )
    if (penalty.operator, penalty.side) == ("subspace", "off") and penalty._rank_of(
        target
    ) >= d_out:
        raise AnchorError(
            f"operator 'subspace' at rank {penalty._rank_of(target)} keeps all {d_out} output "
            f"directions of {target.name!r} free, so its penalty vanishes: give a lower rank"
        )
