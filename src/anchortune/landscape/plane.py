"""The plane of two directions, and where an update lies over it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import match_name
from anchortune.errors import AnchorError
from anchortune.landscape.directions import Direction, Noise, Part
from anchortune.landscape.perturb import Scale, lengths, weights_of
from anchortune.maths.lowrank import LowRank

#: What can be projected: factors, or a whole difference of one module, (d_out, d_in).
Change = LowRank | Tensor
_PARALLEL = 1e-9


class Spot(NamedTuple):
    """Where an update lies.

    Attributes:
        x: α along the first direction.
        y: α along the second.
        off_plane: share of the update's squared length that lies off the plane, in [0, 1].
    """

    x: float
    y: float
    off_plane: float


@dataclass(frozen=True)
class Plane:
    """All of ``α_x d̂_x + α_y d̂_y``.

    Attributes:
        x: the first direction.
        y: the second.
        x_lengths: by module what makes d̂ of it, see ``perturb.lengths``.
        y_lengths: likewise.
        gram: ``⟨d̂_x, d̂_x⟩``, ``⟨d̂_x, d̂_y⟩``, ``⟨d̂_y, d̂_y⟩``.
    """

    x: Direction
    y: Direction
    x_lengths: Mapping[str, float]
    y_lengths: Mapping[str, float]
    gram: tuple[float, float, float]

    @property
    def cosine(self) -> float:
        """Between both directions, over all modules as one vector."""
        xx, xy, yy = self.gram
        return max(-1.0, min(1.0, xy / math.sqrt(xx * yy)))

    def project(self, update: Mapping[str, Change] | Iterable[tuple[str, Change]]) -> Spot:
        """The point of the plane nearest to an update, in the α of both directions.

        Both solve ``G α = (⟨U, d̂_x⟩, ⟨U, d̂_y⟩)``, so that directions which are not at right
        angles share out what they have in common. Modules that neither direction moves are off
        the plane.

        Args:
            update: U by module, in any order; pairs are taken one at a time, so that a whole
                difference need not be held.

        Raises:
            AnchorError: no module of it is one of the directions', or shapes differ.
        """
        pairs = update.items() if isinstance(update, Mapping) else update
        along = [0.0, 0.0]
        whole, met = 0.0, False
        for name, change in pairs:
            whole += inner(change, change)
            for axis, (direction, held) in enumerate(self._axes):
                key = match_name(name, held)
                if key is None:
                    continue
                part = direction.modules[key]
                if tuple(part.shape) != tuple(change.shape):
                    raise AnchorError(
                        f"module {name!r} is {' × '.join(map(str, change.shape))} in the update "
                        f"but {' × '.join(map(str, part.shape))} in direction {direction.name!r}: "
                        "they are not of one family."
                    )
                met = True
                along[axis] += held[key] * inner(change, part)
        if not met:
            raise AnchorError(
                f"no module of the update is one that {self.x.name!r} or {self.y.name!r} moves: "
                "they are not of one model."
            )
        xx, xy, yy = self.gram
        determinant = xx * yy - xy * xy
        x = (yy * along[0] - xy * along[1]) / determinant
        y = (xx * along[1] - xy * along[0]) / determinant
        caught = x * along[0] + y * along[1]
        off = 1 - caught / whole if whole else 0.0
        return Spot(x, y, min(1.0, max(0.0, off)))

    @property
    def _axes(self) -> tuple[tuple[Direction, Mapping[str, float]], ...]:
        return (self.x, self.x_lengths), (self.y, self.y_lengths)


def plane_of(model: nn.Module, x: Direction, y: Direction, scale: Scale = "layer") -> Plane:
    """The plane through a model where it is now, in the units in which ``moved`` moves it.

    Args:
        model: not moved.
        x: the first direction.
        y: the second.
        scale: as in ``moved``.

    Raises:
        AnchorError: a direction does not fit the model, or both are one line.
    """
    first, second = weights_of(model, x), weights_of(model, y)
    ours, theirs = lengths(x, first, scale), lengths(y, second, scale)
    places = {weight.place: key for key, weight in second.items()}
    xy = 0.0
    for key, weight in first.items():
        other = places.get(weight.place)
        if other is not None:
            both = inner(x.modules[key], y.modules[other])
            xy += ours[key] * theirs[other] * both
    xx, yy = (
        sum((held[key] * direction.modules[key].norm()) ** 2 for key in held)
        for direction, held in ((x, ours), (y, theirs))
    )
    if xx * yy - xy * xy <= _PARALLEL * xx * yy:
        raise AnchorError(
            f"directions {x.name!r} and {y.name!r} are one line (cosine "
            f"{xy / math.sqrt(xx * yy):.6f}), and a map needs two."
        )
    return Plane(x, y, ours, theirs, (xx, xy, yy))


def inner(a: Part | Change, b: Part | Change) -> float:
    """``⟨A, B⟩ = Σ A ⊙ B`` in float64; of two matrices of low rank from their factors.

    Raises:
        ValueError: the shapes differ.
    """
    if tuple(a.shape) != tuple(b.shape):
        raise ValueError(f"shapes differ: {tuple(a.shape)} and {tuple(b.shape)}")
    if isinstance(a, LowRank):
        return _with_factors(a, b)
    if isinstance(b, LowRank):
        return _with_factors(b, a)
    one, other = _dense(a), _dense(b)
    rows = max(1, (1 << 20) // max(1, one.shape[1]))
    pairs = zip(torch.split(one, rows), torch.split(other.to(one.device), rows), strict=True)
    return math.fsum(float((u.double() * v.double()).sum()) for u, v in pairs)


def _with_factors(a: LowRank, b: Part | Change) -> float:
    left, right = a.left.double(), a.right.double()
    if isinstance(b, LowRank):
        return float(((left.T @ b.left.to(left)) * (right @ b.right.to(right).T)).sum())
    return float((left * (_dense(b).to(left) @ right.T)).sum())


def _dense(matrix: Noise | Tensor) -> Tensor:
    return matrix.dense() if isinstance(matrix, Noise) else matrix.detach()
