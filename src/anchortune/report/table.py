"""What was measured as a table: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from anchortune.evaluation.results import Difference, Figure, Measure, Results
from anchortune.maths.stats import Rate
from anchortune.report.view import ordered
from anchortune.report.words import (
    MISSING,
    best_p,
    markdown_cell,
    measure_name,
    p_value,
    points,
    points_span,
    shown,
    span,
)
from anchortune.report.words import percent as bare_percent

_NAME_WIDTH = 20
"""Longer names of models go on in the next line."""


def percent(rate: Rate) -> str:
    """``12.3 % (8.1–18.0)``: the rate and its 95 % interval, the only place that uses percent."""
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def results_table(results: Results) -> Group:
    """An evaluation for a terminal 80 columns wide: a small table for each measure, sets in order.

    A line for each model: its rate, and its difference to the reference, each with a 95 % interval;
    p is Holm's. A figure that is not there is shown as missing.
    """
    rows = [
        (measure, [_row(results, measure, model) for model in results.models])
        for _, measures in ordered(results.measures)
        for measure in measures
    ]
    heads = ["", "rate", "95 %", "n", "points", "95 %", "p"]
    every = [heads, *(row for _, block in rows for row in block)]
    widths = [max(map(cell_len, column)) for column in zip(*every, strict=True)]
    widths[0] = min(widths[0], _NAME_WIDTH)
    title = f"{_table_title(results)}\nn: scored + unscored"
    if len(results.models) > 1:
        title += f"; points: difference to {shown(results.reference)}"
    parts: list[RenderableType] = [Text(title), _grid([heads], widths, "dim")]
    for measure, block in rows:
        parts.append(Text(shown(f"\n{measure_name(measure)}, {measure.set}"), style="bold"))
        parts.append(_grid(block, widths))
    return Group(*parts)


def _row(results: Results, measure: Measure, model: str) -> list[str]:
    figure, gap = measure.figures.get(model), measure.differences.get(model)
    cells = [shown(model), *[MISSING] * 3, *([""] * 3)]
    if figure is not None:
        n = f"{figure.n} + {figure.unscored}" if figure.unscored else str(figure.n)
        cells[1:4] = [bare_percent(figure.value), span(figure.low, figure.high), n]
    if gap is not None:
        p = p_value(best_p(gap))
        cells[4:] = [points(gap.value), points_span(gap.low, gap.high), p]
    elif model != results.reference:
        cells[4:] = [MISSING] * 3
    return cells


def _grid(rows: Sequence[Sequence[str]], widths: Sequence[int], style: str = "") -> Table:
    table = Table.grid()  # no padding: rich before 14.3 adds the last column's to its width
    for at, width in enumerate(widths):
        if at:
            table.add_column(width=width + 2, justify="right", style=style, no_wrap=True)
        else:
            table.add_column(width=width, overflow="fold", style=style)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def results_markdown(results: Results) -> str:
    """The same table as Markdown."""
    columns = ["measure", "n", *_columns(results)]
    rows = [
        [label, n, *(" ".join((cell[0], *(f"({part})" for part in cell[1:]))) for cell in cells)]
        for label, n, cells in _lines(results)
    ]
    heads = [" | ".join(map(markdown_cell, columns)), "---|---:" + "|---:" * (len(columns) - 2)]
    lines = [f"| {heads[0]} |", f"|{heads[1]}|"]
    lines += [f"| {' | '.join(map(markdown_cell, row))} |" for row in rows]
    return f"{_table_title(results)}\n\n" + "\n".join(lines) + "\n"


def _table_title(results: Results) -> str:
    part = {"report": "report part", "selection": "selection part", "all": "whole sets"}
    return f"Rates in per cent, 95 % intervals, {part[results.part]}"


def _columns(results: Results) -> list[str]:
    columns = []
    for name in results.models:
        columns.append(name)
        if name != results.reference:
            columns.append(f"− {results.reference}")
    return columns


def _lines(results: Results) -> list[tuple[str, str, list[tuple[str, ...]]]]:
    """For each measure its label, its n, and a cell for each column: value, then what is below."""
    lines = []
    for name, measures in ordered(results.measures):
        for measure in measures:
            cells: list[tuple[str, ...]] = []
            for model in results.models:
                cells.append(_rate_cell(measure.figures.get(model)))
                if model != results.reference:
                    cells.append(_gap_cell(measure.differences.get(model)))
            lines.append((f"{measure_name(measure)}, {name}", _sizes(measure), cells))
    return lines


def _sizes(measure: Measure) -> str:
    """How many answers were scored: ``130``, or ``128–130`` where models differ."""
    sizes = sorted({figure.n for figure in measure.figures.values()})
    return MISSING if not sizes else "–".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))


def _rate_cell(figure: Figure | None) -> tuple[str, ...]:
    if figure is None:
        return (MISSING,)
    cell = (bare_percent(figure.value), span(figure.low, figure.high))
    return (*cell, f"{figure.unscored} unscored") if figure.unscored else cell


def _gap_cell(gap: Difference | None) -> tuple[str, ...]:
    if gap is None:
        return (MISSING,)
    p = p_value(best_p(gap))
    return points(gap.value), points_span(gap.low, gap.high), f"p {p}"
