"""Measured rates as a table: for a terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.table import Table

from anchortune.maths.stats import Rate


def percent(rate: Rate) -> str:
    """``12.3 % (8.1–18.0)``: the rate and its 95 % interval, the only place that uses percent."""
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f}–{100 * rate.high:.1f})"


def rates_table(
    title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, Rate]]
) -> Table:
    """A terminal table with a line for each model and a column for each measure.

    Args:
        title: above the table.
        columns: the measures, in order; one that a row lacks is shown as ``–``.
        rows: by model, its rates by measure.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for column in columns:
        table.add_column(column, justify="right")
    for name, rates in rows.items():
        table.add_row(name, *(percent(rates[c]) if c in rates else "–" for c in columns))
    return table


def rates_markdown(columns: Sequence[str], rows: Mapping[str, Mapping[str, Rate]]) -> str:
    """The same table as Markdown."""
    lines = [
        "| model | " + " | ".join(columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    for name, rates in rows.items():
        cells = [percent(rates[c]) if c in rates else "–" for c in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
