"""A sweep's pictures: harmful score against accuracy, and curves over an axis."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from anchortune.files import atomic_path
from anchortune.report.runs import RunRecord
from anchortune.report.sweep_arms import Arm, arms_of, far_off, frontier_of
from anchortune.report.sweep_drawing import (
    BEFORE,
    DARK,
    GREY,
    Labels,
    Style,
    column_of_labels,
    label_points,
    numbered_legend,
    styles,
)
from anchortune.report.sweep_grid import Grid, lay_out
from anchortune.report.sweep_load import (
    SweepError,
    as_number,
    axes_of,
    check_axis,
    listed,
    select,
)
from anchortune.report.sweep_notes import LONG
from anchortune.report.sweep_stats import Estimate, Spec, estimate, seeds_of, specs_of
from anchortune.report.sweep_table import NAMES, usual_measures
from anchortune.untrusted import shown

ENDINGS = (".png", ".svg", ".pdf")
_DEFENCE = "defence"
_MOST_NAMES = 12  # of more arms a panel shows numbers, and a legend beside it their names
_NARROW = 0.13  # of the axis: ticks that are nearer to each other are written slantwise


@dataclass(frozen=True)
class PlotOptions:
    """What a plot shows.

    Attributes:
        kind: ``pareto`` or ``curve``.
        x: the axis of a curve; of ``pareto``, the axis along which an arm is a path.
        series: axes that name a line or a point.
        measures: ``MEASURE`` or ``MEASURE:SET``; empty: harm and accuracy.
        judge: whose verdicts, where several judged.
        where: axis -> wanted values.
    """

    kind: Literal["pareto", "curve"] = "pareto"
    x: str | None = None
    series: tuple[str, ...] = (_DEFENCE,)
    measures: tuple[str, ...] = ()
    judge: str | None = None
    where: Mapping[str, Sequence[str]] = field(default_factory=dict)


def draw(runs: Sequence[RunRecord], options: PlotOptions, output: Path) -> None:
    """Writes the picture as PNG, SVG or PDF, by the ending of ``output``; SVG reproducibly.

    Raises:
        SweepError: another ending, or the runs do not have what ``options`` asks for.
    """
    form = output.suffix.lower()
    if form not in ENDINGS:
        raise SweepError(f"--output {output}: a plot ends in {', '.join(ENDINGS)}.")
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "anchortune", "font.size": 9, "text.color": DARK,
                     "axes.labelcolor": DARK, "axes.edgecolor": GREY, "xtick.color": DARK,
                     "ytick.color": DARK, "pdf.fonttype": 42,
                     "text.parse_math": False}):  # fmt: skip
        figure = figure_of(runs, options)
        dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        with atomic_path(output) as temporary:
            figure.savefig(temporary, dpi=160, format=form[1:], metadata=dated.get(form))


def _readable(run: RunRecord) -> RunRecord:
    """The run with its names as they are shown: some characters would break an SVG."""
    named = [
        one.model_copy(update={"set": shown(one.set), "judge": one.judge and shown(one.judge)})
        for one in run.outcomes
    ]
    labels = {axis: shown(label) for axis, label in run.labels.items()}
    return run.model_copy(update={"labels": labels, "outcomes": named})


def figure_of(runs: Sequence[RunRecord], options: PlotOptions) -> Any:
    """The picture as a matplotlib figure.

    Raises:
        SweepError: the runs do not have what ``options`` asks for.
    """
    if options.kind == "curve" and options.x is None:
        raise SweepError("A curve needs --x AXIS, such as --x lam.")
    runs = [_readable(run) for run in runs]
    grid = _grid(runs, options)
    wanted = list(options.measures) or usual_measures(runs)
    specs = specs_of(grid.groups(), wanted, options.judge)
    if options.kind == "pareto":
        if len(specs) != 2:
            told = listed([_name(spec) for spec in specs])
            raise SweepError(
                f"pareto sets two measures against each other, not {told}; name two with --measure."
            )
        return _pareto(grid, specs[0], specs[1], options)
    return _curves(grid, specs, options)


def _grid(runs: Sequence[RunRecord], options: PlotOptions) -> Grid:
    axes = axes_of(select(runs, options.where))
    for axis in options.series:
        check_axis(axis, axes)
    # A defence without the series' axis (SFT has no operator) is an arm by its own name.
    rows = options.series
    if _DEFENCE in axes and _DEFENCE not in rows and options.x != _DEFENCE:
        rows = (_DEFENCE, *rows)
    return lay_out(runs, rows, options.x, options.where)


def _pareto(grid: Grid, up: Spec, right: Spec, options: PlotOptions) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels: list[tuple[str | None, Sequence[str | None]]]
    if options.x is None:
        panels = [(at, [at]) for at in grid.column_keys]
    else:
        panels = [(None, grid.column_keys)]
    arms = [arms_of(grid, (up, right), columns, options.series) for _, columns in panels]
    if not any(arms):
        raise SweepError(
            "No cell has both measures; there is nothing to draw; name others with --measure."
        )
    look = styles([arm.name for some in arms for arm in some if not arm.untrained])
    look |= {arm.name: BEFORE for some in arms for arm in some if arm.untrained}
    crowded = max(map(len, arms)) > _MOST_NAMES
    far = [far_off(some, crowded) for some in arms]
    numbers: dict[str, int] = {}
    if crowded:
        shown = (a.name for some, off in zip(arms, far, strict=True) for a in some if a not in off)
        numbers = {name: place for place, name in enumerate(dict.fromkeys(shown), 1)}
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    width = (6.4 if len(panels) == 1 else 4.4 * across) + 2.2 * crowded
    height = (5.6 if crowded else 4.6) * down + 0.2
    figure: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(down, across, squeeze=False).ravel()
    for axes in all_axes[len(panels) :]:
        axes.set_visible(False)
    todo = []
    for axes, (title, _), some, off in zip(all_axes, panels, arms, far, strict=False):
        if title is not None:
            axes.set_title(f"{_axis_name(grid.column or '')} {title}", loc="left", fontsize=10)
        far_lines = [_far_line(axes, arm, look[arm.name], NAMES[right.measure]) for arm in off]
        near = [arm for arm in some if arm not in off]
        labels = _pareto_panel(axes, near, (up, right), look, numbers, options.x)
        labels.edge.extend(far_lines)
        todo.append((axes, labels))
        axes.set_xlabel(_axis_label(right))
        axes.set_ylabel(_axis_label(up))
    if numbers:
        numbered_legend(figure, {name: look[name] for name in numbers}, rows=26 * down)
    steps = any(len(frontier_of(some, (up, right))) > 1 for some in arms)
    _caption(figure, grid, (up, right), width, _pareto_caption(options.x, steps))
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, labels in todo:
        label_points(axes, labels)
    return figure


def _pareto_caption(x: str | None, steps: bool) -> str:
    path = f" Lines follow {_axis_name(x)}; figures beside points are its values." if x else ""
    return f"{'Grey steps: the frontier of the arms that none beats on both.' * steps}{path}"


def _axis_name(axis: str) -> str:
    return "λ" if axis == "lam" else axis.replace("_", " ")


def _pareto_panel(
    axes: Any,
    arms: Sequence[Arm],
    specs: Sequence[Spec],
    look: Mapping[str, Style],
    numbers: Mapping[str, int],
    x: str | None,
) -> Labels:
    """Draws one panel; returns what is to be labelled, and what labels should keep clear of."""
    labels = Labels()
    for arm in arms:
        style = look[arm.name]
        ups, rights = zip(*(point.rates for point in arm.points), strict=True)
        ys, xs = _percents(ups), _percents(rights)
        axes.errorbar(xs, ys, xerr=_bars(rights), yerr=_bars(ups), fmt="none",
                      ecolor=style.colour, elinewidth=0.6, alpha=0.4, zorder=2)  # fmt: skip
        axes.plot(xs, ys, color=style.colour, lw=1.4, ls="-" if len(xs) > 1 else "none",
                  marker=style.marker, ms=6.5, mew=1.2, zorder=3,
                  mfc="white" if style.hollow else style.colour)  # fmt: skip
        labels.lines.extend(zip(xs, ys, xs[1:], ys[1:], strict=False))
        for place, (point, up, right) in enumerate(zip(arm.points, ups, rights, strict=True)):
            labels.lines.append((100 * right.low, ys[place], 100 * right.high, ys[place]))
            labels.lines.append((xs[place], 100 * up.low, xs[place], 100 * up.high))
            told = str(numbers.get(arm.name, arm.name)) if place == len(xs) - 1 else ""
            value = point.at if x is not None and not arm.flat else None
            text = f"{told} ({value})" if told and value else told or value or ""
            plain = told and not numbers
            labels.points.append((xs[place], ys[place], text, None if plain else style.colour))
    _draw_frontier(axes, arms, specs)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.09)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, -2.0), min(high, 102.0))
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -2.0), min(high, 102.0))
    return labels


def _far_line(axes: Any, arm: Arm, style: Style, measure: str) -> tuple[float, str]:
    """Draws an arm far off as a level line; returns its height, and its name for the edge."""
    up, right = _percents(arm.points[0].rates)
    axes.axhline(up, color=style.colour, lw=1.1, ls=":" if arm.untrained else "--", zorder=1)
    return up, f"{arm.name} ({measure} {right:.1f})"


def _draw_frontier(axes: Any, arms: Sequence[Arm], specs: Sequence[Spec]) -> None:
    """The border of what is beaten: between two points it is as bad as either is on one measure."""
    best = frontier_of(arms, specs)
    if len(best) > 1:
        axes.step([100 * x for _, x in best], [100 * y for y, _ in best], where="pre",
                  color="0.75", lw=3.5, zorder=1, solid_capstyle="round")  # fmt: skip


def _curves(grid: Grid, specs: Sequence[Spec], options: PlotOptions) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if grid.column is None or options.x is None:
        raise SweepError(f"The axis {options.x} has one value; a curve needs several.")
    values = [value for value in grid.column_keys if value is not None]
    numbers = {value: as_number(value) for value in values}
    words = [value for value, number in numbers.items() if number is None]
    if words or len(values) < 2:
        told = f"holds {listed(words)}" if words else f"has one value, {listed(values)}"
        raise SweepError(f"A curve needs an axis of several numbers; {options.x} {told}.")
    arms = arms_of(grid, specs, grid.column_keys, options.series)
    if not arms:
        raise SweepError(
            "No cell has every measure asked for; there is nothing to draw"
            "; name others with --measure."
        )
    look = styles([arm.name for arm in arms if not arm.flat])
    width = 4.9 * len(specs) + 0.4
    figure: Any = Figure(figsize=(width, 4.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(specs), squeeze=False).ravel()
    xs = {value: number for value, number in numbers.items() if number is not None}
    todo = []
    for place, (axes, spec) in enumerate(zip(panels, specs, strict=True)):
        todo.append((axes, _curve_panel(axes, arms, place, xs, look)))
        axes.set_title(_axis_label(spec), loc="left", fontsize=10)
        _scale(axes, options.x, xs)
    _caption(figure, grid, specs, width, "Bands: 95 % intervals.")
    # Room for the names at the lines' ends.
    longest = max(len(arm.name) for arm in arms)
    figure.get_layout_engine().set(w_pad=0.06, wspace=min(0.25, 0.012 * longest))
    for axes in panels:
        axes.annotate("x" * longest, (1.02, 0.5), xycoords="axes fraction", alpha=0, fontsize=8)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes, (ends, labels) in todo:
        column_of_labels(axes, ends)
        label_points(axes, labels)
    return figure


def _curve_panel(
    axes: Any,
    arms: Sequence[Arm],
    place: int,
    xs: Mapping[str, float],
    look: Mapping[str, Style],
) -> tuple[list[tuple[float, str, str]], Labels]:
    """Draws one measure.

    Returns:
        Height, name and colour of every line that reaches the right edge, and the names of those
        that end before it.
    """
    ends, labels = [], Labels()
    heights: list[float] = []
    for arm in arms:
        rates = [point.rates[place] for point in arm.points]
        heights += [100 * bound for rate in rates for bound in (rate.low, rate.high)]
        ys = _percents(rates)
        if arm.flat:
            axes.axhline(ys[0], color=GREY, lw=1.1, ls=":" if arm.untrained else "--", zorder=1)
            ends.append((ys[0], arm.name, GREY))
            continue
        style = look[arm.name]
        at = [xs[point.at] for point in arm.points if point.at is not None]
        lows, highs = [100 * rate.low for rate in rates], [100 * rate.high for rate in rates]
        axes.fill_between(at, lows, highs, color=style.colour, alpha=0.13, lw=0, zorder=2)
        axes.plot(at, ys, color=style.colour, lw=1.6, marker=style.marker, ms=5.5, zorder=3)
        labels.lines.extend(zip(at, ys, at[1:], ys[1:], strict=False))
        labels.points.extend((x, y, "", None) for x, y in zip(at, ys, strict=True))
        if at[-1] == max(xs.values()):
            ends.append((ys[-1], arm.name, style.colour))
        else:
            labels.points.append((at[-1], ys[-1], arm.name, style.colour))
    pad = 0.04 * (max(heights) - min(heights)) + 0.5
    axes.set_ylim(max(-1.0, min(heights) - pad), min(101.0, max(heights) + pad))
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    return ends, labels


def _scale(axes: Any, name: str, xs: Mapping[str, float]) -> None:
    """A logarithmic axis where the values span decades, ticks at the values themselves."""
    positive = [x for x in xs.values() if x > 0]
    spread = max(positive) / min(positive) if positive else 1.0
    if len(positive) == len(xs) and spread >= 10:
        axes.set_xscale("log")
    elif min(xs.values()) == 0 and spread >= 100:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
    places = sorted(axes.xaxis.get_transform().transform(list(xs.values())))
    narrow = _NARROW * (places[-1] - places[0])
    crowded = any(after - before < narrow for before, after in pairwise(places))
    axes.set_xticks(list(xs.values()), list(xs), rotation=60 if crowded else 0)
    axes.minorticks_off()
    axes.set_xlabel(_axis_name(name))


def _percents(rates: Sequence[Estimate]) -> list[float]:
    return [100 * rate.value for rate in rates]


def _bars(rates: Sequence[Estimate]) -> list[list[float]]:
    """The distances down and up to the ends of the intervals."""
    return [
        [100 * (rate.value - rate.low) for rate in rates],
        [100 * (rate.high - rate.value) for rate in rates],
    ]


def _name(spec: Spec) -> str:
    return spec.measure + (f":{spec.set}" if spec.set else "")


def _axis_label(spec: Spec) -> str:
    long = LONG[spec.measure]
    where = f" on {spec.set}" if spec.set else ""
    better = "less" if spec.less_is_better else "more"
    return f"{long[0].upper()}{long[1:]}{where}, % ({better} is better)"


def _caption(figure: Any, grid: Grid, specs: Sequence[Spec], width: float, more: str) -> None:
    """What was counted, small, under the panels."""
    seeds = seeds_of(grid.groups())
    over = f"Mean over seeds {', '.join(map(str, seeds))}, " if len(seeds) > 1 else ""
    if len(seeds) == 1:
        over = f"Seed {seeds[0]}, "
    parts = [f"{over}95 % intervals."]
    if fewer := grid.with_fewer(seeds):
        parts.append(f"Fewer seeds: {listed(fewer, 4)}.")
    for spec in specs:
        found = [one for group in grid.groups() if (one := estimate(group, spec)) is not None]
        sizes = sorted({one.n for one in found})
        sets = sorted({name for one in found for name in one.sets})
        n = "–".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
        judge = f", judge {spec.judge}{' (indicative)' if spec.indicative else ''}"
        told = f"{NAMES[spec.measure]}: {n} prompts of {listed(sets, 4)}"
        parts.append(told + (judge if spec.judge else "") + ".")
    parts += [f"{axis} {value}." for axis, value in grid.fixed.items()]
    if grid.failed:
        parts.append(f"{len(grid.failed)} of {grid.runs} runs failed.")
    text = textwrap.fill(" ".join([*parts, more]), int(width * 17))
    figure.supxlabel(text, fontsize=7.5, x=0.01, ha="left", color=DARK)
