"""The AsFT penalty bound to a live model: a scalar for autograd, or gradients added in place.

Modules of one shape are stacked, so a step costs a few batched products of width r and k whatever
the number of layers. All of it is computed in float32 (float64 for float64 weights) outside of
autocast; gradients are added in the dtype that the parameters' gradients have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anchortune.anchor.asked import check_anchor, check_inside, check_rank, check_settings
from anchortune.anchor.binding import Coverage, cover, renewed
from anchortune.anchor.stacks import Stack, build_stacks, compute_dtype, used_rank
from anchortune.maths import operators
from anchortune.maths.operators import LayerWeights, Operator, Side

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.maths.factors import Factors

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
    With ``layer_weights`` each module's share of R is multiplied by its weight.

    Attributes:
        operator: what the update is measured against; see ``anchortune.maths.operators``.
        side: ``off`` or ``along``.
        scaled: whether ``U = s·B·A`` (True) or the authors' unscaled ``B·A`` (False).
        rank: the number of singular triplets used at most, None for all that the anchor has.
        layer_weights: by what a module's penalty is weighted; see ``operators.module_weights``.
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
        layer_weights: LayerWeights = "none",
    ) -> None:
        self.operator: Operator = operator
        self.side: Side = side
        self.scaled = scaled
        self.rank = rank
        self.layer_weights: LayerWeights = layer_weights
        self.coverage = coverage
        self._stacks: list[Stack] = []
        self._built_for: tuple[tuple[torch.device, torch.dtype], ...] = ()
        self._start_sha256: str | None = None

    @torch.no_grad()
    def __call__(self) -> Tensor:
        """R as a scalar tensor on the first adapted module's device, differentiable."""
        return self._differentiable(self.side)

    @torch.no_grad()
    def inside(self) -> Tensor:
        """``R_inside = Σ ‖C·U‖²``, what the off side leaves free, as a differentiable scalar.

        ``loss + lam * penalty() + lam_inside * penalty.inside()`` bounds the free part too.

        Raises:
            AnchorError: the operator and side have no such part.
        """
        check_inside(self.operator, self.side)
        return self._differentiable("along")

    def _differentiable(self, side: Side) -> Tensor:
        parameters = [p for stack in self._ready() for p in stack.flat_parameters()]
        with torch.enable_grad():
            value: Tensor = _ClosedForm.apply(self, side, *parameters)  # type: ignore[no-untyped-call]
        return value

    @torch.no_grad()
    def add_gradient_(
        self, lam: float, *, lam_inside: float = 0.0, grad_scale: float = 1.0
    ) -> Tensor:
        """Adds ``grad_scale · (λ·∇R + λ_inside·∇R_inside)`` to the trained parameters' gradients.

        Frozen parameters get none.

        Args:
            lam: λ.
            lam_inside: the weight of what the off side leaves free (see ``inside``), at least 0.
            grad_scale: what the task's gradients were multiplied by (a GradScaler's scale).

        Returns:
            The value of what λ multiplies, ``R + (lam_inside / lam)·R_inside`` (for a λ of 0, of
            what lam_inside multiplies), without the scale: a detached scalar on the device.

        Raises:
            AnchorError: there is a lam_inside, and the operator and side have no such part.
        """
        side, free = self.side, 0.0
        if lam_inside:
            check_inside(self.operator, self.side, lam_inside)
            if lam:
                free = lam_inside / lam
            else:
                side, lam = "along", lam_inside
        value, gradients = self.value_and_gradients(side, free)
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
    def value_and_gradients(
        self, side: Side | None = None, free: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        """R and its gradients, one for each bound parameter, in the computation's dtype.

        Args:
            side: take this side; None: the penalty's own.
            free: on the off side, the weight of the part that is inside.
        """
        side = side or self.side
        stacks = self._ready()
        with _no_autocast(stacks[0].scale.device):
            updates = [stack.updates() for stack in stacks]
            total = self._total_along(updates)
            value = stacks[0].scale.new_zeros(())
            gradients: list[Tensor] = []
            for stack, (b, a) in zip(stacks, updates, strict=True):
                here = None if total is None else total.to(b.device, b.dtype)
                result = operators.penalty(self.operator, side, b, a, stack.projection, here, free)
                if stack.weights is not None:
                    result = operators.weighted(result, stack.weights)
                value = value + result.value.sum().to(value.device, value.dtype)
                gradients.extend(stack.to_parameters(result))
        return value, gradients

    @torch.no_grad()
    def movement(self) -> Movement:
        """How far the model has moved by now and how that lies to the anchor.

        It is about the update alone: neither ``layer_weights`` nor a bounded free part change it.
        """
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

    def measure_against(self, modules: Mapping[str, Factors]) -> None:
        """Takes other factors from now on; the weights that U is measured from stay.

        Args:
            modules: of every bound module, by its name; in the shape of the model's weight.

        Raises:
            AnchorError: one is missing, of another shape or nothing, or its rank will not do.
        """
        targets = [renewed(target, modules) for target in self.coverage.targets]
        for target in targets:
            check_rank(target, self.operator, self.side, self.rank)
        self.coverage.targets[:] = targets
        self._built_for = ()

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
            self._stacks = build_stacks(
                targets, self.operator, self.rank, self.scaled, self.layer_weights
            )
            self._built_for = now
        return self._stacks


class _ClosedForm(torch.autograd.Function):
    """R with its closed-form gradients, so that autograd never walks through the projection."""

    @staticmethod
    def forward(ctx: Any, penalty: Penalty, side: Side, *parameters: Tensor) -> Tensor:
        value, gradients = penalty.value_and_gradients(side)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [p.dtype for p in parameters]
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return (
            None,
            None,
            *(
                (upstream.to(g.device, g.dtype) * g).to(dtype) if needed else None
                for g, dtype, needed in zip(
                    ctx.saved_tensors, ctx.dtypes, ctx.needs_input_grad[2:], strict=True
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
    layer_weights: LayerWeights = "none",
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
        layer_weights: weigh each module's penalty by its ``‖dW‖`` (``norm``) or ``‖dW‖²``
            (``energy``) over the mean of all modules'; ``none`` weighs all alike.

    Raises:
        AnchorError: what is no anchor, an unknown operator, side or weighting, a rank that is no
            whole number or more than the anchor holds, a penalty that would vanish, or modules
            that do not match (see ``binding.cover``).
    """
    check_anchor(anchor)
    check_settings(operator, side, rank, layer_weights)
    coverage = cover(model, anchor.modules)
    penalty = Penalty(
        coverage,
        operator=operator,
        side=side,
        scaled=scaled,
        rank=rank,
        layer_weights=layer_weights,
    )
    for target in coverage.targets:
        check_rank(target, operator, side, rank)
    return penalty
