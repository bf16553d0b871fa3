"""How an update lies to a direction and its subspaces, from factors; nothing dense is made.

With ``D = Σ σᵢ uᵢvᵢᵀ`` and ``P = UᵀX``: inside the output subspace lies ``‖P‖²``, inside both
``‖P V‖²``, and along D ``⟨X, D⟩ / ‖D‖ = Σ σᵢ (P V)ᵢᵢ / ‖σ‖``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anchortune.maths.factors import Factors, frobenius_norm
from anchortune.maths.lowrank import LowRank


class Lie(NamedTuple):
    """Energies of an update X, in float64.

    Attributes:
        energy: ``‖X‖²_F``.
        along: ``⟨X, D⟩ / ‖D‖``, with its sign: a length, not an energy.
        inside: ``‖UᵀX‖²``, in the output subspace.
        both: ``‖UᵀXV‖²``, in both subspaces.
    """

    energy: float
    along: float
    inside: float
    both: float


def lie(update: LowRank | Tensor, direction: Factors) -> Lie:
    """How ``update`` lies to the kept part of ``direction``.

    Args:
        update: X, of shape (d_out, d_in), dense or as factors.
        direction: D, of that shape.

    Raises:
        ValueError: the shapes differ.
    """
    if tuple(update.shape) != direction.shape:
        raise ValueError(f"shapes differ: {tuple(update.shape)} and {direction.shape}")
    left, right = direction.left.double(), direction.right.double()
    sigma = direction.sigma.double()
    if isinstance(update, LowRank):
        energy = update.norm() ** 2
        b, a = left.T @ update.left.double(), update.right.double()
        inside = float(((b.T @ b) * (a @ a.T)).sum().clamp(min=0))
        core = b @ (a @ right)
    else:
        energy = frobenius_norm(update) ** 2
        projected = left.T.to(update.dtype) @ update
        inside = frobenius_norm(projected) ** 2
        core = projected.double() @ right
    return Lie(
        energy=energy,
        along=float(core.diagonal() @ sigma / torch.linalg.vector_norm(sigma)),
        inside=min(inside, energy),
        both=min(float(core.square().sum()), energy),
    )
