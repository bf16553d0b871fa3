"""A run's log as line charts: loss, penalty and λ over the steps, a line for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchortune.report.words import number

WIDTH, HEIGHT = 1000.0, 300.0
"""The chart's own units; the page stretches them to its width."""
_MOST_POINTS = 400
_NAMES = {"loss": "Loss", "penalty": "Penalty", "lam": "λ", "probe_fall": "Probe's fall, nats"}


@dataclass(frozen=True)
class Line:
    """One model's curve, broken where a value is no number.

    Attributes:
        model: whose.
        pieces: the ``points`` of an SVG polyline each.
        told: first and last value, in words.
    """

    model: str
    pieces: list[str]
    told: str


@dataclass(frozen=True)
class Chart:
    """One quantity over the steps.

    Attributes:
        title: what it is.
        log: whether the axis is logarithmic.
        top: the highest value, in words.
        bottom: the lowest value, in words.
        first: the first step.
        last: the last step.
        lines: by model.
    """

    title: str
    log: bool
    top: str
    bottom: str
    first: str
    last: str
    lines: list[Line]


def charts(curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Chart]:
    """A chart for each of loss, penalty, λ and the probe's fall that some model logged."""
    found = (_chart(key, curves) for key in _NAMES)
    return [chart for chart in found if chart is not None]


def _value(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _chart(key: str, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    series: dict[str, list[tuple[float, float | None]]] = {}
    for model, rows in curves.items():
        # The probe does not look at every step: a row without the key breaks no line.
        logged = [row for row in rows if key in row]
        pairs = [(s, _value(row, key)) for row in logged if (s := _value(row, "step")) is not None]
        if any(value is not None for _, value in pairs):
            series[model] = pairs
    values = [v for pairs in series.values() for _, v in pairs if v is not None]
    if not values:
        return None
    steps = [step for pairs in series.values() for step, _ in pairs]
    low, high = min(values), max(values)
    log = low > 0 and high / low > 100  # a penalty falls by orders of magnitude
    if not log:
        low = min(low, 0.0)  # so that a height can be read as a size

    def x(step: float) -> float:
        return WIDTH * (step - min(steps)) / ((max(steps) - min(steps)) or 1.0)

    def y(value: float) -> float:
        at, bottom, top = (math.log(v) if log else v for v in (value, low, high))
        return HEIGHT * (1 - (at - bottom) / ((top - bottom) or 1.0))

    lines = []
    for model, pairs in series.items():
        known = [v for _, v in pairs if v is not None]
        told = f"{number(known[0])} to {number(known[-1])}"
        lines.append(Line(model, _pieces(_thinned(pairs), x, y), told))
    return Chart(
        title=_NAMES[key],
        log=log,
        top=number(high),
        bottom=number(low),
        first=number(min(steps)),
        last=number(max(steps)),
        lines=lines,
    )


def _thinned(pairs: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most some hundreds of points, evenly taken, the last one always among them."""
    stride = -(-len(pairs) // _MOST_POINTS)
    kept = list(pairs[::stride])
    return kept if kept[-1] == pairs[-1] else [*kept, pairs[-1]]


def _pieces(pairs: Sequence[tuple[float, float | None]], x: Any, y: Any) -> list[str]:
    pieces: list[list[str]] = [[]]
    for step, value in pairs:
        if value is None:
            pieces.append([])
        else:
            pieces[-1].append(f"{x(step):.1f},{y(value):.1f}")
    return [" ".join(piece) for piece in pieces if piece]
