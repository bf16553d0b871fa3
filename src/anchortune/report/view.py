"""What the page shows, as plain values: every figure already in words, every place in percent."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchortune.evaluation.coherence import BROKEN_SHARE
from anchortune.evaluation.results import Difference, Figure, Measure, Results
from anchortune.report.words import (
    KINDS,
    MISSING,
    best_p,
    is_shown,
    measure_name,
    number,
    p_value,
    percent,
    points,
    points_span,
    span,
)

COLOURS = 8
"""How many colours the page has for models; the style sheet names them c0 to c7."""
_BETTER = {"lower": "lower is better", "higher": "higher is better", "neither": ""}
_HASH_LENGTH = 12


@dataclass(frozen=True)
class Dot:
    """A value with its interval on a scale from 0 to 100."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gap:
    """A difference to the reference, in words and as a dot; 50 on the scale is no difference."""

    text: str
    interval: str
    p: str
    n: int
    verdict: str
    dot: Dot


@dataclass(frozen=True)
class Row:
    """One model's figure of one measure; ``dot`` is None where it has none."""

    model: str
    colour: int
    rate: str
    interval: str
    n: str
    unscored: int
    beside: list[tuple[str, bool]]
    dot: Dot | None
    gap: Gap | None


@dataclass(frozen=True)
class Block:
    """One measure of one set, a row for each model."""

    key: str
    title: str
    better: str
    note: str
    indicative: bool
    reference: float | None
    rows: list[Row]


@dataclass(frozen=True)
class Group:
    """The measures of one set."""

    title: str
    blocks: list[Block]


@dataclass(frozen=True)
class CategoryRow:
    """One category: for each model its colour, rate, count and dot, None where it has no answer."""

    name: str
    cells: list[tuple[int, str, str, Dot] | None]

    @property
    def dots(self) -> list[tuple[int, Dot]]:
        """The colour and dot of every model that has one."""
        return [(cell[0], cell[3]) for cell in self.cells if cell is not None]


@dataclass(frozen=True)
class Categories:
    """A measure by category."""

    title: str
    set: str
    rows: list[CategoryRow]


def colours(results: Results) -> dict[str, int]:
    """The colour of every model, the same throughout the page."""
    return {name: at % COLOURS for at, name in enumerate(results.models)}


def ordered(measures: Sequence[Measure]) -> list[tuple[str, list[Measure]]]:
    """Measures by set: sets with harm first, then refusals, skill last; so too within a set."""
    kinds = list(KINDS)
    by_set: dict[str, list[Measure]] = {}
    for measure in sorted(measures, key=lambda m: kinds.index(m.kind)):
        by_set.setdefault(measure.set, []).append(measure)

    def first(item: tuple[str, list[Measure]]) -> int:
        # Coherence is measured on every set and so says nothing of what the set is for.
        telling = [kinds.index(m.kind) for m in item[1] if m.kind != "coherence"]
        return min(telling, default=kinds.index("coherence"))

    return sorted(by_set.items(), key=first)


def groups(results: Results) -> list[Group]:
    """Every measure, by set."""
    scale = _gap_scale(results.measures)
    return [
        Group(name, [_block(results, measure, measures, scale) for measure in measures])
        for name, measures in ordered(results.measures)
    ]


def _gap_scale(measures: Sequence[Measure]) -> float:
    """The largest distance from zero that a difference's interval reaches, up to whole tenths."""
    ends = [abs(e) for m in measures for d in m.differences.values() for e in (d.low, d.high)]
    return min(1.0, -(-max(ends, default=0.1) * 10 // 1) / 10) or 0.1


def _block(results: Results, measure: Measure, of_set: Sequence[Measure], scale: float) -> Block:
    place = colours(results)
    rows = []
    for model in results.models:
        figure = measure.figures.get(model)
        gap = measure.differences.get(model)
        rows.append(
            Row(
                model=model,
                colour=place[model],
                rate=percent(figure.value) if figure else MISSING,
                interval=span(figure.low, figure.high) if figure else MISSING,
                n=number(figure.n) if figure else MISSING,
                unscored=figure.unscored if figure else 0,
                beside=_beside(of_set, model) if measure.kind == "harm" else [],
                dot=_dot(figure) if figure else None,
                gap=_gap(gap, measure.better, scale) if gap else None,
            )
        )
    anchor = measure.figures.get(results.reference)
    return Block(
        key=measure.key,
        title=measure_name(measure, mark=False),
        better=_BETTER[measure.better],
        note=measure.note,
        indicative=measure.indicative,
        reference=100 * anchor.value if anchor else None,
        rows=rows,
    )


def _beside(of_set: Sequence[Measure], model: str) -> list[tuple[str, bool]]:
    """What a harmful score must be read with, each with whether it takes the score's worth.

    These are refusals and coherence on the same set.
    """
    words = {"refusal": "refuses", "coherence": "coherent"}
    return [
        (
            f"{words[m.kind]} {percent(m.figures[model].value)}",
            m.kind == "coherence" and m.figures[model].value <= 1 - BROKEN_SHARE,
        )
        for m in of_set
        if m.kind in words and model in m.figures
    ]


def _dot(figure: Figure) -> Dot:
    return Dot(100 * figure.value, 100 * figure.low, 100 * figure.high)


def _gap(gap: Difference, better: str, scale: float) -> Gap:
    def place(fraction: float) -> float:
        return 50 + 50 * max(-1.0, min(1.0, fraction / scale))

    if not is_shown(gap):
        verdict = "not shown"
    elif better == "neither":
        verdict = "differs"
    else:
        verdict = "better" if (gap.value > 0) == (better == "higher") else "worse"
    p = p_value(best_p(gap))
    return Gap(
        text=points(gap.value),
        interval=points_span(gap.low, gap.high),
        p=p + (" (uncorrected)" if gap.p_holm is None else ""),
        n=gap.n,
        verdict=verdict,
        dot=Dot(place(gap.value), place(gap.low), place(gap.high)),
    )


def categories(results: Results) -> list[Categories]:
    """Measures that were counted by category, largest categories first."""
    place = colours(results)
    found = []
    for _, measures in ordered(results.measures):
        for measure in measures:
            rows = []
            for name, figures in measure.categories.items():
                cells = [
                    (place[m], percent(f.value), f"{span(f.low, f.high)}, n {f.n}", _dot(f))
                    if (f := figures.get(m))
                    else None
                    for m in results.models
                ]
                size = max((f.n for f in figures.values()), default=0)
                rows.append((-size, CategoryRow(name, cells)))
            if rows:
                rows.sort(key=lambda row: (row[0], row[1].name))
                found.append(
                    Categories(measure_name(measure), measure.set, [row for _, row in rows])
                )
    return found


def arms(results: Results) -> list[tuple[str, list[tuple[str, int, str, str, str]]]]:
    """By measure: each arm's name, seeds, mean, spread over seeds and clustered interval."""
    return [
        (
            f"{measure_name(measure)}, {measure.set}",
            [
                (
                    name,
                    arm.seeds,
                    percent(arm.mean),
                    MISSING if arm.sd is None else points(arm.sd).lstrip("+"),
                    span(arm.low, arm.high),
                )
                for name, arm in measure.arms.items()
            ],
        )
        for _, measures in ordered(results.measures)
        for measure in measures
        if measure.arms
    ]


def facts(value: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """Nested plain values as lines: a dotted key, a short text, and the whole text.

    Hashes are cut to their beginning; what is None or empty is left out.
    """
    if isinstance(value, Mapping):
        return [
            fact
            for key, item in value.items()
            for fact in facts(item, f"{prefix}.{key}" if prefix else str(key))
        ]
    if isinstance(value, list | tuple):
        if all(not isinstance(item, Mapping | list | tuple) for item in value):
            value = ", ".join(number(item) for item in value) or None
        else:
            return [
                fact
                for at, item in enumerate(value, start=1)
                for fact in facts(item, f"{prefix} {at}".strip())
            ]
    if value is None or value == "":
        return []
    text = number(value)
    return [(_label(prefix), short(text), text)]


def _label(key: str) -> str:
    """A key as a reader would write it."""
    if (rate := re.fullmatch(r"recall_at_(\d+)_fpr", key)) is not None:
        return f"recall at {rate[1]} % false positives"
    words = {"auc": "AUC", "lam": "λ", "n": "n", "sha256": "SHA-256"}
    return " ".join(words.get(word, word) for word in key.split("_"))


def short(text: str) -> str:
    """A hash as its first digits; anything else unchanged."""
    digits = text.removeprefix("sha256:")
    if len(digits) >= 32 and all(c in "0123456789abcdef" for c in digits):
        return digits[:_HASH_LENGTH] + "…"
    return text


def grid(value: Any) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Figures by source as a table: columns and rows; None where the value is of another shape.

    Taken are a mapping of mappings (source -> figures) and a list of mappings with a ``source``.
    """
    if isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
        if not all("source" in item for item in value):
            return None
        value = {
            str(item["source"]): {k: v for k, v in item.items() if k != "source"} for item in value
        }
    if not isinstance(value, Mapping) or not value:
        return None
    if not all(isinstance(item, Mapping) for item in value.values()):
        return None
    columns = list(dict.fromkeys(str(key) for item in value.values() for key in item))
    flat = [cell for item in value.values() for cell in item.values()]
    if any(isinstance(cell, Mapping | list) for cell in flat):
        return None
    rows = [(str(k), [number(item.get(c)) for c in columns]) for k, item in value.items()]
    return [_label(column) for column in columns], rows
