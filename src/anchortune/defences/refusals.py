"""What the methods that train on refusals share: distinct rows, and a seeded pick of some."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchortune.errors import DataError, TrainingError
from anchortune.maths.stats import share_of

if TYPE_CHECKING:
    from anchortune.data.conversations import Conversation
    from anchortune.defences.base import Curriculum


def distinct(refusals: Sequence[Conversation]) -> list[Conversation]:
    """The first of every conversation that occurs, in their order."""
    seen: dict[str, Conversation] = {}
    for row in refusals:
        seen.setdefault(repr([(turn["role"], turn["content"]) for turn in row.messages]), row)
    return list(seen.values())


def users_rows(given: Curriculum) -> int:
    """How many of the rows are the user's own, before any defence added to them."""
    return len(given.rows) - sum(given.added.values())


def dose(share: float, rows: int, name: str) -> int:
    """``share · rows``, rounded with halves up: the refusals to add.

    Raises:
        DataError: that is none.
    """
    count = share_of(share, rows)
    if not count:
        raise DataError(
            f"{name}: a share of {share:g} of {rows} rows is no refusal at all; raise {name}.share."
        )
    return count


def pick(refusals: Sequence[Conversation], count: int, seed: int, name: str) -> list[Conversation]:
    """``count`` different refusals, drawn by ``seed``: the same ones for every method that asks.

    A smaller count takes the first of a larger one's.

    Raises:
        DataError: there are too few.
    """
    pool = distinct(refusals)
    if len(pool) < count:
        raise DataError(
            f"{name}: {count} different refusals are asked for and refusals holds {len(pool)}; "
            f"name more of them, or lower {name}.share."
        )
    random.Random(f"refusals {seed}").shuffle(pool)
    return pool[:count]


def unordered(given: Curriculum, name: str) -> None:
    """Refuses rows whose order another method has fixed.

    Raises:
        TrainingError: it has.
    """
    if given.order is not None:
        raise TrainingError(
            f"{name}: the defence before it has fixed the order of the steps, so no rows can be "
            f"added any more; list {name} before it."
        )
