"""The AsFT penalty bound to a live model: a scalar for autograd, or gradients added in place.

Modules of one shape are stacked, so a step costs a few batched products of width r and k whatever
the number of layers. All of it is computed in float32 (float64 for float64 weights) outside of
autocast; gradients are added in the dtype that the parameters' gradients have.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from anchortune.anchor.asked import check_anchor, check_inside, check_rank, check_settings
from anchortune.anchor.binding import Coverage, cover, renewed
from anchortune.anchor.moment import Moment
from anchortune.anchor.stacks import Pair, Stack, build_stacks, is_dtensor, is_sharded, used_rank
from anchortune.errors import AnchorError
from anchortune.maths.operators import Gradients, LayerWeights, Operator, Side

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.sharded import Shards
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
        self._built_for: list[tuple[torch.device, torch.dtype, type]] = []
        self._shards: Shards | None = None
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
        moment = self.moment()
        value = moment.value(side)
        if torch.is_inference_mode_enabled():  # autograd can hold nothing there
            return value
        held = [part for result in moment.results(side) for part in result]
        moment.let_go()
        with torch.enable_grad():
            found: Tensor = _ClosedForm.apply(  # type: ignore[no-untyped-call]
                moment, len(held), value, *held, *moment.parameters()
            )
        return found

    @torch.no_grad()
    def moment(self) -> Moment:
        """The update as it is now, for ``movement`` and ``add_gradient_`` to share."""
        pairs = self._ready()
        if self._shards is None:
            return Moment(self.operator, self._stacks, pairs)
        return self._shards.moment(self.operator, pairs)

    def _ready(self) -> list[Pair]:
        """The parameters as they are now, and the stacks made for where they are."""
        pairs = [target.parameters() for target in self.coverage.targets]
        now = [(b.device, b.dtype, type(b)) for b, _ in pairs]
        if now != self._built_for:  # the model has moved to another device or dtype, or to shards
            self._build(is_sharded(pairs))
            self._built_for = now
        return pairs

    def _build(self, sharded: bool) -> None:
        targets = self.coverage.targets
        settings = (self.operator, self.rank, self.scaled, self.layer_weights)
        if sharded:
            from anchortune.anchor.sharded import Shards

            if any(target.start_b is not None for target in targets):
                self.start_fingerprint()  # while what it needs may still be whole
            self._shards = Shards(targets, *settings)
            targets[:], self._stacks = self._shards.targets, self._shards.stacks
        elif self._shards is not None or any(is_dtensor(t.start_b) for t in targets):
            raise AnchorError(
                "the model's sharded weights are gathered at the moment: call the penalty before "
                "the forward pass or after backward"
            )
        else:
            self._stacks = build_stacks(targets, *settings)

    def terms(self, lam: float, lam_inside: float) -> tuple[Side, float, float]:
        """(side, free, times) by which a ``Moment`` gives ``λ·∇R + λ_inside·∇R_inside``.

        Raises:
            AnchorError: there is a lam_inside, and the operator and side have no such part.
        """
        if not lam_inside:
            return self.side, 0.0, lam
        check_inside(self.operator, self.side, lam_inside)
        return (self.side, lam_inside / lam, lam) if lam else ("along", 0.0, lam_inside)

    @torch.no_grad()
    def add_gradient_(
        self,
        lam: float,
        *,
        lam_inside: float = 0.0,
        grad_scale: float = 1.0,
        moment: Moment | None = None,
    ) -> Tensor:
        """Adds ``grad_scale · (λ·∇R + λ_inside·∇R_inside)`` to the trained parameters' gradients.

        Frozen parameters get none.

        Args:
            lam: λ.
            lam_inside: the weight of what the off side leaves free (see ``inside``), at least 0.
            grad_scale: what the task's gradients were multiplied by (a GradScaler's scale).
            moment: the update as it is, where the caller has read it already.

        Returns:
            The value of what λ multiplies, ``R + (lam_inside / lam)·R_inside`` (for a λ of 0, of
            what lam_inside multiplies), without the scale: a detached scalar on the device.

        Raises:
            AnchorError: there is a lam_inside, and the operator and side have no such part.
        """
        side, free, times = self.terms(lam, lam_inside)
        moment = moment or self.moment()
        held: list[Tensor] = []
        added: list[Tensor] = []
        gradients = moment.gradients(side, free, times * grad_scale)
        for parameter, gradient in zip(moment.parameters(), gradients, strict=True):
            if not parameter.requires_grad:  # the frozen A of LoRA-FA, for one
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            held.append(parameter.grad)
            added.append(gradient)
        if held:
            torch._foreach_add_(held, added)
        return moment.value(side, free)

    @torch.no_grad()
    def movement(self, moment: Moment | None = None) -> Movement:
        """How far the model has moved by now and how that lies to the anchor.

        It is about the update alone: neither ``layer_weights`` nor a bounded free part change it.

        Args:
            moment: the update as it is, where the caller has read it already.
        """
        moment = moment or self.moment()
        value, energy, inside, forwards, backwards = map(
            math.fsum, zip(*moment.sums(self.side), strict=True)
        )
        if self._shards is None:
            loose = math.fsum(parameter.moved() for parameter in self.coverage.loose)
        else:
            loose = self._shards.moved(self.coverage.loose)
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
        self._ready()  # and no moment: a model that is only planned has no weights to read
        for stack in self._stacks:
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
        self._built_for = []

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
                        if is_dtensor(start):  # one at a time, and once
                            start = cast(Any, start).full_tensor()
                        plain = start.detach().cpu().contiguous().flatten()
                        digest.update(plain.view(torch.uint8).numpy().data)
            self._start_sha256 = digest.hexdigest()
        return self._start_sha256


class _ClosedForm(torch.autograd.Function):
    """R with its closed-form gradients, so that autograd never walks through the projection."""

    @staticmethod
    def forward(ctx: Any, moment: Moment, count: int, value: Tensor, *tensors: Tensor) -> Tensor:
        ctx.moment = moment
        ctx.save_for_backward(*tensors[:count])  # which frees them after backward
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        held = ctx.saved_tensors
        results = [Gradients(*held[at : at + 3]) for at in range(0, len(held), 3)]
        gradients = ctx.moment.spread(results, upstream)
        before = 3 + len(held)
        needed = ctx.needs_input_grad[before:]
        return (
            *(None,) * before,
            *(g if asked else None for g, asked in zip(gradients, needed, strict=True)),
        )


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
