"""The landscape over two directions at once, with the paths that trainings took over it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchortune.report.basin import Basin, Map, Trajectory
from anchortune.report.basin_words import ends_of, is_incoherent, named, share, start_of
from anchortune.report.sweep_drawing import DARK, GREY, Labels, Style, label_points

#: Of paths: none that the reds below them swallow.
_PATHS = ("#0072B2", "#7B3FA0", "#009E73", "#56B4E9", "#6b5b00", "#444444")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_SMALL = 0.2  # of the map: paths that reach less far are shown again, enlarged
_FAR = 2.5  # maps a path may run on before the picture is cut
_Box = tuple[float, float, float, float]


def map_figure(basin: Basin, found: Map) -> Any:
    """Harmful score over the plane, its edge at the tolerance, and the paths over it.

    Paths that stay near the start are drawn again beside it, enlarged.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    xs, ys, harm, broken = grid_of(found, basin.incoherent)
    zoom = _zoom(found.trajectories, xs, ys)
    figure = Figure(figsize=(11.6 if zoom else 7.2, 6.2), layout="constrained")
    FigureCanvasAgg(figure)  # measures texts
    panels = list(figure.subplots(1, 2 if zoom else 1, squeeze=False).flat)
    looks = [
        Style(_PATHS[at % len(_PATHS)], _MARKERS[at % len(_MARKERS)])
        for at in range(len(found.trajectories))
    ]
    whole = _frame(found.trajectories, xs, ys)
    frames: list[_Box] = [whole, zoom] if zoom else [whole]
    for axes, frame in zip(panels, frames, strict=True):
        mesh = _surface(axes, xs, ys, harm, broken, start_of(found.points), basin.tolerance)
        axes.set_xlim(frame[0], frame[1])
        axes.set_ylim(frame[2], frame[3])
        axes.set_box_aspect(1)
        _axis_names(axes, found)
        for path, look in zip(found.trajectories, looks, strict=True):
            _path(axes, path, look, bare=bool(zoom) and frame is whole)
        axes.plot([0], [0], marker="+", ms=13, mew=2, color=DARK, zorder=7)
    if zoom:
        from matplotlib.patches import Rectangle

        corner, size = (zoom[0], zoom[2]), (zoom[1] - zoom[0], zoom[3] - zoom[2])
        panels[0].add_patch(Rectangle(corner, *size, fc="none", ec=DARK, lw=1.0, zorder=8))
        times = (whole[1] - whole[0]) / (zoom[1] - zoom[0])
        panels[1].set_title(f"the box, {times:.0f} times enlarged", loc="left", fontsize=9)
    bar = figure.colorbar(mesh, ax=panels, shrink=0.8, pad=0.02)
    bar.set_label("harmful score, %")
    cosine = f"{found.cosine:+.2g}".replace("-", "−")
    figure.suptitle(
        f"{basin.model}: harmful score over {named(found.x)} and {named(found.y)}\n"
        f"each axis on its own scale, at right angles; cosine of the two {cosine}",
        fontsize=10.5, x=0.01, ha="left",
    )  # fmt: skip
    _legend(figure, basin, bool(broken.any()), bool(found.trajectories), 3 if zoom else 2)
    figure.draw_without_rendering()
    _names(panels[-1], found.trajectories, looks)
    figure.set_layout_engine("none")
    return figure


def grid_of(
    found: Map, incoherent: float
) -> tuple[list[float], list[float], NDArray[np.float64], NDArray[np.bool_]]:
    """The map as a grid: columns' x, rows' y, harmful scores in percent (NaN: not known), broken.

    Args:
        found: the places, in any order.
        incoherent: the share of incoherent answers from which a place is called broken.
    """
    at = {(float(p.alpha[0]), float(p.alpha[1])): p for p in found.points}  # type: ignore[index]
    xs, ys = sorted({x for x, _ in at}), sorted({y for _, y in at})
    harm = np.full((len(ys), len(xs)), np.nan)
    broken = np.zeros(harm.shape, dtype=bool)
    for (x, y), point in at.items():
        place = ys.index(y), xs.index(x)
        value = share(point.harm)
        harm[place] = np.nan if value is None else 100 * value
        broken[place] = is_incoherent(point, incoherent)
    return xs, ys, harm, broken


def _surface(
    axes: Any,
    xs: Sequence[float],
    ys: Sequence[float],
    harm: NDArray[np.float64],
    broken: NDArray[np.bool_],
    start: float | None,
    tolerance: float,
) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle

    colours = ListedColormap(colormaps["Reds"](np.linspace(0.0, 0.72, 128)))
    ex, ey = _edges(xs), _edges(ys)
    axes.set_facecolor("#e9e9e9")
    mesh = axes.pcolormesh(
        ex, ey, np.ma.masked_invalid(harm), cmap=colours, vmin=0, vmax=100, edgecolors="white",
        linewidth=0.3,
    )  # fmt: skip
    for row, column in zip(*np.nonzero(broken), strict=True):
        axes.add_patch(
            Rectangle((ex[column], ey[row]), ex[column + 1] - ex[column], ey[row + 1] - ey[row],
                      fc="none", ec=GREY, hatch="////", lw=0)
        )  # fmt: skip
    if start is not None and min(harm.shape) > 1 and np.isfinite(harm).all():
        level = 100 * (start + tolerance)
        if harm.min() < level < harm.max():
            # Babble is not harmful: what it scores would look like the inside.
            shown = np.ma.masked_where(broken, harm)
            axes.contour(xs, ys, shown, levels=[level], colors=[DARK], linewidths=1.8)
    return mesh


def _edges(values: Sequence[float]) -> list[float]:
    """Borders half-way between neighbours."""
    if len(values) == 1:
        return [values[0] - 0.5, values[0] + 0.5]
    middle = [(a + b) / 2 for a, b in pairwise(values)]
    return [
        values[0] - (values[1] - values[0]) / 2, *middle,
        values[-1] + (values[-1] - values[-2]) / 2,
    ]  # fmt: skip


def _frame(paths: Sequence[Trajectory], xs: Sequence[float], ys: Sequence[float]) -> _Box:
    """The map, and around it the paths as far as there is sense in it."""
    ex, ey = _edges(xs), _edges(ys)
    px = [x for path in paths for x in path.x]
    py = [y for path in paths for y in path.y]
    wide, high = _FAR * (ex[-1] - ex[0]), _FAR * (ey[-1] - ey[0])
    return (
        max(min([ex[0], *(1.08 * x for x in px)]), ex[0] - wide),
        min(max([ex[-1], *(1.08 * x for x in px)]), ex[-1] + wide),
        max(min([ey[0], *(1.08 * y for y in py)]), ey[0] - high),
        min(max([ey[-1], *(1.08 * y for y in py)]), ey[-1] + high),
    )


def _zoom(paths: Sequence[Trajectory], xs: Sequence[float], ys: Sequence[float]) -> _Box | None:
    """A box about the paths, of the map's shape, where they are small beside it."""
    px = [0.0, *(x for path in paths for x in path.x)]
    py = [0.0, *(y for path in paths for y in path.y)]
    ex, ey = _edges(xs), _edges(ys)
    wide, high = ex[-1] - ex[0], ey[-1] - ey[0]
    part = max((max(px) - min(px)) / wide, (max(py) - min(py)) / high)
    if not 0 < part < _SMALL:
        return None
    cx, cy, half = (max(px) + min(px)) / 2, (max(py) + min(py)) / 2, 0.68 * part
    return cx - half * wide, cx + half * wide, cy - half * high, cy + half * high


def _axis_names(axes: Any, found: Map) -> None:
    for put, name in ((axes.set_xlabel, found.x), (axes.set_ylabel, found.y)):
        back, ahead = ends_of(name)
        put(
            (f"← {back}   " if back else "")
            + f"α along {named(name)}"
            + (f"   {ahead} →" if ahead else "")
        )


def _path(axes: Any, path: Trajectory, look: Style, *, bare: bool) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=3.0, foreground="white")]
    axes.plot(
        path.x, path.y, color=look.colour, marker=None if bare else look.marker, ms=4.5, lw=1.6,
        mec="white", mew=0.6, zorder=6, path_effects=halo,
    )  # fmt: skip


def _names(axes: Any, paths: Sequence[Trajectory], looks: Sequence[Style]) -> None:
    """Writes each path's name at its end, with how much of it the plane does not show."""
    points: list[tuple[float, float, str, str | None]] = [(0.0, 0.0, "start", None)]
    lines: list[tuple[float, float, float, float]] = []
    for path, look in zip(paths, looks, strict=True):
        off = f"\n{100 * path.off_plane[-1]:.3g} % off the plane" if path.off_plane else ""
        text = f"{path.label}, step {path.steps[-1]}{off}"
        points.append((path.x[-1], path.y[-1], text, look.colour))
        points += [(x, y, "", None) for x, y in zip(path.x[1:-1], path.y[1:-1], strict=True)]
        ends = list(zip(path.x, path.y, strict=True))
        lines += [(*a, *b) for a, b in pairwise(ends)]
    before = set(axes.texts)
    label_points(axes, Labels(points=points, lines=lines))
    from matplotlib.patheffects import withStroke

    for text in set(axes.texts) - before:
        text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
        text.set_zorder(9)


def _legend(figure: Any, basin: Basin, broken: bool, paths: bool, columns: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color=DARK, lw=1.8,
               label=f"edge of the basin: {100 * basin.tolerance:.3g} points over the start"),
    ]  # fmt: skip
    if broken:
        handles.append(Patch(fc="none", ec=GREY, hatch="////", label="incoherent answers"))
    if paths:
        handles.append(
            Line2D([], [], color=GREY, marker="o", ms=4.5, lw=1.6,
                   label="a training's checkpoints, projected on the plane")
        )  # fmt: skip
    figure.legend(
        handles=handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=8
    )
