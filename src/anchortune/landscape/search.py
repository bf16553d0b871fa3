"""Where a model's basin ends, found with few places: outwards by doubling, then by halving.

A scan that doubles its α sees an edge at any scale; a rise and fall between two of its places it
does not see. The first place that is not inside (harmful, or babble) is then closed in on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from anchortune.maths.basin import Place, has_left, rate


def scan_of(first: float, last: float) -> list[float]:
    """|α| of the scan: ``first``, twice that, and so on; the last of them is ``last``.

    Args:
        first: above 0.
        last: above ``first``.
    """
    found = [first]
    while found[-1] * 2 < last * (1 - 1e-9):
        found.append(found[-1] * 2)
    return [*found, last]


def most_places(scan: Sequence[float], resolution: float) -> int:
    """The most places that one side can take, the start besides: where the first is outside."""

    def halvings(low: float, high: float) -> int:
        # The width shrinks by half each time, and the edge may lie anywhere above ``low``.
        width, count = high - low, 0
        while width > _floor(scan, resolution, low + width):
            width, count = width / 2, count + 1
        return count

    edges = zip([0.0, *scan], scan, strict=False)
    return max(place + halvings(low, high) for place, (low, high) in enumerate(edges, start=1))


def full_grid(scan: Sequence[float], resolution: float) -> int:
    """The places that a grid as fine as the search needs on one side, the start besides.

    Up to the first place of the scan steps of ``resolution`` times it, beyond it each step that
    share of its α.
    """
    inner = math.ceil(1 / resolution - 1e-9)
    outer = math.ceil(math.log(scan[-1] / scan[0]) / -math.log1p(-resolution) - 1e-9)
    return inner + outer


def search(
    measure: Callable[[float], Place],
    start: Place,
    *,
    sign: float,
    scan: Sequence[float],
    tolerance: float,
    resolution: float,
) -> list[Place]:
    """The places that were measured on one side, by rising |α|, the start first.

    Args:
        measure: what is found at α.
        start: at α = 0.
        sign: 1 or -1.
        scan: |α| going outwards, from ``scan_of``.
        tolerance: τ.
        resolution: the last place inside and the first that is not lie no further apart than this
            share of the latter's α (of the scan's first place, where that is larger).

    Raises:
        ValueError: nothing is scored at a place.
    """
    before = rate(start.items)
    found = [start]

    def inside(alpha: float) -> bool:
        place = measure(sign * alpha)
        found.append(place)
        return place.coherent and not has_left(rate(place.items), before, tolerance)

    low = 0.0
    for high in scan:
        if not inside(high):
            break
        low = high
    else:
        return found
    while high - low > _floor(scan, resolution, high) * (1 + 1e-9):
        middle = (low + high) / 2
        if inside(middle):
            low = middle
        else:
            high = middle
    return sorted(found, key=lambda place: abs(place.alpha))


def _floor(scan: Sequence[float], resolution: float, edge: float) -> float:
    return resolution * max(edge, scan[0])
