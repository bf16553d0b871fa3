"""An update beside an anchor: the factors of each module, matched by name, never by place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from anchortune.anchor.binding import match_name
from anchortune.errors import AnchorError
from anchortune.maths.factors import Factors
from anchortune.maths.lowrank import LowRank, Update

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor


def given(anchor: Anchor | None, name: str, which: str = "an anchor") -> Anchor:
    """The anchor that a method was given.

    Raises:
        AnchorError: it was given none.
    """
    if anchor is None:
        raise AnchorError(f"{name} needs {which} and was given none.")
    return anchor


def factors_of(anchor: Anchor, key: str, rank: int | None = None) -> Factors:
    """The factors of ``dW`` of one of the anchor's modules, left of d_out rows and right of d_in.

    A Conv1D weight is stored (d_in, d_out), and so are its factors in the anchor; here they are
    turned round, as s·B·A of an adapter is.

    Args:
        anchor: the anchor.
        key: its name of the module.
        rank: take this many singular triplets; None takes all.

    Raises:
        AnchorError: the anchor was cut off below ``rank``.
    """
    found = anchor.modules[key]
    if rank is not None and rank > found.rank and found.tail > 0:
        raise AnchorError(
            f"rank {rank} is asked for and the anchor holds {found.rank} directions of {key}; "
            "lower the rank, or build the anchor with a larger one."
        )
    if rank is not None and rank < found.rank:
        found = replace(
            found,
            left=found.left[:, :rank],
            sigma=found.sigma[:rank],
            right=found.right[:, :rank],
            tail=float(found.sigma[rank]),
        )
    if anchor.metadata.modules[key].transposed:
        found = replace(found, left=found.right, right=found.left)
    return found


def matched(update: Update, anchor: Anchor) -> dict[str, str]:
    """The anchor's name of every module of an update, by the update's.

    Raises:
        AnchorError: the anchor lacks some, or a name could be several of the anchor's.
    """
    pairs = {name: match_name(name, anchor.modules) for name in update}
    missing = [name for name, key in pairs.items() if key is None]
    if missing:
        raise AnchorError(
            f"{len(missing)} of {len(update)} modules of the adapter are not in the anchor "
            f"({named(missing)}): build it with target_modules that cover the adapter's."
        )
    return {name: key for name, key in pairs.items() if key is not None}


def factors_beside(update: Update, anchor: Anchor, rank: int | None = None) -> dict[str, Factors]:
    """The anchor's factors for every module of an update, by the update's names.

    Raises:
        AnchorError: the anchor lacks some, shapes differ, or it was cut off below ``rank``.
    """
    found = {}
    for name, key in matched(update, anchor).items():
        factors = found[name] = factors_of(anchor, key, rank)
        if factors.shape != update[name].shape:
            one, other = (f"{a} × {b}" for a, b in (update[name].shape, factors.shape))
            raise AnchorError(
                f"module {name} is {one} in the adapter but {other} in the anchor: they are not "
                "of one family"
                "; build it from the adapter's own model."
            )
    return found


def vector_of(anchor: Anchor, factor: float, rank: int | None = None) -> Update:
    """``factor · U_k diag(σ_k) V_kᵀ`` of every module of the anchor, under its names.

    Raises:
        AnchorError: the anchor was cut off below ``rank``.
    """
    found = {}
    for key in anchor.modules:
        factors = factors_of(anchor, key, rank)
        found[key] = LowRank(factors.left * (factor * factors.sigma), factors.right.T)
    return found


def renamed(vector: Update, update: Update, anchor: Anchor) -> Update:
    """``vector``, which is under the anchor's names, under those of ``update``.

    Modules that the update has not are named alike: the leading components in which both differ
    are the same for all.

    Raises:
        AnchorError: the anchor lacks a module of the update, or the names cannot be told.
    """
    pairs = matched(update, anchor)
    names = {key: name for name, key in pairs.items()}
    heads = {_heads(name, key) for name, key in pairs.items()}
    found = {}
    for key, part in vector.items():
        if key in names:
            found[names[key]] = part
            continue
        if len(heads) > 1:
            raise AnchorError(
                f"what the adapter would call {key} of the anchor cannot be told from the names "
                "that both hold; build an anchor of just the adapter's modules."
            )
        ours, theirs = next(iter(heads), ("", ""))
        if not key.startswith(theirs):
            raise AnchorError(
                f"{key} of the anchor does not begin with {theirs!r} as its other modules do; "
                "build an anchor of just the adapter's modules."
            )
        found[ours + key.removeprefix(theirs)] = part
    return found


def named(names: Iterable[str], most: int = 4) -> str:
    """The first names, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more


def _heads(name: str, key: str) -> tuple[str, str]:
    """The leading components of two names up to where they are the same to the end."""
    ours, theirs = name.split("."), key.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop()
        theirs.pop()
    return "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)
