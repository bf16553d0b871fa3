"""The AsFT penalty bound to a live model: a scalar for autograd, or gradients added in place.

Modules of one shape are stacked, so a step costs a few batched products of width r and k whatever
the number of layers. All of it is computed in float32 (float64 for float64 weights) outside of
autocast; gradients are added in the dtype that the parameters' gradients have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import Coverage, Target, cover
from anchortune.anchor.stacks import Stack, build_stacks, compute_dtype, used_rank
from anchortune.errors import AnchorError
from anchortune.maths import operators
from anchortune.maths.operators import OPERATORS, SIDES, Operator, Side

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
        unpenalised: ``Σ ‖Δ‖²`` of what an adapter trains besides (``Coverage.loose``); an energy.
    """

    energy: float
    penalised: float
    inside: float
    forwards: float
    backwards: float
    unpenalised: float = 0.0


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
        self._stacks: list[Stack] = []
        self._built_for: tuple[tuple[torch.device, torch.dtype], ...] = ()
        self._start_sha256: str | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """R as a scalar tensor on the first adapted module's device, differentiable."""
        parameters = [p for stack in self._ready() for p in stack.flat_parameters()]
        with torch.enable_grad():
            value: Tensor = _ClosedForm.apply(self, *parameters)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def add_gradient_(self, lam: float, *, grad_scale: float = 1.0) -> Tensor:
        """Adds ``grad_scale · λ · ∇R`` to the trained parameters' gradients; frozen ones get none.

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
            if not parameter.requires_grad:  # the frozen A of LoRA-FA, for one
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            held.append(parameter.grad)
            added.append((gradient * (lam * grad_scale)).to(parameter.grad.dtype))
        if held:
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
        loose = math.fsum(parameter.moved() for parameter in self.coverage.loose)
        if energy == 0:
            return Movement(0.0, 0.0, 0.0, 0.0, 0.0, loose)
        value, inside, forwards, backwards = (
            part / energy for part in (value, inside, forwards, backwards)
        )
        return Movement(energy, value, inside, forwards, backwards, loose)

    @torch.no_grad()
    def aligned_share(self) -> float:
        """The share that the operator punishes of a move along dW itself, in [0, …).

        0 for an operator that leaves the aligned direction free; near 1 for one that is nearly
        plain norm decay. Weighted over modules by ``‖dW‖²``; off side.
        """
        punished = whole = 0.0
        for stack in self._ready():
            energy = torch.stack(
                [
                    t.factors.sigma[: used_rank(t, self.rank)].double().square()
                    for t in stack.targets
                ]
            )
            if self.operator in ("gram", "none"):
                punished += float(
                    (energy * (1 - stack.projection.weight.cpu().double()) ** 2).sum()
                )
            whole += float(energy.sum())
        return punished / whole

    def start_fingerprint(self) -> str:
        """A SHA-256 over the weights that U is measured from: names, shapes, dtypes and bytes.

        Of an adapter that starts at 0 only the names count, for A's random start is no part of U.
        """
        if self._start_sha256 is None:  # the starts never change, and a large model has many bytes
            digest = hashlib.sha256()
            for target in sorted(self.coverage.targets, key=lambda t: t.label):
                digest.update(f"{target.label}\n".encode())
                for start in (target.start_b, target.start_a):
                    if start is None:
                        digest.update(b"zero\n")
                    else:
                        digest.update(f"{start.dtype} {tuple(start.shape)}\n".encode())
                        plain = start.detach().cpu().contiguous().flatten()
                        digest.update(plain.view(torch.uint8).numpy().data)
            self._start_sha256 = digest.hexdigest()
        return self._start_sha256

    def _total_along(self, updates: list[tuple[Tensor, Tensor | None]]) -> Tensor | None:
        if self.operator != "direction_global":
            return None
        parts = [
            operators.along(b, a, stack.projection).value.sum().cpu()
            for stack, (b, a) in zip(self._stacks, updates, strict=True)
        ]
        return torch.stack(parts).sum()

    def _ready(self) -> list[Stack]:
        """The stacks, made anew when the model has moved to another device or dtype."""
        now = tuple(
            (p.device, compute_dtype(p.dtype))
            for p in (target.parameters()[0] for target in self.coverage.targets)
        )
        if now != self._built_for:
            targets = self.coverage.targets
            self._stacks = build_stacks(targets, self.operator, self.rank, self.scaled)
            self._built_for = now
        return self._stacks


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
                (upstream.to(g.device, g.dtype) * g).to(dtype) if needed else None
                for g, dtype, needed in zip(
                    ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[1:], strict=True
                )
            ),
        )


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
        AnchorError: what is no anchor, an unknown operator or side, a rank that is no whole
            number or more than the anchor holds, a penalty that would vanish, or modules that do
            not match (see ``binding.cover``).
    """
    if not isinstance(getattr(anchor, "modules", None), Mapping):
        found = repr(str(anchor)) if isinstance(anchor, (str, PathLike)) else type(anchor).__name__
        raise AnchorError(
            f"the anchor given is {found}, which is no Anchor: open its file with "
            "anchortune.Anchor.load(path) first"
        )
    if operator not in OPERATORS:
        raise AnchorError(f"operator {operator!r} is unknown: choose one of {', '.join(OPERATORS)}")
    if side not in SIDES:
        raise AnchorError(f"side {side!r} is unknown: choose off or along")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise AnchorError(
            f"rank {rank!r} is not a whole number: leave it out to use all that the anchor holds"
        )
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
    if penalty.side == "along":
        return
    used = used_rank(target, penalty.rank)
    if penalty.operator == "subspace" and used >= d_out:
        raise AnchorError(
            f"operator 'subspace' at rank {used} keeps all {d_out} output directions of "
            f"{target.name!r} free, so its penalty vanishes: give a lower rank"
        )
    if penalty.operator == "subspace2" and used >= max(target.factors.shape):
        raise AnchorError(
            f"operator 'subspace2' at rank {used} keeps all {used} input and output directions of "
            f"{target.name!r} free, so its penalty vanishes: give a lower rank"
        )
