"""A basin's pictures, from ``basin.json`` alone: curves along directions, and how wide it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anchortune.errors import AnchortuneError
from anchortune.files import atomic_path
from anchortune.maths.stats import wilson
from anchortune.report.basin import Basin, Curve, Epl, Point
from anchortune.report.basin_map import map_figure
from anchortune.report.basin_words import (
    alpha,
    ends_of,
    interval_of,
    is_incoherent,
    named,
    share,
    start_of,
    value_of,
)
from anchortune.report.sweep_drawing import DARK, GREY

ENDINGS = (".png", ".svg", ".pdf")
HARM, INSIDE, OUTSIDE = "#D55E00", "#e4f1ea", "#eeeeee"
_TASKS = (("#0072B2", "s"), ("#009E73", "^"), ("#CC79A7", "v"), ("#56B4E9", "P"), ("#000000", "d"))
_RC = {"svg.hashsalt": "anchortune", "font.size": 9, "text.color": DARK, "axes.labelcolor": DARK,
       "axes.edgecolor": GREY, "xtick.color": DARK, "ytick.color": DARK, "pdf.fonttype": 42,
       "text.parse_math": False}  # fmt: skip


def pictures(basin: Basin) -> dict[str, Callable[[], Any]]:
    """What can be drawn of a basin: name -> what makes the matplotlib figure."""
    found: dict[str, Callable[[], Any]] = {}
    if basin.epl:
        found["epl"] = lambda: epl_figure(basin)
    if basin.curves:
        found["curves"] = lambda: curves_figure(basin)
    for at in range(len(basin.maps)):
        name = "map" if len(basin.maps) == 1 else f"map-{at + 1}"
        found[name] = lambda at=at: map_figure(basin, basin.maps[at])  # type: ignore[misc]
    return {name: _styled(make) for name, make in found.items()}


def draw(basin: Basin, folder: str | Path, endings: Sequence[str] = (".png",)) -> list[Path]:
    """Writes ``epl``, ``curves`` and ``map`` into a folder in each format; SVG reproducibly.

    Raises:
        AnchortuneError: another ending.
    """
    for ending in endings:
        if ending not in ENDINGS:
            raise AnchortuneError(f"{ending}: a plot ends in {', '.join(ENDINGS)}")
    paths = []
    for name, make in pictures(basin).items():
        figure = make()
        for ending in endings:
            path = Path(folder) / f"{name}{ending}"
            with atomic_path(path) as temporary:
                save(figure, temporary, ending)
            paths.append(path)
    return paths


def draw_as(basin: Basin, kind: str, output: Path) -> list[Path]:
    """Writes one kind of picture to a file; of several maps to ``NAME-1``, ``NAME-2`` and so on.

    Args:
        basin: what was found.
        kind: ``curve``, ``epl`` or ``map``.
        output: a path with the ending of its format.

    Raises:
        AnchortuneError: another ending, or nothing of that kind was measured.
    """
    ending = output.suffix.lower()
    if ending not in ENDINGS:
        raise AnchortuneError(f"--output {output}: a plot ends in {', '.join(ENDINGS)}.")
    made = {name: make for name, make in pictures(basin).items() if name.startswith(kind)}
    if not made:
        there = ", ".join(dict.fromkeys(_kind_of(name) for name in pictures(basin)))
        raise AnchortuneError(f"--kind {kind}: the basin has none of it; it has {there}.")
    paths = []
    for at, make in enumerate(made.values(), 1):
        more = f"-{at}" if len(made) > 1 else ""
        path = output.with_name(f"{output.stem}{more}{output.suffix}")
        with atomic_path(path) as temporary:
            save(make(), temporary, ending)
        paths.append(path)
    return paths


def _kind_of(name: str) -> str:
    return "curve" if name == "curves" else name.partition("-")[0]


def save(figure: Any, target: Any, ending: str) -> None:
    """Writes a figure to a path or a stream in the format of ``ending``; SVG reproducibly."""
    from matplotlib import rc_context

    dated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(ending)
    with rc_context(_RC):
        figure.savefig(target, dpi=160, format=ending[1:], metadata=dated)


def _styled(make: Callable[[], Any]) -> Callable[[], Any]:
    def made() -> Any:
        from matplotlib import rc_context

        with rc_context(_RC):
            return make()

    return made


def curves_figure(basin: Basin) -> Any:
    """A panel for each direction: harmful score, coherence and accuracies over α."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    names = list(dict.fromkeys(curve.direction for curve in basin.curves))
    columns = min(len(names), 2 if len(names) in {2, 4} else 3)
    rows = -(-len(names) // columns)
    figure = Figure(
        figsize=(max(4.1 * columns, 5.4) + 0.4, 3.1 * rows + 1.15),
        layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.08),
    )
    tasks = list(dict.fromkeys(t for c in basin.curves for p in c.points for t in p.tasks))
    looks = {name: _TASKS[at % len(_TASKS)] for at, name in enumerate(tasks)}
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(names) :]:
        axes.set_visible(False)
    for at, name in enumerate(names):
        axes = grid.flat[at]
        _panel(axes, basin, name, looks)
        if at % columns == 0:
            axes.set_ylabel("share of answers, %")
            axes.tick_params(labelleft=True)
    figure.suptitle(f"{basin.model}, moved by α along a direction", fontsize=11, x=0.01, ha="left")
    _curves_legend(figure, basin, looks, columns)
    return figure


def _panel(axes: Any, basin: Basin, name: str, looks: Mapping[str, tuple[str, str]]) -> None:
    draws = [curve for curve in basin.curves if curve.direction == name]
    sides = {epl.side: epl for epl in basin.epl if epl.direction == name}
    reach = [float(p.alpha) for c in draws for p in c.points]  # type: ignore[arg-type]
    low, high = min(reach), max(reach)
    pad = 0.04 * ((high - low) or 1.0)
    axes.set_xlim(low - pad, high + pad)
    axes.set_ylim(-3, 103)
    _background(axes, basin, draws, sides)
    if any(share(p.coherent) is not None for c in draws for p in c.points):
        _line(axes, draws, lambda p: share(p.coherent), {"color": GREY, "ls": "--", "lw": 1.1})
    for task, (colour, marker) in looks.items():
        look = {"color": colour, "lw": 1.1, "marker": marker, "ms": 3.2}
        _line(axes, draws, lambda p, task=task: share(p.tasks.get(task)), look)  # type: ignore[misc]
    if len(draws) == 1:
        _band(axes, draws[0])
    else:
        for curve in draws:
            xs, ys = _series(curve, lambda p: share(p.harm))
            axes.plot(xs, ys, color=HARM, lw=0.7, alpha=0.45, marker="o", ms=1.8)
    strong = {"color": HARM, "lw": 2.0, "marker": "o" if len(draws) == 1 else None, "ms": 3.6}
    _line(axes, draws, lambda p: share(p.harm), strong)
    broken = [
        (p.alpha, 100 * value)
        for c in draws
        for p in c.points
        if is_incoherent(p, basin.incoherent) and (value := share(p.harm)) is not None
    ]
    if broken:
        axes.plot(*zip(*broken, strict=True), "x", color=DARK, ms=6, mew=1.4, ls="none", zorder=6)
    start = next((s for c in draws if (s := start_of(c.points)) is not None), None)
    if start is not None:
        axes.axhline(100 * (start + basin.tolerance), color=HARM, lw=0.9, ls=":")
    count = f" ({len(draws)} draws)" if len(draws) > 1 else ""
    axes.set_title(named(name) + count, loc="left", fontsize=10, fontweight="bold", pad=18)
    for side, x, across in (("-", 0.0, "left"), ("+", 1.0, "right")):
        if side in sides:
            text = f"{'EPL  −α' if side == '-' else '+α'}: {_told(sides[side])}"
            axes.annotate(
                text, (x, 1.0), (0, 4), xycoords="axes fraction", textcoords="offset points",
                ha=across, fontsize=7.5,
            )  # fmt: skip
    back, ahead = ends_of(name)
    axes.set_xlabel(
        (f"← {back}    " if back else "") + "α" + (f"    {ahead} →" if ahead else ""), fontsize=8.5
    )
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)


def _told(epl: Epl) -> str:
    if epl.censored == epl.draws:
        return value_of(epl)
    if epl.high is None:
        return f"{value_of(epl)} ({alpha(epl.low)}–…)"
    return f"{value_of(epl)} ({interval_of(epl)})"


def _background(axes: Any, basin: Basin, draws: Sequence[Curve], sides: Mapping[Any, Epl]) -> None:
    """The inside of the basin in green, its edges, and in grey what lies beyond coherence."""
    for side, way in (("-", -1), ("+", 1)):
        epl = sides.get(side)
        if epl is not None:
            axes.axvspan(min(0, way * epl.value), max(0, way * epl.value), color=INSIDE, lw=0)
            if epl.censored < epl.draws:
                axes.axvline(way * epl.value, color="#007a55", lw=1.2)
        broken = [
            way * float(p.alpha)  # type: ignore[arg-type]
            for c in draws
            for p in c.points
            if is_incoherent(p, basin.incoherent) and way * float(p.alpha) > 0  # type: ignore[arg-type]
        ]
        if len(draws) == 1 and broken:
            end = axes.get_xlim()[(way + 1) // 2]
            axes.axvspan(way * min(broken), end, color=OUTSIDE, lw=0)


def _series(curve: Curve, read: Callable[[Point], float | None]) -> tuple[list[float], list[float]]:
    pairs = [(float(p.alpha), 100 * v) for p in curve.points if (v := read(p)) is not None]  # type: ignore[arg-type]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _line(
    axes: Any, draws: Sequence[Curve], read: Callable[[Point], float | None], look: dict[str, Any]
) -> None:
    """The curve, or of several draws their mean."""
    axes.plot(*mean_of([_series(curve, read) for curve in draws]), **look)


def mean_of(
    draws: Sequence[tuple[Sequence[float], Sequence[float]]],
) -> tuple[list[float], list[float]]:
    """The mean of several curves at all their places, as far as every one of them reaches.

    Args:
        draws: x, rising, and y of each; those without places count not.
    """
    there = [(xs, ys) for xs, ys in draws if xs]
    if not there:
        return [], []
    low, high = max(xs[0] for xs, _ in there), min(xs[-1] for xs, _ in there)
    places = sorted({x for xs, _ in there for x in xs if low <= x <= high})
    curves = np.array([np.interp(places, xs, ys) for xs, ys in there])
    return places, [float(y) for y in curves.mean(axis=0)]


def _band(axes: Any, curve: Curve) -> None:
    known = [p for p in curve.points if p.harm.of]
    rates = [wilson(p.harm.count, p.harm.of) for p in known]
    axes.fill_between(
        [p.alpha for p in known], [100 * r.low for r in rates], [100 * r.high for r in rates],
        color=HARM, alpha=0.16, lw=0,
    )  # fmt: skip


def _curves_legend(
    figure: Any, basin: Basin, looks: Mapping[str, tuple[str, str]], columns: int
) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    points = [p for c in basin.curves for p in c.points]
    counts: dict[str, int] = {}
    for curve in basin.curves:
        counts[curve.direction] = counts.get(curve.direction, 0) + 1
    handles: list[Any] = [
        Line2D([], [], color=HARM, lw=2, marker="o", ms=3.6,
               label=f"harmful score ({basin.judge}), 95 % band"),
    ]  # fmt: skip
    if max(counts.values()) > 1:
        handles.append(
            Line2D([], [], color=HARM, lw=0.7, alpha=0.6, label="harmful score of one draw")
        )
    handles.append(
        Line2D([], [], color=HARM, lw=0.9, ls=":", label="tolerance: "
               f"{100 * basin.tolerance:.3g} points over α = 0")
    )  # fmt: skip
    if any(p.coherent for p in points):
        handles.append(Line2D([], [], color=GREY, lw=1.1, ls="--", label="coherent answers"))
    handles += [
        Line2D([], [], color=colour, lw=1.1, marker=marker, ms=3.2, label=f"accuracy {task}")
        for task, (colour, marker) in looks.items()
    ]
    if basin.epl:
        handles.append(Patch(fc=INSIDE, ec="#007a55", label="the basin, up to its EPL"))
    if any(is_incoherent(p, basin.incoherent) for p in points):
        handles.append(
            Line2D([], [], color=DARK, marker="x", ms=6, mew=1.4, ls="none",
                   label="incoherent: the search ends")
        )  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower left", ncols=min(len(handles), columns + 1),
        frameon=False, fontsize=8,
    )  # fmt: skip


def epl_figure(basin: Basin) -> Any:
    """How wide the basin is in each direction, on one logarithmic scale."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    names = list(dict.fromkeys(epl.direction for epl in basin.epl))
    figure = Figure(figsize=(7.2, 0.62 * len(names) + 1.75), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    known = [v for e in basin.epl for v in (e.low, e.value, e.high or e.value) if v > 0]
    least = min(known, default=basin.alpha_max / 10)
    floor, top = least / 1.5, max([basin.alpha_max, *known]) * 1.6
    axes.set_xlim(floor, top)
    for epl in basin.epl:
        _width(axes, epl, names.index(epl.direction), floor, top)
    axes.axvline(basin.alpha_max, color=GREY, lw=0.9, ls=":")
    axes.set_yticks(range(len(names)), [named(name) for name in names])
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(_ticks())
    axes.xaxis.set_major_formatter(lambda value, _: alpha(value))
    axes.xaxis.set_minor_formatter(lambda _value, _: "")
    axes.set_xlabel("EPL: how far |α| one can go before the model is harmful (logarithmic)")
    axes.set_title(f"{basin.model}: width of the safety basin", loc="left", fontsize=11)
    handles = [
        Line2D([], [], color=_SIDE["+"][0], marker=">", ls="-", label="+α, 95 % interval"),
        Line2D([], [], color=_SIDE["-"][0], marker="<", ls="-", label="−α"),
        Line2D([], [], color=GREY, marker="o", mfc="white", ls="none",
               label="hollow: not left (some draw or all), at least this far"),
        Line2D([], [], color=GREY, lw=0.9, ls=":", label="as far as was looked"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8,
                  columnspacing=1.2, handletextpad=0.5)  # fmt: skip
    axes.grid(alpha=0.2, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


_SIDE = {"+": ("#0072B2", ">", -0.16), "-": ("#D55E00", "<", 0.16)}


def _ticks() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12)


def _width(axes: Any, epl: Epl, row: int, floor: float, top: float) -> None:
    colour, marker, shift = _SIDE[epl.side]
    y, value = row + shift, max(epl.value, floor)
    if epl.censored < epl.draws:
        axes.plot([max(epl.low, floor), min(epl.high or top, top)], [y, y], color=colour, lw=1.6)
    axes.plot(
        [value], [y], marker=marker, ms=7, color=colour, mew=1.3, ls="none",
        mfc="white" if epl.censored else colour,
    )  # fmt: skip
    # Above or below its own line, so that it covers neither.
    up = 6 if shift < 0 else -6
    axes.annotate(
        value_of(epl), (value, y), (0, up), textcoords="offset points", fontsize=8, color=DARK,
        ha="center", va="bottom" if up > 0 else "top",
    )  # fmt: skip
    if epl.censored == epl.draws and value < top and math.isfinite(top):
        axes.annotate(
            "", (min(value * 1.35, top), y), (value * 1.06, y),
            arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.2},
        )  # fmt: skip
