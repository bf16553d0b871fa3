"""Low-rank factors of a weight difference: dW = U diag(sigma) Vᵀ."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
