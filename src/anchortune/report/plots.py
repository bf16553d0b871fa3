"""Pictures of what was measured, drawn without a display."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from anchortune.files import atomic_path
from anchortune.maths.stats import Rate

COLOURS = ("#c0392b", "#2471a3", "#7f8c8d", "#b9770e")
"""Of the measures, in order: harm first."""


def plot_rates(
    path: str | Path,
    title: str,
    columns: Sequence[str],
    rows: Mapping[str, Mapping[str, Rate]],
    note: str = "",
) -> None:
    """Writes grouped bars with 95 % intervals, a group for each model, as PNG or SVG by ending.

    Args:
        path: the picture.
        title: above it.
        columns: the measures, a bar each.
        rows: by model, its rates by measure; every row has every measure.
        note: a small line under the picture: what was measured on how many.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.9 + 1.75 * len(rows), 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    width = 0.8 / len(columns)
    for at, column in enumerate(columns):
        rates = [row[column] for row in rows.values()]
        places = [group + (at - (len(columns) - 1) / 2) * width for group in range(len(rows))]
        values = [100 * rate.value for rate in rates]
        errors = [
            [100 * (rate.value - rate.low) for rate in rates],
            [100 * (rate.high - rate.value) for rate in rates],
        ]
        axes.bar(
            places,
            values,
            width * 0.92,
            yerr=errors,
            capsize=3,
            color=COLOURS[at % len(COLOURS)],
            error_kw={"elinewidth": 1, "ecolor": "#333333"},
            label=column,
        )
        for place, value, rate in zip(places, values, rates, strict=True):
            axes.annotate(
                f"{value:.0f}",
                (place, 100 * rate.high),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
    axes.set_xticks(range(len(rows)), list(rows))
    axes.set_ylim(0, 112)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel("per cent of answers")
    axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(columns), loc="upper center", bbox_to_anchor=(0.5, -0.08))
    if note:
        columns_of_text = int(13 * figure.get_figwidth())  # at 8 points, about 13 an inch
        figure.supxlabel("\n".join(textwrap.wrap(note, columns_of_text)), fontsize=8, color="#555")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format=Path(path).suffix.lstrip(".") or "png")
