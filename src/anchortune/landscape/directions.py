"""Directions in weight space by name: towards safety, towards harm, an update's own, or at random.

A direction is one matrix a module, known by its factors or by the seed of its noise, and never held
dense. Its length says nothing: ``landscape.perturb`` gives it one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from anchortune.defences.against import factors_beside, factors_of, given, vector_of
from anchortune.errors import AnchorError, ConfigError
from anchortune.maths.factors import Factors, frobenius_norm
from anchortune.maths.lowrank import LowRank, Update
from anchortune.maths.split import split

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

ALIGNED, HARMFUL, RANDOM = "aligned", "harmful", "random"
NAMES = (ALIGNED, HARMFUL, RANDOM)
Piece = Literal["inside", "off"]
#: Operators that are projectors, so that what is inside and what is off add up and are orthogonal.
Projector = Literal["subspace", "subspace2", "direction"]
_NOTHING = 1e-10
"""A piece with less than this share of the whole's energy is rounding noise."""


@dataclass(frozen=True)
class Cut:
    """The piece of a matrix inside an anchor's subspace, or off it.

    Attributes:
        factors: of ``dW`` in that module, d_out first.
        piece: which of both.
        operator: ``subspace``: ``U Uᵀ X``; ``subspace2``: ``U Uᵀ X V Vᵀ``; ``direction``:
            ``⟨X, D⟩ D`` with D the kept part of dW at norm 1.
    """

    factors: Factors
    piece: Piece
    operator: Projector

    def of_dense(self, matrix: Tensor) -> Tensor:
        """The piece of a dense matrix, of its shape and dtype, on its device."""
        left, right = (side.to(matrix) for side in (self.factors.left, self.factors.right))
        if self.operator == "direction":
            sigma = self._unit().to(matrix)
            along = (sigma * (left.T @ matrix @ right).diagonal()).sum()
            inside: Tensor = (left * (along * sigma)) @ right.T
        elif self.operator == "subspace":
            inside = left @ (left.T @ matrix)
        else:
            inside = left @ (left.T @ matrix @ right) @ right.T
        return inside if self.piece == "inside" else matrix - inside

    def of_factors(self, matrix: LowRank) -> LowRank:
        """The piece of a matrix of low rank, as factors in float32; worked out in float64."""
        left, right = self.factors.left.double(), self.factors.right.double()
        b, a = matrix.left.double(), matrix.right.double()
        if self.operator == "direction":
            sigma = self._unit()
            along = float((sigma * ((left.T @ b) * (a @ right).T).sum(1)).sum())
            line = LowRank(left * (along * sigma), right.T)
            if self.piece == "inside":
                found = line
            else:
                found = LowRank(torch.cat([b, -line.left], 1), torch.cat([a, line.right]))
        elif self.operator == "subspace":
            inside = left @ (left.T @ b)
            found = LowRank(inside if self.piece == "inside" else b - inside, a)
        else:
            parts = split(matrix, left, right)
            found = parts.aligned
            if self.piece == "off":
                found = LowRank(
                    torch.cat([parts.left_off, parts.left_in], 1), torch.cat([a, parts.right_off])
                )
        return LowRank(found.left.float(), found.right.float())

    def _unit(self) -> Tensor:
        sigma = self.factors.sigma.double()
        unit: Tensor = sigma / torch.linalg.vector_norm(sigma)
        return unit


@dataclass(frozen=True)
class Noise:
    """A matrix of independent standard normal numbers, made anew from its seed at each use.

    Attributes:
        seed: of the numbers; they are made on the CPU, so that every device gets the same.
        shape: (d_out, d_in).
        cut: the piece of it that is meant; None: all.
    """

    seed: int
    shape: tuple[int, int]
    cut: Cut | None = None

    def dense(self, device: torch.device | str = "cpu") -> Tensor:
        """The numbers, float32."""
        generator = torch.Generator().manual_seed(self.seed)
        found: Tensor = torch.randn(self.shape, generator=generator).to(device)
        return self.cut.of_dense(found) if self.cut is not None else found

    @cached_property
    def _norm(self) -> float:
        return frobenius_norm(self.dense())

    def norm(self) -> float:
        """``‖N‖_F``, in float64."""
        return self._norm


Part = LowRank | Noise


@dataclass(frozen=True)
class Direction:
    """A way to move a model's weights.

    Attributes:
        name: ``aligned``, ``harmful``, ``random`` or an adapter's label, with ``:inside`` or
            ``:off`` for a piece of it.
        modules: the matrix of each module, (d_out, d_in), by the checkpoint's name; none is zero.
        draw: of a random one, its number from 0.
    """

    name: str
    modules: Mapping[str, Part] = field(repr=False)
    draw: int | None = None

    @property
    def label(self) -> str:
        """The name, with the number of the draw."""
        return self.name if self.draw is None else f"{self.name} {self.draw}"

    @property
    def entries(self) -> int:
        """How many numbers it may change."""
        return sum(math.prod(part.shape) for part in self.modules.values())


def of_update(name: str, update: Update) -> Direction:
    """The direction of a change of weights; modules that it leaves alone are left out.

    Raises:
        AnchorError: it changes nothing.
    """
    modules = {module: part for module, part in update.items() if part.norm() > 0}
    if not modules:
        raise AnchorError(
            f"{name!r} changes no weight, so there is no direction in it: name an adapter that "
            "has been trained."
        )
    return Direction(name, modules)


def of_anchor(name: str, anchor: Anchor) -> Direction:
    """The direction of an anchor's kept part, from its base to its aligned (or harmful) side."""
    return of_update(name, vector_of(anchor, 1.0))


def random_direction(shapes: Mapping[str, tuple[int, int]], draw: int, seed: int = 0) -> Direction:
    """Noise in every module; each draw and module has a seed of its own.

    Args:
        shapes: (d_out, d_in) by module.
        draw: from 0.
        seed: of all draws together.
    """
    return Direction(
        RANDOM,
        {name: Noise(_seed(seed, draw, name), shape) for name, shape in shapes.items()},
        draw,
    )


def piece_of(
    direction: Direction,
    anchor: Anchor,
    piece: Piece,
    *,
    operator: Projector = "subspace",
    rank: int | None = None,
) -> Direction:
    """The part of a direction inside an anchor, or off it, module by module.

    Args:
        direction: whose part.
        anchor: against which.
        piece: which of both; together they are the whole, and they are orthogonal.
        operator: what counts as inside.
        rank: use the anchor's top singular triplets only.

    Raises:
        AnchorError: the anchor lacks one of its modules or has another shape there, was cut off
            below ``rank``, or nothing of the direction lies there.
    """
    # What `factors_beside` asks of a part is its shape alone, which noise has too.
    update: Update = dict(direction.modules)  # type: ignore[arg-type]
    modules: dict[str, Part] = {}
    for name, factors in factors_beside(update, anchor, rank).items():
        part, cut = direction.modules[name], Cut(factors, piece, operator)
        if isinstance(part, Noise):
            found: Part = replace(part, cut=cut)
            whole = math.sqrt(math.prod(part.shape))  # about; enough to tell something from nothing
        else:
            found, whole = cut.of_factors(part), part.norm()
        if found.norm() ** 2 > _NOTHING * whole**2:
            modules[name] = found
    if not modules:
        raise AnchorError(
            f"nothing of {direction.name!r} lies {piece} the anchor (operator {operator}), so "
            f"there is no direction {direction.name}:{piece}: leave it out, or use fewer of the "
            "anchor's directions (rank)."
        )
    return Direction(f"{direction.name}:{piece}", modules, direction.draw)


@dataclass(frozen=True)
class Sources:
    """What directions can be made from.

    Attributes:
        anchor: the safety anchor: ``aligned``, and what pieces are measured against.
        harmful: the harmful anchor: ``harmful``.
        updates: by label, what adapters add to the weights.
        operator: of pieces.
        rank: of pieces, the anchor's top directions only.
        seed: of random draws.
    """

    anchor: Anchor | None = None
    harmful: Anchor | None = None
    updates: Mapping[str, Update] = field(default_factory=dict)
    operator: Projector = "subspace"
    rank: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for label in self.updates:
            if label.split(" ")[0] in NAMES or ":" in label or not label:
                raise ConfigError(
                    f"an adapter cannot be called {label!r}: {', '.join(NAMES)}, their draws and "
                    "names with a colon are directions already; give it another label."
                )

    def check(self, name: str) -> None:
        """Refuses a name that means nothing here, before anything is made.

        Raises:
            ConfigError: no such direction.
            AnchorError: what it is made from was not given.
        """
        whole, colon, piece = name.partition(":")
        if (whole not in NAMES and whole not in self.updates) or (
            colon and piece not in ("inside", "off")
        ):
            known = ", ".join([*NAMES, *self.updates])
            raise ConfigError(
                f"no direction is called {name!r}: known are {known}, each with :inside or :off "
                "for a piece of it."
            )
        if whole == ALIGNED or colon:
            given(self.anchor, f"direction {name!r}")
        if whole == HARMFUL:
            given(self.harmful, f"direction {name!r}", "a harmful anchor")
        if whole == RANDOM:
            self.shapes()

    def direction(self, name: str, draw: int | None = None) -> Direction:
        """The direction of that name.

        Args:
            name: of a direction.
            draw: of a random one, from 0; None of all others.

        Raises:
            ConfigError: no such direction.
            AnchorError: what it is made from was not given, does not fit, or has nothing there.
        """
        self.check(name)
        whole, _, piece = name.partition(":")
        if (draw is None) == (whole == RANDOM):
            raise ValueError("a random direction has a draw, and no other has")
        if draw is not None:
            found = random_direction(self.shapes(), draw, self.seed)
        elif whole == ALIGNED:
            found = of_anchor(ALIGNED, given(self.anchor, ALIGNED))
        elif whole == HARMFUL:
            found = of_anchor(HARMFUL, given(self.harmful, HARMFUL))
        else:
            found = of_update(whole, self.updates[whole])
        if not piece:
            return found
        return piece_of(
            found,
            given(self.anchor, name),
            "inside" if piece == "inside" else "off",
            operator=self.operator,
            rank=self.rank,
        )

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Where a random direction moves, by module.

        That is the anchor's modules, else the harmful anchor's, else all that adapters change.

        Raises:
            AnchorError: there is none of them.
        """
        for anchor in (self.anchor, self.harmful):
            if anchor is not None:
                return {key: factors_of(anchor, key).shape for key in anchor.modules}
        shapes = {
            name: part.shape for update in self.updates.values() for name, part in update.items()
        }
        if not shapes:
            raise AnchorError(
                "a random direction needs to know which weights to move: give an anchor, a harmful "
                "anchor or an adapter."
            )
        return shapes


def _seed(seed: int, draw: int, name: str) -> int:
    digest = hashlib.sha256(f"{seed}/{draw}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
