"""Whether a penalty can be what it is asked to be: each refusal one sentence, before any work."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Any

from anchortune.anchor.binding import Target
from anchortune.anchor.stacks import used_rank
from anchortune.errors import AnchorError
from anchortune.maths.operators import (
    LAYER_WEIGHTS,
    OPERATORS,
    PROJECTORS,
    SIDES,
    LayerWeights,
    Operator,
    Side,
)


def check_anchor(anchor: Any) -> None:
    """Refuses what is no anchor, such as the path of one.

    Raises:
        AnchorError: naming what was given.
    """
    if not isinstance(getattr(anchor, "modules", None), Mapping):
        found = repr(str(anchor)) if isinstance(anchor, (str, PathLike)) else type(anchor).__name__
        raise AnchorError(
            f"the anchor given is {found}, which is no Anchor: open its file with "
            "anchortune.Anchor.load(path) first"
        )


def check_settings(
    operator: Operator, side: Side, rank: int | None, layer_weights: LayerWeights
) -> None:
    """Refuses settings of a penalty that are unknown or do not go together.

    Raises:
        AnchorError: naming the first.
    """
    if operator not in OPERATORS:
        raise AnchorError(f"operator {operator!r} is unknown: choose one of {', '.join(OPERATORS)}")
    if side not in SIDES:
        raise AnchorError(f"side {side!r} is unknown: choose off or along")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int)):
        raise AnchorError(
            f"rank {rank!r} is not a whole number: leave it out to use all that the anchor holds"
        )
    if rank is not None and rank < 1:
        raise AnchorError(f"rank {rank} is below 1: leave it out to use all that the anchor holds")
    if operator == "none" and side == "along":
        raise AnchorError("operator 'none' has no along side (its C is 0): use side='off'")
    if layer_weights not in LAYER_WEIGHTS:
        raise AnchorError(
            f"layer_weights {layer_weights!r} is unknown: choose one of {', '.join(LAYER_WEIGHTS)}"
        )
    if layer_weights != "none" and operator == "direction_global":
        raise AnchorError(
            "operator 'direction_global' is one vector over all modules, which layer_weights "
            "cannot weigh apart: take operator 'direction', or layer_weights 'none'"
        )


def check_inside(operator: Operator, side: Side, lam_inside: float = 1.0) -> None:
    """Refuses to bound what an operator and side leave free where that is no clean part.

    Args:
        operator: what the update is measured against.
        side: the part that is penalised.
        lam_inside: the weight that is asked for; of 0 nothing is asked.

    Raises:
        AnchorError: it is no number of at least 0, or there is no such part.
    """
    if isinstance(lam_inside, bool) or not isinstance(lam_inside, (int, float)):
        raise AnchorError(f"lam_inside is a number, not {lam_inside!r}: leave it out, or give one")
    if not math.isfinite(lam_inside) or lam_inside < 0:
        raise AnchorError(
            f"lam_inside is a number of at least 0, not {lam_inside!r}; give such a one"
        )
    if not lam_inside:
        return
    if side != "off":
        raise AnchorError(
            "lam_inside bounds what side 'off' leaves free, and side is 'along': leave it out"
        )
    if operator not in PROJECTORS:
        why = "has no inside (its C is 0)" if operator == "none" else "is no projection"
        raise AnchorError(
            f"operator {operator!r} {why}, so lam_inside has no part of the update to bound: take "
            f"one of {', '.join(PROJECTORS)}, or leave lam_inside out"
        )


def check_rank(target: Target, operator: Operator, side: Side, rank: int | None) -> None:
    """Refuses a rank that the anchor does not hold, or at which nothing would be punished.

    Raises:
        AnchorError: naming the module.
    """
    held = target.factors.rank
    d_out = target.factors.shape[1 if target.stored_transposed else 0]
    if rank is not None and rank > held and target.factors.tail > 0:
        raise AnchorError(
            f"rank {rank} is more than the {held} singular triplets that the anchor holds "
            f"of {target.name!r}: build it with a higher rank"
        )
    if side == "along":
        return
    used = used_rank(target, rank)
    if operator == "subspace" and used >= d_out:
        raise AnchorError(
            f"operator 'subspace' at rank {used} keeps all {d_out} output directions of "
            f"{target.name!r} free, so its penalty vanishes: give the penalty a lower "
            "rank (penalty.rank of a config, rank= in Python)"
        )
    if operator == "subspace2" and used >= max(target.factors.shape):
        raise AnchorError(
            f"operator 'subspace2' at rank {used} keeps all {used} input and output directions of "
            f"{target.name!r} free, so its penalty vanishes: give the penalty a lower "
            "rank (penalty.rank of a config, rank= in Python)"
        )
