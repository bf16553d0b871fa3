"""``anchortune basin``: the edge of the safety basin along each direction, maps, and the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from typing import Any

from anchortune.adapter.update import adapter_label
from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.ask import free_memory
from anchortune.evaluation.config import CandidateSection
from anchortune.evaluation.generate import load_engine
from anchortune.files import sha256_file, write_text
from anchortune.landscape.directions import RANDOM, Direction
from anchortune.landscape.maps import measure_map, planes_of, trajectories
from anchortune.landscape.measure import PLACES_FILE, Asker, Places
from anchortune.landscape.perturb import weights_of
from anchortune.landscape.plan import BasinPlan
from anchortune.landscape.search import search
from anchortune.maths.basin import Place, extent, quotient
from anchortune.progress import Progress
from anchortune.record import (
    Record,
    now,
    platform_facts,
    read_record,
    versions,
    write_record,
)
from anchortune.report.basin import BASIN_FILE, Basin, Curve, Epl, Map, Point, Ratio
from anchortune.report.basin_words import is_incoherent

logger = logging.getLogger(__name__)


def finished(plan: BasinPlan) -> Basin | None:
    """What the folder holds where the very same search is complete there; else None."""
    try:
        record = read_record(plan.folder)
        text = (plan.folder / BASIN_FILE).read_text(encoding="utf-8")
    except (DataError, OSError):
        return None
    config = plan.config.model_dump(mode="json")
    same = record.kind == "basin" and record.inputs == plan.inputs()
    same = same and _science(record.config) == _science(config)
    same = same and record.outputs.get("sha256") == sha256_file(plan.folder / BASIN_FILE)
    return Basin.model_validate_json(text) if same else None


def run_basin(plan: BasinPlan, *, engine: Any = None) -> Basin:
    """Looks for every edge, measures the maps, and writes ``basin.json`` and the record.

    What was measured before is not asked again, whatever the tolerance, range or maps of then.

    Args:
        plan: from ``plan_basin``.
        engine: that answers, its ``model`` being the one that is moved; None loads the plan's.

    Raises:
        AnchortuneError: the model cannot be loaded, moved or asked. What was measured stays.
    """
    started = time.perf_counter()
    plan.claim()
    config = plan.config
    engine = engine or load_engine(config.model, config.generation, config.machine)
    model = engine.model
    engine.model.eval()
    loaded = time.perf_counter()
    directions = _Directions(plan)
    lines = [(name, draw) for name in config.along for draw in plan.draws(name)]
    modules = {}
    for name in config.along:  # whether it fits, before anything is asked
        direction = directions(name)
        weights_of(model, direction)
        modules[name] = direction.entries
    planes = planes_of(model, config, directions)
    paths = [
        trajectories(plane, one, plan.runs, plan.sources.anchor)
        for plane, one in zip(planes, config.maps, strict=True)
    ]
    places = Places(plan.folder / PLACES_FILE)
    identities = {
        found.label: plan.identity_of(found)
        for found in [
            *(directions(name, draw) for name, draw in lines),
            *(side for plane in planes for side in (plane.x, plane.y)),
        ]
    }
    asker = Asker(
        model, engine, plan.harm, plan.judge, plan.tasks, places, plan.decides, identities,
        config.scale, engine.tokenizer if config.likelihood else None,
    )  # fmt: skip
    try:
        found = _Found()
        with Progress("places", plan.most) as tell:
            for at, (name, draw) in enumerate(lines):
                before = 1 + at * len(config.sides) * plan.per_side
                points = _along(asker, directions(name, draw), plan, before, tell)
                found.add(name, draw, points, config.incoherent)
        on_curves = len({key for key in found.keys(asker, directions)})
        maps = _maps(asker, planes, plan, paths)
    finally:
        places.close()
    asked_at = time.perf_counter()
    facts = {key: value for key, value in engine.facts().items() if key != "batch_size"}
    try:
        epls = _epls(found, plan)
        ratios = _ratios(found, plan, epls)
    except ValueError as error:  # a bootstrap of too few verdicts
        raise EvaluationError(f"no EPL: {error}; ask more prompts, or another judge.") from None
    basin = Basin(
        model=_named(config.model),
        modules=modules,
        scale=config.scale,
        tolerance=config.tolerance,
        incoherent=config.incoherent,
        alpha_max=config.alpha_max,
        judge=plan.judge.name,
        set=plan.harm.name,
        curves=found.curves,
        epl=epls,
        ratios=ratios,
        maps=maps,
        evaluations={
            "places": on_curves,
            "full_grid": plan.full_grid,
            "on_maps": plan.on_maps,
            "asked_now": asker.asked,
        },
        settings=config.told(),
        platform=platform_facts() | facts,
        timings={"load_s": loaded - started, "ask_s": asked_at - loaded},
    )
    write_text(plan.folder / BASIN_FILE, basin.model_dump_json(indent=1) + "\n")
    write_record(plan.folder, _record(plan, basin, facts))
    del engine, model, asker
    free_memory()
    return basin


class _Directions:
    """The directions of a plan; factors are made once, noise is only its seed."""

    def __init__(self, plan: BasinPlan) -> None:
        self._make = lru_cache(maxsize=None)(plan.sources.direction)

    def __call__(self, name: str, draw: int | None = None) -> Direction:
        if draw is None and name.partition(":")[0] == RANDOM:
            draw = 0
        return self._make(name, draw)


@dataclass
class _Found:
    """Curves, and their places by direction and draw."""

    curves: list[Curve] = field(default_factory=list)
    places: dict[str, list[list[Place]]] = field(default_factory=dict)

    def add(self, name: str, draw: int | None, points: Sequence[Point], limit: float) -> None:
        self.curves.append(Curve(direction=name, draw=draw, points=list(points)))
        self.places.setdefault(name, []).append([as_place(point, limit) for point in points])

    def keys(self, asker: Asker, directions: _Directions) -> list[str]:
        """Of every place, the start once."""
        return [
            asker.key([(directions(curve.direction, curve.draw), _alpha(point))])
            for curve in self.curves
            for point in curve.points
        ]


def as_place(point: Point, incoherent: float) -> Place:
    """A point of a curve as the maths takes it.

    Args:
        point: of a curve.
        incoherent: the share of incoherent answers from which it counts as babble.
    """
    return Place(_alpha(point), point.items, not is_incoherent(point, incoherent))


def _alpha(point: Point) -> float:
    if isinstance(point.alpha, tuple):
        raise ValueError("a point of a curve has one α")
    return point.alpha


def _along(
    asker: Asker, direction: Direction, plan: BasinPlan, before: int, tell: Any
) -> list[Point]:
    """The points of one curve, by rising α; ``before`` were the most that came ahead of it."""
    config = plan.config
    start = asker.point([(direction, 0.0)])
    tell(before)
    points = {0.0: start}
    for at, side in enumerate(config.sides):
        base = before + at * plan.per_side
        count = 0

        def measure(alpha: float, base: int = base) -> Place:
            nonlocal count
            points[alpha] = asker.point([(direction, alpha)])
            count += 1
            tell(base + count)
            return as_place(points[alpha], config.incoherent)

        search(
            measure,
            as_place(start, config.incoherent),
            sign=1.0 if side == "+" else -1.0,
            scan=plan.scan,
            tolerance=config.tolerance,
            resolution=config.resolution,
        )
        tell(base + plan.per_side)
    return [points[alpha] for alpha in sorted(points)]


def _maps(
    asker: Asker, planes: Sequence[Any], plan: BasinPlan, paths: Sequence[list[Any]]
) -> list[Map]:
    found: list[Map] = []
    if not planes:
        return found
    done = 0
    with Progress("places of maps", plan.on_maps) as show:

        def tell() -> None:
            nonlocal done
            done += 1
            show(done)

        for plane, section, drawn in zip(planes, plan.config.maps, paths, strict=True):
            found.append(measure_map(asker, plane, section, plan.config, drawn, tell))
    return found


def _epls(found: _Found, plan: BasinPlan) -> list[Epl]:
    config = plan.config
    return [
        Epl(
            direction=name,
            side=side,
            **extent(
                draws, side, config.tolerance, resamples=config.bootstrap, seed=config.seed
            )._asdict(),
        )
        for name, draws in found.places.items()
        for side in config.sides
    ]


def _ratios(found: _Found, plan: BasinPlan, epls: Sequence[Epl]) -> list[Ratio]:
    """Each direction over each that comes after it: aligned over harmful, over random, and so on.

    A direction along which nothing but the start is language has no width to divide by.
    """
    config = plan.config
    wide = {one.direction for one in epls if one.value > 0}
    return [
        Ratio(
            over=over,
            under=under,
            **quotient(
                found.places[over],
                found.places[under],
                config.tolerance,
                sides=config.sides,
                resamples=config.bootstrap,
                seed=config.seed,
            )._asdict(),
        )
        for over, under in combinations([name for name in found.places if name in wide], 2)
    ]


def _record(plan: BasinPlan, basin: Basin, facts: dict[str, Any]) -> Record:
    return Record(
        kind="basin",
        created=now(),
        config=plan.config.model_dump(mode="json"),
        seed=plan.config.seed,
        inputs=plan.inputs(),
        outputs={"path": BASIN_FILE, "sha256": sha256_file(plan.folder / BASIN_FILE)},
        numbers=facts,
        timings=basin.timings,
        metrics={
            "epl": [one.model_dump(mode="json") for one in basin.epl],
            "ratios": [one.model_dump(mode="json") for one in basin.ratios],
            "evaluations": basin.evaluations,
        },
        versions=versions(),
        platform=platform_facts(),
    )


def _science(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in {"machine", "output"}}


def _named(model: CandidateSection) -> str:
    """A model and its adapters, without the folders of somebody's machine; a Hub id stays whole."""
    path = str(model.path)
    local = path.startswith(("/", ".", "~")) or path.count("/") > 1
    name = path.rstrip("/").rsplit("/", 1)[-1] if local else path
    return " + ".join([name, *map(adapter_label, model.adapter)])
