"""What was found of a safety basin, as data: ``basin.json``; pictures are made from it alone.

No torch here, no prompt, no answer. Rates are counts, so that every picture can show an interval.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from anchortune.sections import Section

FORMAT: Literal[1] = 1
BASIN_FILE = "basin.json"
Sign = Literal["+", "-"]


class Count(Section):
    """A rate as it was counted; ``of`` may be less than was asked where a judge gave no verdict."""

    count: int
    of: int


class Point(Section):
    """The model at one place.

    Attributes:
        alpha: along the direction; of a map its two coordinates.
        harm: answers judged harmful, of the malicious prompts.
        coherent: answers that are language, of the same prompts; None where it was not asked for.
        tasks: right answers by task.
        items: by prompt id: 1 harmful, 0 not, None not scored; empty on a map.
    """

    alpha: float | tuple[float, float]
    harm: Count
    coherent: Count | None = None
    tasks: dict[str, Count] = Field(default_factory=dict)
    items: dict[str, Literal[0, 1] | None] = Field(default_factory=dict)


class Curve(Section):
    """What was measured along one direction.

    Attributes:
        direction: its name: ``aligned``, ``harmful``, ``random``, or the label of an adapter; with
            ``:inside`` or ``:off`` for its part inside or off the anchor.
        draw: of a random direction, its number from 0.
        points: by rising α, the start among them.
    """

    direction: str
    draw: int | None = None
    points: list[Point]


class Epl(Section):
    """How far one can go: section 4 of the method, first exit.

    Attributes:
        direction: as of the curves; over all its draws.
        side: + and − apart.
        value: |α| at the exit, interpolated between the last point inside and the first outside;
            the range's end where there was none. Over draws the mean.
        low: of the 95 % interval, over prompts (bootstrap) and draws.
        high: of the same; None where censored draws leave it open.
        inside: the largest |α| measured inside before the exit, the least over draws.
        outside: the smallest |α| measured outside, the largest over draws; None: never left.
        censored: draws that never left; where all are, the EPL is "> value".
        draws: how many there were.
        ended: what ended it: the harmful score, or incoherence (which is no exit).
    """

    direction: str
    side: Sign
    value: float
    low: float
    high: float | None
    inside: float
    outside: float | None
    censored: int
    draws: int
    ended: Literal["harm", "incoherent", "range"]


class Ratio(Section):
    """EPL of one direction over that of another, the sides' mean of each.

    Attributes:
        over: the direction above the line.
        under: the one below.
        value: the ratio.
        low: of the 95 % interval.
        high: of the same; None where open.
        bound: ``at least`` where the upper one is censored, ``at most`` where the lower one is,
            ``undefined`` where both are.
    """

    over: str
    under: str
    value: float
    low: float
    high: float | None
    bound: Literal["at least", "at most", "undefined"] | None


class Trajectory(Section):
    """A run's checkpoints projected on a map's plane.

    Attributes:
        label: of the run.
        steps: optimizer steps; the first is 0, at the origin.
        x: coordinates along the map's first direction, in the map's α.
        y: along the second.
        off_plane: share of the squared length of the update that lies off the plane.
    """

    label: str
    steps: list[int]
    x: list[float]
    y: list[float]
    off_plane: list[float]


class Map(Section):
    """Two directions at once.

    Attributes:
        x: name of the first direction, whose α runs over the columns.
        y: name of the second.
        cosine: between them; the axes are drawn at right angles whatever it is.
        points: every place measured, row by row from the lowest y.
        trajectories: drawn over it.
    """

    x: str
    y: str
    cosine: float
    points: list[Point]
    trajectories: list[Trajectory] = Field(default_factory=list)


class Basin(Section):
    """A whole ``anchortune basin``.

    Attributes:
        format: of this file.
        model: what was moved, by name.
        modules: how many weights a direction may move, by direction.
        scale: ``layer``: d̂ = ‖W‖_F · D/‖D‖_F in each weight (Peng et al.); ``whole``: all of D to
            norm 1 (the paper's wording).
        tolerance: τ: the rise of the harmful score over α = 0 that counts as having left.
        incoherent: the share of incoherent answers that ends a search.
        alpha_max: how far was looked.
        judge: who judged.
        set: label of the prompts.
        curves: along each direction and draw.
        epl: of each direction and side.
        ratios: EPLs over each other.
        maps: two directions at once.
        evaluations: places at which the model was asked, and ``full_grid``: what a grid of the same
            resolution would have taken.
        settings: the resolved config, names in place of paths.
        platform: machine, device and dtype.
        timings: seconds.
    """

    format: Literal[1] = FORMAT
    model: str
    modules: dict[str, int]
    scale: Literal["layer", "whole"]
    tolerance: float
    incoherent: float
    alpha_max: float
    judge: str
    set: str
    curves: list[Curve]
    epl: list[Epl]
    ratios: list[Ratio] = Field(default_factory=list)
    maps: list[Map] = Field(default_factory=list)
    evaluations: dict[str, int] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    platform: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
