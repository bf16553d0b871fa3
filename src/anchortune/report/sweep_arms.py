"""The arms of a sweep's picture: lines and points with their rates, and which none beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anchortune.report.sweep_grid import Grid, Key, row_name
from anchortune.report.sweep_stats import Estimate, Spec, estimate


@dataclass(frozen=True)
class Point:
    """One cell: its label on the plot's axis, and its rates in the order of the measures."""

    at: str | None
    rates: tuple[Estimate, ...]


@dataclass(frozen=True)
class Arm:
    """One line or point of a plot.

    Attributes:
        name: for people.
        points: along the axis; one of an arm that does not have it.
        flat: whether it lacks the axis, and so is the same at each of its values.
        untrained: whether it is a model before fine-tuning.
    """

    name: str
    points: tuple[Point, ...]
    flat: bool
    untrained: bool


def arms_of(
    grid: Grid, specs: Sequence[Spec], columns: Sequence[str | None], series: Sequence[str]
) -> list[Arm]:
    """The lines of a plot; cells without a verdict for every measure are left out."""
    names = _arm_names(grid, series)
    arms = []
    for row in grid.row_keys:
        groups = {at: grid.group(row, at) for at in columns}
        flat = not any(grid.column in run.labels for group in groups.values() for run in group.runs)
        points = []
        for at, group in groups.items():
            rates = [estimate(group, spec) for spec in specs]
            known = tuple(rate for rate in rates if rate is not None)
            if len(known) == len(specs):
                points.append(Point(at, known))
        untrained = any(group.untrained for group in groups.values())
        if points:
            kept = tuple(points[:1] if flat else points)
            arms.append(Arm(names[row], kept, flat, untrained))
    return arms


def _arm_names(grid: Grid, series: Sequence[str]) -> dict[Key, str]:
    """Short names: without the defence where the series' own labels tell the arms apart."""
    short = {}
    for row in grid.row_keys:
        own = [
            label
            for axis, label in zip(grid.rows, row, strict=True)
            if axis in series and label is not None
        ]
        short[row] = "/".join(own) or row_name(row)
    twice = {name for name in short.values() if list(short.values()).count(name) > 1}
    return {row: row_name(row) if name in twice else name for row, name in short.items()}


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, gain) pairs those that no other one beats on both, by rising gain."""
    kept = [
        one
        for one in points
        if not any(o[0] <= one[0] and o[1] >= one[1] and o != one for o in points)
    ]
    return sorted(set(kept), key=lambda one: (one[1], one[0]))


def frontier_of(arms: Sequence[Arm], specs: Sequence[Spec]) -> list[tuple[float, float]]:
    """The frontier of two measures' rates over all points of trained arms, whichever way is better.

    Returns:
        Rates of the first and of the second measure.
    """
    up, right = (1 if spec.less_is_better else -1 for spec in specs)
    points = [
        (up * point.rates[0].value, -right * point.rates[1].value)
        for arm in arms
        if not arm.untrained
        for point in arm.points
    ]
    return [(up * cost, -right * gain) for cost, gain in frontier(points)]


def far_off(arms: Sequence[Arm], crowded: bool) -> list[Arm]:
    """The arms of one point whose accuracy would squeeze the others into less than half the width.

    Args:
        arms: of a panel.
        crowded: whether trained arms may be meant too: those outside the narrowest range that
            holds three quarters of the trained arms' points. Else only models before fine-tuning.
    """
    points = [point.rates[1] for arm in arms if not arm.untrained for point in arm.points]
    if not points:
        return []
    if crowded:
        points.sort(key=lambda rate: rate.value)
        count = -(-3 * len(points) // 4)
        windows = [points[at : at + count] for at in range(len(points) - count + 1)]
        points = min(windows, key=lambda window: window[-1].value - window[0].value)
    low, high = min(one.low for one in points), max(one.high for one in points)
    return [
        arm
        for arm in arms
        if len(arm.points) == 1
        and (arm.untrained or crowded)
        and max(high, arm.points[0].rates[1].high) - min(low, arm.points[0].rates[1].low)
        > 2 * (high - low)
    ]
