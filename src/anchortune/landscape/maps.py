"""Two directions at once, and where trainings went over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from anchortune.anchor.anchor import Anchor
from anchortune.errors import AnchorError
from anchortune.landscape.config import BasinConfig, MapSection
from anchortune.landscape.directions import Direction
from anchortune.landscape.measure import Asker
from anchortune.landscape.plane import Plane, plane_of
from anchortune.landscape.run import Run
from anchortune.report.basin import Map, Trajectory


def axis(limit: float, grid: int) -> list[float]:
    """``grid`` values of α from -limit to limit; the middle one is 0.

    Args:
        limit: above 0.
        grid: odd.
    """
    half = grid // 2
    return [limit * step / half for step in range(-half, half + 1)]


def planes_of(
    model: Any, config: BasinConfig, directions: Callable[[str], Direction]
) -> list[Plane]:
    """The plane of each map, which checks that both directions fit the model.

    Raises:
        AnchorError: they do not, or are one line.
    """
    return [
        plane_of(model, directions(one.x), directions(one.y), config.scale) for one in config.maps
    ]


def trajectories(
    plane: Plane, section: MapSection, runs: Mapping[str, Run], anchor: Anchor | None
) -> list[Trajectory]:
    """Each run's checkpoints on the plane, from step 0 at its origin.

    Raises:
        AnchorError: a run moved no weight that the map moves.
    """
    return [_path(plane, label, runs[folder], anchor) for label, folder in section.runs.items()]


def _path(plane: Plane, label: str, run: Run, anchor: Anchor | None) -> Trajectory:
    found = Trajectory(label=label, steps=[0], x=[0.0], y=[0.0], off_plane=[0.0])
    for place in run.places:
        # Without an anchor no full training comes this far, and an adapter's update needs none.
        updates = run.updates(place, anchor)  # type: ignore[arg-type]
        try:
            spot = plane.project(updates)
        except AnchorError as error:
            raise AnchorError(f"{label}, {place.label}: {error}") from None
        found.steps.append(place.step or 0)
        found.x.append(spot.x)
        found.y.append(spot.y)
        found.off_plane.append(spot.off_plane)
    return found


def measure_map(
    asker: Asker,
    plane: Plane,
    section: MapSection,
    config: BasinConfig,
    paths: list[Trajectory],
    tell: Callable[[], None],
) -> Map:
    """Every place of the grid, row by row from the lowest y.

    Args:
        asker: of the live model.
        plane: of the map.
        section: of the config.
        config: for the grid and its range.
        paths: drawn over it.
        tell: called as each place is done.
    """
    points = []
    for y in axis(section.y_max or config.alpha_max, config.grid):
        for x in axis(section.x_max or config.alpha_max, config.grid):
            points.append(asker.point([(plane.x, x), (plane.y, y)]))
            tell()
    return Map(x=section.x, y=section.y, cosine=plane.cosine, points=points, trajectories=paths)
