"""Matrices of low rank kept as two factors: sums, scales, products and the best smaller rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchortune.maths.factors import Factors, factorise_product


@dataclass(frozen=True)
class LowRank:
    """The matrix ``left @ right``, which is never formed.

    Attributes:
        left: shape (d_out, r).
        right: shape (r, d_in).
    """

    left: Tensor
    right: Tensor

    def __post_init__(self) -> None:
        if self.left.dim() != 2 or self.right.dim() != 2:
            raise ValueError("both factors have two dimensions")
        if self.left.shape[1] != self.right.shape[0]:
            raise ValueError(
                f"inner sizes differ: {tuple(self.left.shape)} and {tuple(self.right.shape)}"
            )

    @property
    def rank(self) -> int:
        """r, an upper bound on the matrix's own rank."""
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.left.shape[0], self.right.shape[1]

    def scaled(self, factor: float) -> LowRank:
        """``factor`` times the matrix."""
        return LowRank(self.left * factor, self.right)

    def factors(self, rank: int | None = None) -> Factors:
        """Its singular triplets, by two thin QRs; see ``factorise_product``."""
        return factorise_product(self.left, self.right, rank=rank)

    def compressed(self, rank: int | None = None) -> LowRank:
        """The same matrix (or the nearest of at most ``rank``) with no more columns than it needs.

        The singular values are shared out evenly over both factors; float32.
        """
        found = self.factors(rank)
        root = found.sigma.sqrt()
        return LowRank(found.left * root, root[:, None] * found.right.T)

    def norm(self) -> float:
        """``‖left · right‖_F``, in float64."""
        left, right = self.left.double(), self.right.double()
        value = ((left.T @ left) * (right @ right.T)).sum()
        return float(value.clamp(min=0).sqrt())


#: A change of a model's weights, by module name as its checkpoint has it; scales are folded in.
Update = dict[str, LowRank]


def add(parts: Sequence[LowRank]) -> LowRank:
    """Their sum, the factors side by side: rank adds up.

    Raises:
        ValueError: none is given, or shapes differ.
    """
    if not parts:
        raise ValueError("nothing to add up")
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"shapes differ: {', '.join(str(part.shape) for part in parts)}")
    dtype = torch.promote_types(parts[0].left.dtype, parts[-1].left.dtype)
    return LowRank(
        torch.cat([part.left.to(dtype) for part in parts], dim=1),
        torch.cat([part.right.to(dtype) for part in parts]),
    )


def add_updates(first: Update, second: Update) -> Update:
    """Module by module; a module that only one of them has is taken as it is."""
    found = {**first, **second}
    for name in first.keys() & second.keys():
        found[name] = add([first[name], second[name]])
    return dict(sorted(found.items()))
