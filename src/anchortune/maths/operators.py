"""The AsFT penalty in closed form: value and gradients, never forming a d × d matrix.

The penalty of one adapted module is ``‖(I − C)·X‖²_F`` (``side="off"``, eq. 4 of arXiv
2506.08473) or ``‖C·X‖²_F`` (``side="along"``), where ``X`` is the weights' update. For LoRA
``X = B·A``, with the scale ``s`` folded into ``B`` by the caller; for full-parameter training ``X``
itself is given and ``A`` is None. Every function takes a *stack* of n modules of one shape, so that
a model's layers are a few batched products and not a loop.

What ``off`` leaves free can be bounded too: ``‖(I − C)·X‖² + free·‖C·X‖²`` for the operators whose
C is an orthogonal projection (``PROJECTORS``), with ``free`` the weight of the inside part.

Shapes throughout: ``B (n, d_out, r)``, ``A (n, r, d_in)``, ``left (n, d_out, k)``,
``right (n, d_in, k)``, ``weight (n, k)``; values are ``(n,)``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Operator = Literal["gram", "subspace", "subspace2", "direction", "direction_global", "none"]
Side = Literal["off", "along"]
OPERATORS: tuple[Operator, ...] = get_args(Operator)
SIDES: tuple[Side, ...] = get_args(Side)
LayerWeights = Literal["none", "norm", "energy"]
LAYER_WEIGHTS: tuple[LayerWeights, ...] = get_args(LayerWeights)
PROJECTORS: tuple[Operator, ...] = ("subspace", "subspace2", "direction", "direction_global")
"""Operators for which ``‖X‖² = ‖(I − C)·X‖² + ‖C·X‖²``."""


class Projection(NamedTuple):
    """What an operator keeps of the anchor, for a stack of n modules.

    Attributes:
        left: left singular vectors, (n, d_out, k).
        right: right singular vectors, (n, d_in, k).
        weight: ``gram``, ``subspace``, ``subspace2``: the eigenvalues c of C; ``direction``:
            the singular values of the unit vector D; all (n, k).
    """

    left: Tensor
    right: Tensor
    weight: Tensor


class Gradients(NamedTuple):
    """Value and gradients of a penalty over a stack; ``a`` is None for full-parameter updates."""

    value: Tensor
    b: Tensor
    a: Tensor | None


class Shares(NamedTuple):
    """How a stack of updates lies to its anchor.

    Attributes:
        energy: ``‖X‖²_F``, (n,).
        inside: ``‖U_kᵀX‖²_F``, the part in the span of the left singular vectors, (n,).
        along: ``⟨X, D⟩``, signed, (n,): above 0 is forwards (more aligned), below is backwards.
    """

    energy: Tensor
    inside: Tensor
    along: Tensor


def eigenvalues(operator: Operator, sigma: Tensor, norm: Tensor) -> Tensor:
    """The weights of ``operator`` from singular values (n, k) and whole norms ``‖dW‖_F`` (n,).

    ``gram``: ``σ²/‖dW‖_F`` (the authors' code); ``subspace`` and ``subspace2``: 1;
    ``direction``: ``σ/‖σ‖``, renormalised so that D is a unit vector at any rank;
    ``direction_global``: the same with the norm taken over all modules of the stack, which the
    caller must divide further when there are several stacks.
    """
    if operator == "gram":
        return sigma.square() / norm.unsqueeze(-1)
    if operator in ("subspace", "subspace2"):
        return torch.ones_like(sigma)
    if operator == "direction":
        return sigma / sigma.square().sum(dim=-1, keepdim=True).sqrt()
    if operator == "direction_global":
        return sigma / sigma.square().sum().sqrt()
    return torch.zeros_like(sigma)


def module_weights(kind: LayerWeights, norms: Tensor) -> Tensor:
    """What each module's penalty is multiplied by: of mean 1, so that λ keeps its size.

    ``none``: 1; ``norm``: ``‖dW_m‖ / mean ‖dW‖``; ``energy``: ``‖dW_m‖² / mean ‖dW‖²``.

    Args:
        kind: one of ``LAYER_WEIGHTS``.
        norms: whole norms ``‖dW_m‖_F`` of all modules, (m,), above 0.
    """
    if kind == "none":
        return torch.ones_like(norms)
    share = norms / norms.max()  # squares of small numbers stay above 0
    share = share.square() if kind == "energy" else share
    return share / share.mean()


def weighted(gradients: Gradients, weights: Tensor) -> Gradients:
    """Value and gradients of each module's penalty times its weight, (n,)."""
    lift = weights[:, None, None]
    a = gradients.a
    return Gradients(gradients.value * weights, gradients.b * lift, None if a is None else a * lift)


def dot(left: Tensor, right: Tensor) -> Tensor:
    """``⟨left, right⟩`` of each pair of matrices in the stacks, (n,)."""
    return (left * right).sum(dim=(-2, -1))


def _product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, computed as its transpose where the result is taller than wide.

    BLAS takes up to six times as long to write many rows of r numbers as r long rows.
    """
    if left.shape[-2] > right.shape[-1]:
        return (right.mT @ left.mT).mT
    return left @ right


def _less(whole: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``whole − left @ right`` in one pass, laid out as ``_product`` does."""
    if left.shape[-2] > right.shape[-1]:
        return torch.baddbmm(whole.mT, right.mT, left.mT, alpha=-1).mT
    return torch.baddbmm(whole, left, right, alpha=-1)


def _lifted(b: Tensor, a: Tensor | None, inner: Tensor) -> Gradients:
    """Gradients of ``⟨bᵀ·b, A·Aᵀ⟩`` given ``inner = ∂/∂(b) / 2`` with A held, all through ``b``."""
    if a is None:
        return Gradients(b.square().sum(dim=(-2, -1)), 2 * inner, None)
    gram_b, gram_a = b.mT @ b, a @ a.mT
    return Gradients(dot(gram_b, gram_a), _product(inner, 2 * gram_a), (2 * gram_b) @ a)


def energy(b: Tensor, a: Tensor | None) -> Gradients:
    """``‖X‖²_F`` of each update: the penalty of the operator ``none``."""
    return _lifted(b, a, b)


def one_sided(
    b: Tensor,
    a: Tensor | None,
    projection: Projection,
    side: Side,
    free: float = 0.0,
    projector: bool = False,
) -> Gradients:
    """The penalty of ``gram`` and ``subspace``: ``C = U diag(c) Uᵀ`` acts on the left of X.

    ``free`` costs nothing: for a projector P, ``‖(I − P)X‖² + free·‖PX‖²`` is ``‖(I − C)X‖²`` with
    all eigenvalues of C at ``1 − √free``.

    With ``E = (I − C)B`` (or ``CB``): value ``⟨EᵀE, AAᵀ⟩``, gradients ``2(I − C)E·AAᵀ`` (or
    ``2CE·AAᵀ``) and ``2EᵀE·A``. Only ``UᵀB`` (k × r) is ever formed. Of a ``projector`` all
    eigenvalues are 1, so that ``(I − C)E = E``.
    """
    left, c = projection.left, projection.weight.unsqueeze(-1)
    inside = _product(left.mT, b)
    if side == "along":
        return _lifted_through(left, c * inside, c, a)
    if free:
        c = c * (1 - math.sqrt(free))
    if projector and not free:
        outside = _less(b, left, inside)
        return _lifted(outside, a, outside)
    outside = _less(b, left, c * inside)
    return _lifted(outside, a, _less(outside, left, c * (1 - c) * inside))


def _lifted_through(left: Tensor, kept: Tensor, c: Tensor, a: Tensor | None) -> Gradients:
    """The along side: E = U·kept has Gram matrix ``keptᵀkept``, so the value needs no d_out."""
    small = _lifted(kept, a, c * kept)
    return Gradients(small.value, _product(left, small.b), small.a)


def two_sided(
    b: Tensor, a: Tensor | None, projection: Projection, side: Side, free: float = 0.0
) -> Gradients:
    """The penalty of ``subspace2``: ``C(X) = U Uᵀ X V Vᵀ``.

    ``along`` is ``‖UᵀXV‖²``; ``off`` is summed from its two orthogonal parts,
    ``‖(I − UUᵀ)X‖² + ‖UᵀX(I − VVᵀ)‖²``, so that nothing cancels, and ``free·‖UᵀXV‖²``.
    """
    left, right = projection.left, projection.right
    inside = _product(left.mT, b)
    if a is None:
        core = inside @ right
        if side == "along":
            return Gradients(core.square().sum(dim=(-2, -1)), 2 * left @ core @ right.mT, None)
        kept = core @ right.mT
        outside, leak = _less(b, left, inside), inside - kept
        value = outside.square().sum(dim=(-2, -1)) + leak.square().sum(dim=(-2, -1))
        if free:
            value, leak = value + free * core.square().sum(dim=(-2, -1)), leak + free * kept
        return Gradients(value, 2 * (outside + left @ leak), None)
    core_a = a @ right
    gram_inside = inside.mT @ inside
    if side == "along":
        gram_core = core_a @ core_a.mT
        return Gradients(
            dot(gram_inside, gram_core),
            _product(left, 2 * inside @ gram_core),
            (2 * gram_inside @ core_a) @ right.mT,
        )
    outside, leak_a = _less(b, left, inside), _less(a, core_a, right.mT)
    gram_outside, gram_a, gram_leak = outside.mT @ outside, a @ a.mT, leak_a @ leak_a.mT
    if free:
        gram_leak = gram_leak + free * core_a @ core_a.mT
        leak_a = torch.baddbmm(leak_a, core_a, right.mT, alpha=free)
    return Gradients(
        dot(gram_outside, gram_a) + dot(gram_inside, gram_leak),
        _less(_product(outside, 2 * gram_a), left, -2 * inside @ gram_leak),
        torch.baddbmm((2 * gram_outside) @ a, 2 * gram_inside, leak_a),
    )


def along(b: Tensor, a: Tensor | None, projection: Projection) -> Gradients:
    """``⟨X, D⟩`` of each update with the unit vector ``D = U diag(weight) Vᵀ``; gradients."""
    left, right = projection.left, projection.right
    weight = projection.weight.unsqueeze(-1)
    inside = weight * _product(left.mT, b)
    if a is None:
        return Gradients(dot(inside.mT, right), left @ (weight * right.mT), None)
    core_a = weight * (a @ right).mT
    gradient_b = _product(left, core_a)
    return Gradients(dot(b, gradient_b), gradient_b, inside.mT @ right.mT)


def directional(
    b: Tensor,
    a: Tensor | None,
    projection: Projection,
    side: Side,
    total: Tensor | None = None,
    free: float = 0.0,
    inner: Gradients | None = None,
) -> Gradients:
    """The penalty of ``direction``: ``‖X‖²_F − (1 − free)·⟨X, D⟩²`` (off) or ``⟨X, D⟩²`` (along).

    Args:
        b: as in the module's docstring.
        a: likewise.
        projection: the unit vector D of each module, or of all modules together.
        side: the part to penalise.
        total: for one vector over all modules, ``Σ ⟨X, D⟩`` over every stack (a scalar). The
            values of the modules are then their shares, which sum to the whole penalty.
        free: the weight of the part along D on the off side.
        inner: ``along(b, a, projection)``, where the caller has it.
    """
    inner = inner or along(b, a, projection)
    return by_direction(inner, None if side == "along" else energy(b, a), total, free)


def by_direction(
    inner: Gradients, whole: Gradients | None, total: Tensor | None, free: float
) -> Gradients:
    """``directional`` from ``⟨X, D⟩`` and, of the off side, ``‖X‖²``.

    Args:
        inner: what ``along`` gives.
        whole: what ``energy`` gives; None on the along side.
        total: see ``directional``.
        free: see ``directional``.
    """
    factor = inner.value if total is None else total.expand_as(inner.value)
    value, lift = inner.value * factor, 2 * factor[:, None, None]
    if whole is None:
        return Gradients(value, lift * inner.b, None if inner.a is None else lift * inner.a)
    if free:
        value, lift = (1 - free) * value, (1 - free) * lift
    rest = whole.value - value
    if total is None:
        rest = rest.clamp(min=0)
    gradient_a = None
    if whole.a is not None and inner.a is not None:
        gradient_a = torch.addcmul(whole.a, lift, inner.a, value=-1)
    return Gradients(rest, torch.addcmul(whole.b, lift, inner.b, value=-1), gradient_a)


def penalty(
    operator: Operator,
    side: Side,
    b: Tensor,
    a: Tensor | None,
    projection: Projection,
    total: Tensor | None = None,
    free: float = 0.0,
    inner: Gradients | None = None,
) -> Gradients:
    """Value and gradients of the penalty that ``operator`` and ``side`` name.

    Args:
        operator: one of ``OPERATORS``.
        side: one of ``SIDES``; ``none`` has no along side (it is 0).
        b: ``s·B`` (n, d_out, r), or the full updates X (n, d_out, d_in).
        a: ``A`` (n, r, d_in), or None for full updates.
        projection: the anchor's part, with ``weight`` from ``eigenvalues``.
        total: see ``directional``.
        free: for the off side of one of ``PROJECTORS``: the weight, at least 0, of the part that
            is inside, of which ``off`` alone takes nothing.
        inner: see ``directional``.
    """
    if operator in ("gram", "subspace"):
        return one_sided(b, a, projection, side, free, projector=operator == "subspace")
    if operator == "subspace2":
        return two_sided(b, a, projection, side, free)
    if operator in ("direction", "direction_global"):
        return directional(b, a, projection, side, total, free, inner)
    if side == "along":
        zero = torch.zeros_like
        return Gradients(b.new_zeros(b.shape[0]), zero(b), None if a is None else zero(a))
    return energy(b, a)


def shares(b: Tensor, a: Tensor | None, left: Tensor, right: Tensor, unit: Tensor) -> Shares:
    """Energy, its part inside the left subspace, and ``⟨X, D⟩`` of each update.

    Args:
        b: as in the module's docstring.
        a: likewise.
        left: (n, d_out, k).
        right: (n, d_in, k).
        unit: singular values of the unit vector D of each module, (n, k).
    """
    inside = _product(left.mT, b)
    if a is None:
        return Shares(
            b.square().sum(dim=(-2, -1)),
            inside.square().sum(dim=(-2, -1)),
            dot(inside.mT, right * unit.unsqueeze(-2)),
        )
    gram_a = a @ a.mT
    return Shares(
        dot(b.mT @ b, gram_a),
        dot(inside.mT @ inside, gram_a),
        dot(inside.mT, (a @ right) * unit.unsqueeze(-2)),
    )
