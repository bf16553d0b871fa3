"""How far two low-rank matrices lie apart, each figure beside its value by chance.

For ``A = U_a diag(a) V_aᵀ`` and ``B = U_b diag(b) V_bᵀ`` of one shape, from their factors alone.
What is said of "chance" is of a ``B`` turned at random on both sides, independently of ``A``.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from anchortune.maths.factors import Factors

_DRAWS = 16
_SEED = 0


def inner(a: Factors, b: Factors) -> float:
    """``⟨A, B⟩ = Σᵢⱼ aᵢ bⱼ (U_aᵀU_b)ᵢⱼ (V_aᵀV_b)ᵢⱼ`` of the kept parts, in float64.

    Raises:
        ValueError: the shapes differ.
    """
    _same_shape(a, b)
    left = a.left.double().T @ b.left.double()
    right = a.right.double().T @ b.right.double()
    return float(a.sigma.double() @ (left * right) @ b.sigma.double())


def energy(a: Factors) -> float:
    """``‖A‖_F²`` of the kept part, in float64."""
    return float(a.sigma.double().square().sum())


def cosine(a: Factors, b: Factors) -> float:
    """``⟨A, B⟩ / (‖A‖_F ‖B‖_F)`` of the kept parts, in [-1, 1]."""
    size = math.sqrt(energy(a) * energy(b))
    return max(-1.0, min(1.0, inner(a, b) / size))


def chance_cosine(entries: int) -> float:
    """``√(2/(πN))``, the mean of ``|cosine|`` for two random directions of ``entries`` numbers."""
    return math.sqrt(2.0 / (math.pi * entries))


def share_inside(basis: Tensor, vectors: Tensor, sigma: Tensor) -> float:
    """``‖P B‖_F² / ‖B‖_F²``, the share of B's energy inside a subspace.

    By chance it is k / d.

    Args:
        basis: of the subspace, orthonormal, shape (d, k).
        vectors: B's singular vectors of that side, shape (d, r).
        sigma: B's singular values, shape (r,).
    """
    caught = (basis.double().T @ vectors.double()).square().sum(0)
    weights = sigma.double().square()
    return min(1.0, float((caught * weights).sum() / weights.sum()))


def principal_angles(a: Tensor, b: Tensor) -> Tensor:
    """The angles between two subspaces in radians, ascending, float64, shape (min(k_a, k_b),).

    Cosines are the singular values of ``AᵀB``, sines those of ``(I - AAᵀ)B``; from both, small and
    right angles alike come out to full precision (Björck and Golub 1973).

    Args:
        a: orthonormal columns, shape (d, k_a).
        b: orthonormal columns, shape (d, k_b).
    """
    wide, narrow = (a, b) if a.shape[1] >= b.shape[1] else (b, a)
    # Vectors from a float32 file are orthonormal to 1e-7 only.
    wide, _ = torch.linalg.qr(wide.double())
    narrow, _ = torch.linalg.qr(narrow.double())
    both = wide.T @ narrow
    cosines = torch.linalg.svdvals(both)
    sines = torch.linalg.svdvals(narrow - wide @ both).flip(0)
    return torch.atan2(sines, cosines)


@functools.cache
def random_angles(d: int, k_a: int, k_b: int, draws: int = _DRAWS, seed: int = _SEED) -> Tensor:
    """The mean principal angles of two random subspaces, radians, shape (min(k_a, k_b),).

    The mean over ``draws`` random subspaces against a fixed one, from a seed of its own: no closed
    form is in use for each single angle. Of all together ``E Σ cos² = k_a k_b / d``.

    Args:
        d: dimensions of the space.
        k_a: of one subspace.
        k_b: of the other.
        draws: that are averaged.
        seed: of the draws.
    """
    generator = torch.Generator().manual_seed(seed)
    fixed, moved = max(k_a, k_b), min(k_a, k_b)
    found = []
    for _ in range(draws):
        probe = torch.randn(d, moved, generator=generator, dtype=torch.float64)
        basis, _ = torch.linalg.qr(probe)
        # Against the span of the first axes: only the angles to it matter, and it is as random.
        cosines = torch.linalg.svdvals(basis[:fixed])
        sines = torch.linalg.svdvals(basis[fixed:]) if d > fixed else torch.zeros(0)
        sines = torch.cat([sines, sines.new_zeros(moved - sines.numel())]).flip(0)
        found.append(torch.atan2(sines.double(), cosines))
    return torch.stack(found).mean(0)


def _same_shape(a: Factors, b: Factors) -> None:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
