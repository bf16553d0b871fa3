"""What pictures of a sweep share: colours that everyone tells apart, labels that do not collide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

DARK = "#222222"
GREY = "#6b6b6b"
#: Okabe and Ito's palette (2008) without its yellow, which white swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_MARKERS = ("o", "s", "^", "v", "P", "X", "d")


@dataclass(frozen=True)
class Style:
    """How an arm is drawn; the marker tells it where colour does not."""

    colour: str
    marker: str
    hollow: bool = False


BEFORE = Style(GREY, "D", hollow=True)
"""Of a model before fine-tuning."""


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A style for each name, in order; with more names than colours the markers go on."""
    found: dict[str, Style] = {}
    for name in names:
        if name not in found:
            at = len(found)
            shift = at // len(_COLOURS)
            colour = _COLOURS[at % len(_COLOURS)]
            found[name] = Style(colour, _MARKERS[(at + shift) % len(_MARKERS)], shift % 2 == 1)
    return found


Box = tuple[float, float, float, float]
"""Left, bottom, right and top, in pixels."""


@dataclass(frozen=True)
class Labels:
    """What is to be written into a panel, in data units.

    Attributes:
        points: x, y, text (empty: a point to keep clear of), and the colour of what only its
            colour ties to its point: a path's value, a number; a name has none.
        lines: x and y of one end and of the other: what texts should not cross.
        edge: height and text of what is written at the left edge.
    """

    points: list[tuple[float, float, str, str | None]] = field(default_factory=list)
    lines: list[tuple[float, float, float, float]] = field(default_factory=list)
    edge: list[tuple[float, str]] = field(default_factory=list)


#: Where a label may stand: direction from its point, the best first.
_WAYS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
_ACROSS = {1: "left", -1: "right", 0: "center"}
_UP = {1: "bottom", -1: "top", 0: "center"}
_LINE_COST = 6.0  # of a pixel of a line under a text, against a pixel of another text
_OUTSIDE_COST = 40.0  # of a pixel beyond the panel: never, as long as there is room inside
_NEAR = 16  # points; a label further off is tied to its point by a line


def label_points(axes: Any, labels: Labels) -> None:
    """Writes each text beside its point, where it covers least of points, texts and lines.

    Args:
        axes: whose layout is final.
        labels: of it.
    """
    renderer = axes.figure.canvas.get_renderer()
    frame, page = axes.get_window_extent(renderer), axes.figure.bbox
    inside = (frame.x0, frame.y0, min(frame.x1 + 8, page.x1 - 2), min(frame.y1 + 8, page.y1 - 2))
    # Of each box what a covered square pixel costs.
    taken: list[tuple[Box, float]] = []
    for x, y, _, _ in labels.points:
        px, py = axes.transData.transform((x, y))
        taken.append(((px - 7, py - 7, px + 7, py + 7), 2.0))
    for line in labels.lines:
        taken += [(box, _LINE_COST) for box in _dots(axes, line)]
    for edge in labels.edge:
        taken.append((_place_at_edge(axes, edge, taken, inside, renderer), 1.0))
    # Names first: they need more room than the values of a path.
    for x, y, text, colour in sorted(labels.points, key=lambda label: label[3] is not None):
        if text:
            look = (8.0, DARK) if colour is None else (7.5, darker(colour))
            taken.append((_place(axes, (x, y), text, look, taken, inside, renderer), 1.0))


def numbered_legend(figure: Any, looks: Mapping[str, Style], rows: int) -> None:
    """Writes the arms' names and numbers, counted from 1, beside the panels.

    Args:
        figure: with a constrained layout, which makes room.
        looks: name -> style, in order.
        rows: most in one column.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=style.colour, marker=style.marker, ms=5.5, mew=1.1, ls="none",
               mfc="white" if style.hollow else style.colour, label=f"{number}  {name}")
        for number, (name, style) in enumerate(looks.items(), 1)
    ]  # fmt: skip
    figure.legend(
        handles=handles, loc="outside right upper", ncols=-(-len(handles) // rows), frameon=False,
        fontsize=8, handletextpad=0.2, columnspacing=0.8, labelspacing=0.45,
    )  # fmt: skip


def darker(colour: str) -> str:
    """The colour as one can read it in small letters on white."""
    parts = (int(int(colour[at : at + 2], 16) * 0.72) for at in (1, 3, 5))
    return "#" + "".join(f"{part:02x}" for part in parts)


def _place_at_edge(
    axes: Any,
    edge: tuple[float, str],
    taken: Sequence[tuple[Box, float]],
    inside: Box,
    renderer: Any,
) -> Box:
    """Writes what belongs to a line across the panel at one of its ends, above or below it."""
    height, text = edge
    tries: list[tuple[float, int, Any, Box]] = []
    for side, shift, across in ((0, 4, "left"), (1, -4, "right")):
        for up, where in ((2, "bottom"), (-2, "top")):
            note = axes.annotate(
                text, (side, height), (shift, up), xycoords=("axes fraction", "data"),
                textcoords="offset points", ha=across, va=where, fontsize=8, color=DARK,
            )  # fmt: skip
            box = _extent(note, renderer)
            tries.append((_cost(box, taken, inside), len(tries), note, box))
    return _keep_best(tries)


def _place(
    axes: Any,
    point: tuple[float, float],
    text: str,
    look: tuple[float, str],
    taken: Sequence[tuple[Box, float]],
    inside: Box,
    renderer: Any,
) -> Box:
    """Writes one label at the cheapest place, and returns its box."""
    tries: list[tuple[float, int, Any, Box]] = []
    for far in (6, 11, 20, 32, 46):
        for rank, (right, up) in enumerate(_WAYS):
            reach = far * (0.72 if right and up else 1.0)
            leader = {"arrowstyle": "-", "color": look[1], "lw": 0.5} if far > _NEAR else None
            note = axes.annotate(
                text, point, (right * reach, up * reach), textcoords="offset points",
                ha=_ACROSS[right], va=_UP[up], color=look[1], fontsize=look[0], zorder=5,
                arrowprops=leader,
            )  # fmt: skip
            box = _extent(note, renderer)
            cost = 4.0 * far + 2.0 * rank + _cost(box, taken, inside)
            tries.append((cost, len(tries), note, box))
    return _keep_best(tries)


def _cost(box: Box, taken: Sequence[tuple[Box, float]], inside: Box) -> float:
    covered = sum(weight * _overlap(box, other) for other, weight in taken)
    return covered + _OUTSIDE_COST * _outside(box, inside)


def _keep_best(tries: list[tuple[float, int, Any, Box]]) -> Box:
    tries.sort(key=lambda one: one[:2])
    for _, _, note, _ in tries[1:]:
        note.remove()
    return tries[0][3]


def _extent(note: Any, renderer: Any) -> Box:
    """The box of a note's text, without its line."""
    from matplotlib.text import Text

    note.update_positions(renderer)
    box = Text.get_window_extent(note, renderer)
    return box.x0 - 1, box.y0 - 1, box.x1 + 1, box.y1 + 1


def _dots(axes: Any, line: tuple[float, float, float, float]) -> list[Box]:
    """A line as small boxes, some pixels apart."""
    (x0, y0), (x1, y1) = axes.transData.transform((line[:2], line[2:]))
    count = int(max(abs(x1 - x0), abs(y1 - y0)) // 4) + 1
    steps = [place / count for place in range(count + 1)]
    centres = [(x0 + (x1 - x0) * share, y0 + (y1 - y0) * share) for share in steps]
    return [(x - 1, y - 1, x + 1, y + 1) for x, y in centres]


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area that two boxes share, in square pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """The area of a that is outside of b."""
    return (a[2] - a[0]) * (a[3] - a[1]) - _overlap(a, b)


def column_of_labels(axes: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    """Writes the names of lines right of the panel, at their ends' heights but never on another.

    Args:
        axes: whose layout is final.
        labels: height in data, name, colour of the line.
    """
    if not labels:
        return
    box = axes.get_window_extent()
    step = 9.5 * axes.figure.dpi / 72 / box.height
    wanted = sorted(
        (float(axes.transAxes.inverted().transform(axes.transData.transform((1, y)))[1]), name, c)
        for y, name, c in labels
    )
    heights = spread([height for height, _, _ in wanted], step)
    for (end, name, colour), height in zip(wanted, heights, strict=True):
        axes.annotate(
            name, (1.0, end), (1.035, height), xycoords="axes fraction", va="center",
            textcoords="axes fraction", fontsize=8, color=DARK, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 1.0, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip


def spread(heights: Sequence[float], step: float) -> list[float]:
    """Sorted heights moved apart to at least ``step``, as little as can be (least squares).

    Neighbours that would collide form a block, spread about the mean of where they wanted to be.
    """
    blocks: list[list[float]] = []  # of each the wanted heights
    for height in heights:
        blocks.append([height])
        while len(blocks) > 1 and _bottom(blocks[-1], step) < _top(blocks[-2], step) + step:
            last = blocks.pop()
            blocks[-1] += last
    return [_bottom(block, step) + step * place for block in blocks for place in range(len(block))]


def _bottom(block: Sequence[float], step: float) -> float:
    return sum(block) / len(block) - step * (len(block) - 1) / 2


def _top(block: Sequence[float], step: float) -> float:
    return _bottom(block, step) + step * (len(block) - 1)
