"""Intervals for rates."""

from __future__ import annotations

import math
from typing import NamedTuple


class Rate(NamedTuple):
    """A share of n with its 95 % interval; all fractions in [0, 1]."""

    value: float
    n: int
    low: float
    high: float


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> Rate:
    """The rate ``successes / n`` with Wilson's score interval (E. B. Wilson, 1927).

    Args:
        successes: how many of n.
        n: how many in all, at least 1.
        z: the normal quantile; the default gives 95 %.

    Raises:
        ValueError: n is below 1, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Rate(share, n, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))
