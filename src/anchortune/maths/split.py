"""An update split by the two subspaces of dW into four orthogonal parts, none of them ever dense.

With ``P_U = U Uᵀ`` and ``P_V = V Vᵀ`` every X is the sum of ``P_U X P_V`` (aligned),
``P_U X (I − P_V)`` and ``(I − P_U) X P_V`` (one-sided), and ``(I − P_U) X (I − P_V)`` (outside).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anchortune.maths.lowrank import LowRank


class Energies(NamedTuple):
    """``‖part‖²_F`` of the four parts; they add up to ``‖X‖²_F``."""

    aligned: float
    left_only: float
    right_only: float
    outside: float

    @property
    def one_sided(self) -> float:
        """Of both one-sided parts together."""
        return self.left_only + self.right_only

    @property
    def total(self) -> float:
        """``‖X‖²_F``."""
        return sum(self)


class Shrinkage(NamedTuple):
    """γ of CSULoRA: what a part's energy costs, in units of the energy of a change."""

    one_sided: float
    outside: float


@dataclass(frozen=True)
class Split:
    """``X = (left_in + left_off) · (right_in + right_off)``, in float64.

    Attributes:
        left_in: ``P_U B``, shape (d_out, r).
        left_off: ``(I − P_U) B``.
        right_in: ``A P_V``, shape (r, d_in).
        right_off: ``A (I − P_V)``.
    """

    left_in: Tensor
    left_off: Tensor
    right_in: Tensor
    right_off: Tensor

    @property
    def aligned(self) -> LowRank:
        """``P_U X P_V``."""
        return LowRank(self.left_in, self.right_in)

    @property
    def left_only(self) -> LowRank:
        """``P_U X (I − P_V)``: what comes out lies in the subspace, what goes in does not."""
        return LowRank(self.left_in, self.right_off)

    @property
    def right_only(self) -> LowRank:
        """``(I − P_U) X P_V``."""
        return LowRank(self.left_off, self.right_in)

    @property
    def outside(self) -> LowRank:
        """``(I − P_U) X (I − P_V)``."""
        return LowRank(self.left_off, self.right_off)

    def energies(self) -> Energies:
        """Of the four parts, from r × r Gram matrices."""
        lefts = [left.T @ left for left in (self.left_in, self.left_off)]
        rights = [right @ right.T for right in (self.right_in, self.right_off)]
        return Energies(*(float((a * b).sum().clamp(min=0)) for a in lefts for b in rights))

    def weighted(self, one_sided: float, outside: float) -> LowRank:
        """``aligned + one_sided·(left_only + right_only) + outside·outside part``, of rank ≤ 2r."""
        return LowRank(
            torch.cat([self.left_in, self.left_off], dim=1),
            torch.cat(
                [
                    self.right_in + one_sided * self.right_off,
                    one_sided * self.right_in + outside * self.right_off,
                ]
            ),
        )


def split(update: LowRank, left: Tensor, right: Tensor) -> Split:
    """The parts of an update against the subspaces of dW's factors.

    Args:
        update: X, of shape (d_out, d_in) and rank r.
        left: U, orthonormal columns, shape (d_out, k).
        right: V, orthonormal columns, shape (d_in, k).

    Raises:
        ValueError: shapes do not fit.
    """
    if (left.shape[0], right.shape[0]) != update.shape:
        raise ValueError(
            f"subspaces of {left.shape[0]} and {right.shape[0]} dimensions, and an update of "
            f"{update.shape[0]} × {update.shape[1]}"
        )
    b, a = update.left.double(), update.right.double()
    u, v = left.to(b), right.to(a)
    left_in, right_in = u @ (u.T @ b), (a @ v) @ v.T
    return Split(left_in, b - left_in, right_in, a - right_in)


def relative_shrinkage(energies: Energies, strength: float = 1.0) -> Shrinkage:
    """γ of each part: ``strength`` times the part's share of the update's energy.

    The paper (arXiv 2605.30640) sets γ by the parts' relative energy. That both one-sided parts
    share one γ is its three-way split; the share of the whole as the measure, and ``strength``, are
    ours, for the paper's own constants were not at hand. At strength 1 no part is ever more than
    halved; as strength grows, the result tends to ``P_U X P_V``.
    """
    if not energies.total:
        return Shrinkage(0.0, 0.0)
    scale = strength / energies.total
    return Shrinkage(scale * energies.one_sided, scale * energies.outside)


def closest(parts: Split, gamma: Shrinkage) -> LowRank:
    """The minimiser of ``‖Y − X‖² + γ₁‖one-sided part of Y‖² + γ₂‖outside part of Y‖²``.

    The parts are orthogonal, so each is met by itself: ``y = x / (1 + γ)``, and the aligned part
    stays. Rank at most 2r and at most what it needs; float32.

    Args:
        parts: of X.
        gamma: both at least 0.
    """
    return parts.weighted(1 / (1 + gamma.one_sided), 1 / (1 + gamma.outside)).compressed()
