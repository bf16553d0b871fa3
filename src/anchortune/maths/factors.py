"""Low-rank factors of a weight difference, dW = U diag(sigma) Vᵀ, and what they tell about it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anchortune.maths.lanczos import OVERSAMPLE, Triplets, leading_triplets

EXACT_MIN_DIM = 512
"""Up to this smaller side a dense difference goes through an exact SVD in float64."""
ZERO_FRAC = 1e-6
"""Singular values below this share of the largest are rounding noise, and are dropped."""

_ROUNDING_FRAC = 2.0**-21
"""What a ``‖dW‖²`` made of norms in float32, and a ``Σσ²`` from products in it, are off by."""
Rank = int | Literal["full"] | None


@dataclass(frozen=True)
class Factors:
    """The top-k singular triplets of one module's ``dW`` (d_out × d_in), in float32.

    Attributes:
        left: ``U_k``, orthonormal columns, shape (d_out, k).
        sigma: singular values, descending, shape (k,).
        right: ``V_k``, orthonormal columns, shape (d_in, k).
        norm: ``‖dW‖_F`` of the whole difference, not of its rank-k part.
        tail: an upper bound on the first singular value left out; 0 where nothing was.
    """

    left: Tensor
    sigma: Tensor
    right: Tensor
    norm: float
    tail: float = 0.0

    @property
    def rank(self) -> int:
        """k, the number of triplets kept."""
        return self.sigma.numel()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[0]


def factorise_dense(
    delta: Tensor,
    rank: Rank = None,
    energy: float | None = None,
    *,
    norm: float | None = None,
    seed: int = 0,
) -> Factors:
    """The factors of a dense difference at a rank, at a share of its energy, or in full.

    With both ``rank`` and ``energy``: the fewest triplets that reach the share, at most ``rank``.
    Where the smaller side is at most `EXACT_MIN_DIM`, or a third of all triplets or more is asked
    for, the SVD is exact (float64, or float32 for larger matrices). Otherwise block Lanczos is run
    until it has settled, and until the share is met; its error is measured, not assumed (see
    ``tail`` in `_truncated`).

    Args:
        delta: ``dW``, shape (d_out, d_in), float32 or float64, finite; left unchanged.
        rank: how many triplets to keep at most; ``None`` or ``"full"`` keeps all.
        energy: the share of ``‖dW‖_F²`` to keep, in (0, 1]; ``None`` sets no such limit.
        norm: ``‖dW‖_F``, where it is known already.
        seed: of the random sketch; the same seed gives the same factors.

    Raises:
        ValueError: ``rank`` below 1 or ``energy`` outside (0, 1].
    """
    limit = _limit(rank, energy, min(delta.shape))
    if norm is None:
        norm = frobenius_norm(delta)
    smaller = min(delta.shape)
    if smaller <= EXACT_MIN_DIM:
        return _trim(*_svd(delta.double()), norm, limit, energy)
    if energy is not None or limit + OVERSAMPLE < smaller / 3:
        target = math.inf if energy is None else energy * norm**2
        found = leading_triplets(delta.float(), limit, target=target, most=smaller // 2, seed=seed)
        if found is not None:
            return _truncated(found, norm, limit, energy)
    return _trim(*_svd(delta), norm, limit, energy)


def factorise_product(
    left: Tensor, right: Tensor, scale: float = 1.0, rank: Rank = None, energy: float | None = None
) -> Factors:
    """The exact factors of ``scale · left · right`` without ever forming the product.

    Two thin QRs, ``left = Q_l R_l`` and ``rightᵀ = Q_r R_r``, leave an r × r core
    ``scale · R_l R_rᵀ`` whose SVD gives the triplets and whose norm is ``‖dW‖_F``; in float64.

    Args:
        left: LoRA's ``B``, shape (d_out, r).
        right: LoRA's ``A``, shape (r, d_in).
        scale: ``s``, alpha / r or alpha / sqrt(r).
        rank: as in `factorise_dense`.
        energy: as in `factorise_dense`.

    Raises:
        ValueError: ``rank`` below 1, ``energy`` outside (0, 1], or inner sizes that differ.
    """
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"inner sizes differ: {tuple(left.shape)} and {tuple(right.shape)}")
    limit = _limit(rank, energy, min(left.shape[0], right.shape[1], left.shape[1]))
    q_left, r_left = torch.linalg.qr(left.double())
    q_right, r_right = torch.linalg.qr(right.double().T)
    core = scale * (r_left @ r_right.T)
    u, sigma, v = _svd(core)
    norm = float(torch.linalg.vector_norm(core))
    return _trim(q_left @ u, sigma, q_right @ v, norm, limit, energy)


def frobenius_norm(matrix: Tensor) -> float:
    """``‖matrix‖_F``, summed in float64 over a few rows at a time, so that nothing is copied."""
    rows = max(1, (1 << 20) // max(1, matrix.shape[1]))
    parts = [
        float(torch.linalg.vector_norm(block, dtype=torch.float64))
        for block in torch.split(matrix, rows)
    ]
    return math.hypot(*parts)


def _limit(rank: Rank, energy: float | None, largest: int) -> int:
    """The most triplets that may be kept, after checking both settings."""
    if energy is not None and not 0.0 < energy <= 1.0:
        raise ValueError(f"energy is a share in (0, 1], got {energy}")
    if rank is None or rank == "full":
        return largest
    if rank < 1:
        raise ValueError(f"rank is at least 1, got {rank}")
    return min(rank, largest)


def _svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u, sigma, vh.T


def _count(sigma: Tensor, norm: float, limit: int, energy: float | None) -> int:
    """How many of the leading triplets to keep: at least one, none of them noise."""
    if norm == 0.0 or sigma.numel() == 0:
        return 0
    real = int((sigma > ZERO_FRAC * sigma[0]).sum())
    keep = min(limit, real)
    if energy is not None:
        shares = sigma.double().square().cumsum(0) / norm**2
        # The slack lets energy=1.0 stop at the last real triplet, not chase rounding.
        reached = int((shares < energy - 1e-9).sum()) + 1
        keep = min(keep, reached)
    return max(keep, 1)


def _trim(
    u: Tensor, sigma: Tensor, v: Tensor, norm: float, limit: int, energy: float | None
) -> Factors:
    """The kept part of an exact SVD; ``tail`` is the first singular value left out."""
    keep = _count(sigma, norm, limit, energy)
    real = int((sigma > ZERO_FRAC * sigma[0]).sum()) if keep else 0
    return Factors(
        left=u[:, :keep].float().contiguous(),
        sigma=sigma[:keep].float().contiguous(),
        right=v[:, :keep].float().contiguous(),
        norm=norm,
        tail=float(sigma[keep]) if keep < real else 0.0,
    )


def _truncated(found: Triplets, norm: float, limit: int, energy: float | None) -> Factors:
    """The kept part of triplets with ``dW V_k = U_k Σ_k``, and a bound on what they leave out.

    So ``R = dW - U_k Σ_k V_kᵀ = dW (I - V_k V_kᵀ)``, its energy is ``‖R‖_F² = ‖dW‖² - Σσ²``, and
    ``dW dWᵀ - U_k Σ_k² U_kᵀ`` is ``R Rᵀ`` and nothing else, converged or not. So ``tail = ‖R‖_F``
    bounds every singular value left out and ``‖C - C_k‖ <= tail² / ‖dW‖_F`` holds for ``gram``
    here as it does for an exact SVD. What float32 rounds away of ``‖dW‖²`` is counted as left out.
    """
    keep = _count(found.sigma, norm, limit, energy)
    residual = max(norm**2 - float(found.sigma[:keep].square().sum()), 0.0)
    return Factors(
        left=found.left[:, :keep].float().contiguous(),
        sigma=found.sigma[:keep].float(),
        right=found.right[:, :keep].float().contiguous(),
        norm=norm,
        tail=math.sqrt(residual + _ROUNDING_FRAC * norm**2),
    )


def _kept(factors: Factors) -> float:
    if factors.norm == 0.0:
        return 1.0
    return float(factors.sigma.double().square().sum()) / factors.norm**2


def kept_energy_frac(factors: Factors) -> float:
    """The share of ``‖dW‖_F²`` in the kept triplets, in [0, 1]: ``Σσ² / ‖dW‖_F²``."""
    return min(_kept(factors), 1.0)


def stable_rank(factors: Factors) -> float:
    """``‖dW‖_F² / σ₁²``, in [1, min(d_out, d_in)]: how many directions share the energy."""
    return max(factors.norm**2 / float(factors.sigma[0]) ** 2, 1.0)


def gram_eigenvalues(factors: Factors) -> Tensor:
    """The non-zero eigenvalues ``c = σ² / ‖dW‖_F`` of the ``gram`` operator, float64, (k,)."""
    return factors.sigma.double().square() / factors.norm


def gram_error_bound(factors: Factors) -> float:
    """The most by which truncation changes ``‖(I - C)X‖_F`` per unit of ``‖X‖_F``, for ``gram``.

    ``| ‖(I - C)X‖ - ‖(I - C_k)X‖ | <= ‖C - C_k‖ ‖X‖ <= (tail² / ‖dW‖_F) ‖X‖``.
    """
    return factors.tail**2 / factors.norm


def direction_cosine(factors: Factors) -> float:
    """The cosine between the renormalised ``D_k`` and the whole ``D``: ``sqrt(kept energy)``."""
    return math.sqrt(kept_energy_frac(factors))


def punishment_along(factors: Factors, operator: str) -> float:
    """``‖(I - C)D‖_F²`` for the unit update ``D = dW / ‖dW‖_F``, in units of ``‖D‖² = 1``.

    What truncation left out of ``C`` is punished in full. ``direction_global`` is judged here
    as one module by itself.

    Raises:
        ValueError: an operator that does not exist.
    """
    kept = kept_energy_frac(factors)
    if operator == "gram":
        shares = factors.sigma.double().square() / factors.norm**2
        spared = (1.0 - gram_eigenvalues(factors)).square()
        return float((spared * shares).sum()) + (1.0 - kept)
    if operator in ("subspace", "subspace2", "direction", "direction_global"):
        return 1.0 - kept
    if operator == "none":
        return 1.0
    raise ValueError(f"no operator {operator!r}")


def punishment_random(factors: Factors, operator: str) -> float:
    """The expected ``‖(I - C)X‖_F²`` of a random isotropic update ``X`` with ``‖X‖_F = 1``.

    For ``gram`` it is ``1 - (2 tr C - tr C²) / d_out``; for a projector the share of the
    dimensions that it leaves out.

    Raises:
        ValueError: an operator that does not exist.
    """
    d_out, d_in = factors.shape
    if operator == "gram":
        c = gram_eigenvalues(factors)
        return 1.0 - float((2.0 * c - c.square()).sum()) / d_out
    if operator == "subspace":
        return 1.0 - factors.rank / d_out
    if operator == "subspace2":
        return 1.0 - factors.rank**2 / (d_out * d_in)
    if operator in ("direction", "direction_global"):
        return 1.0 - 1.0 / (d_out * d_in)
    if operator == "none":
        return 1.0
    raise ValueError(f"no operator {operator!r}")
