"""A search for the basin's edge, checked in full before any long work, and what it costs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.config_io import dump_yaml
from anchortune.errors import AnchorError, CheckpointError, ConfigError, EvaluationError
from anchortune.evaluation.candidates import Candidate, for_judges, look_at, measure_prompts
from anchortune.evaluation.engine import numbers_of
from anchortune.evaluation.estimate import estimate
from anchortune.evaluation.folder import without_pace
from anchortune.evaluation.judges.base import Judge
from anchortune.evaluation.judges.registry import kinship, make_judge
from anchortune.evaluation.plan import Asked
from anchortune.evaluation.prompt_sets import load_prompts
from anchortune.evaluation.tasks.load import load_task
from anchortune.files import write_text
from anchortune.landscape.config import BasinConfig
from anchortune.landscape.directions import RANDOM, Direction, Sources
from anchortune.landscape.measure import PLACES_FILE
from anchortune.landscape.run import Run, read_run
from anchortune.landscape.search import full_grid, most_places, scan_of
from anchortune.models.load import adapter_identity
from anchortune.models.load import identity as weights_identity
from anchortune.progress import duration
from anchortune.record import RECORD_FILE
from anchortune.report.basin import BASIN_FILE

CONFIG_FILE = "config.yaml"
_OURS = {CONFIG_FILE, PLACES_FILE, "lock.json"}


@dataclass
class BasinPlan:
    """A basin that can be measured.

    Attributes:
        config: resolved.
        candidate: the model, its headers read.
        harm: malicious prompts.
        tasks: asked too.
        judge: of the answers.
        sources: of directions.
        decides: what decides answers beside the place.
        made_from: by name of a direction's source, its identity with hashes.
        runs: by folder, those drawn over maps.
        notes: what the user should know.
        seconds: that one place takes at most; None where it was not timed.
        memory: a line about it.
    """

    config: BasinConfig
    candidate: Candidate
    harm: Asked
    tasks: list[Asked]
    judge: Judge
    sources: Sources
    decides: dict[str, Any]
    made_from: dict[str, Any]
    runs: dict[str, Run]
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None
    memory: str | None = None

    @property
    def folder(self) -> Path:
        """That is written."""
        return Path(self.config.output).expanduser()

    @property
    def scan(self) -> list[float]:
        """|α| going outwards."""
        return scan_of(self.config.first, self.config.alpha_max)

    @property
    def per_side(self) -> int:
        """The most places on one side of one direction."""
        return most_places(self.scan, self.config.resolution)

    def draws(self, name: str) -> list[int | None]:
        """The draws of a direction; one, without a number, where it is not random."""
        random = name.partition(":")[0] == RANDOM
        return [*range(self.config.draws)] if random else [None]

    @property
    def lines_searched(self) -> int:
        """Directions, draws and sides."""
        return sum(len(self.draws(name)) for name in self.config.along) * len(self.config.sides)

    @property
    def most(self) -> int:
        """Places that curves take at the most."""
        return 1 + self.lines_searched * self.per_side

    @property
    def full_grid(self) -> int:
        """What a grid as fine as the search would take."""
        return 1 + self.lines_searched * full_grid(self.scan, self.config.resolution)

    @property
    def on_maps(self) -> int:
        """Places of all maps; some of them lie on curves."""
        return len(self.config.maps) * self.config.grid**2

    def identity_of(self, direction: Direction) -> dict[str, Any]:
        """What decides where a direction leads, with hashes."""
        whole, _, piece = direction.name.partition(":")
        found = {"source": self.made_from[whole], "draw": direction.draw}
        if piece:
            held = [self.made_from["aligned"], self.config.operator, self.config.rank]
            found |= {"piece": piece, "of": held}
        return found

    def lines(self) -> list[str]:
        """For people: what would be done."""
        config = self.config
        asked = [f"{len(self.harm.items)} malicious prompts of {self.harm.name}"]
        asked += [f"{len(task.items)} items of {task.name}" for task in self.tasks]
        found = [
            f"model   {self.candidate.line()}",
            f"along   {', '.join(config.along)}; sides {' and '.join(config.sides)}; d̂ scaled "
            f"by {config.scale}",
            f"asked   at each place {', '.join(asked)}, at most {self.harm.max_new_tokens} new "
            "tokens",
            f"judge   {self.judge.name}; left where the harmful score has risen by more than "
            f"{config.tolerance:.0%}, ended where {config.incoherent:.0%} of answers are "
            "incoherent",
            f"search  |α| from {config.first:g} to {config.alpha_max:g}, the edge to "
            f"{config.resolution:.0%}: at most {self.most} places, where a grid as fine takes "
            f"{self.full_grid}",
        ]
        if config.maps:
            drawn = "; ".join(f"{one.x} × {one.y}" for one in config.maps)
            found.append(f"maps    {drawn}: at most {self.on_maps} places more")
        if self.seconds is not None:
            whole = duration(self.seconds * (self.most + self.on_maps))
            found.append(
                f"time    at most about {duration(self.seconds)} a place, {whole} in all, were "
                "every answer as long as it may be; judging besides"
            )
        found += [self.memory] if self.memory else []
        found.append(f"output  {self.folder}")
        return [*found, *(f"note    {note}" for note in self.notes)]

    def summary(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "kind": "basin",
            "config": self.config.model_dump(mode="json"),
            "inputs": self.inputs(),
            "places_at_most": self.most + self.on_maps,
            "full_grid": self.full_grid,
            "seconds_a_place": self.seconds,
            "output": str(self.folder),
            "notes": self.notes,
        }

    def inputs(self) -> dict[str, Any]:
        """What the basin is made from, with hashes."""
        runs = {folder: [place.label for place in run.places] for folder, run in self.runs.items()}
        return {"decides": self.decides, "directions": self.made_from, "runs": runs}

    def claim(self) -> None:
        """Makes the folder; a record of another search there goes, what was measured stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / RECORD_FILE).unlink(missing_ok=True)
        write_text(self.folder / CONFIG_FILE, dump_yaml(self.config))


def plan_basin(config: BasinConfig, *, timed: bool = False) -> BasinPlan:
    """Everything that can be checked without asking anybody anything, checked.

    Args:
        config: of the search.
        timed: estimate the time of one place as well, which takes some seconds.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    _check_folder(Path(config.output).expanduser())
    sources, made_from = _sources(config)
    for name in _names(config):
        sources.check(name)
    candidate = look_at("model", config.model)
    harm, tasks = _asked(config)
    identity = for_judges(candidate)
    judge = make_judge(config.judge, config.machine, [identity])
    for task in tasks:
        if task.task is not None:
            task.task.check([identity])
    lengths, tokens = [], {}
    for one in (harm, *tasks):
        found, tokens[one.name] = measure_prompts(candidate, one.items)
        lengths.append(found)
    if RANDOM in {name.partition(":")[0] for name in _names(config)}:
        shapes = json.dumps(sorted(sources.shapes().items()))
        made_from[RANDOM] = {
            "seed": config.seed, "shapes_sha256": hashlib.sha256(shapes.encode()).hexdigest()
        }  # fmt: skip
    decides = {
        "model": candidate.identity,
        "sets": {one.name: [one.identity, one.max_new_tokens] for one in (harm, *tasks)},
        "tokens": tokens,
        "judge": without_pace(judge.identity()),
        "generation": config.generation.model_dump(mode="json"),
        "likelihood": config.likelihood,
        "dtype": str(numbers_of(config.machine).weights),
    }
    decides = json.loads(json.dumps(decides))
    plan = BasinPlan(
        config, candidate, harm, tasks, judge, sources, decides, made_from, _runs(config, candidate)
    )
    plan.notes += kinship(judge, [identity])
    plan.notes += [note for run in plan.runs.values() for note in run.notes]
    if judge.indicative:
        plan.notes.append(f"figures of the judge {judge.name} are indicative: see its calibration")
    if timed:
        about = estimate(
            {"model": candidate}, [harm, *tasks], {"model": lengths}, config.machine
        )  # fmt: skip
        plan.seconds = about.seconds
        plan.memory = about.lines()[-1] if about.lines() else None
    return plan


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise EvaluationError(f"output {folder} is a file; name a folder.")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if there - _OURS and not there & {PLACES_FILE, BASIN_FILE}:
        raise EvaluationError(
            f"output {folder} holds files that are not a basin's; name another folder."
        )


def _names(config: BasinConfig) -> list[str]:
    """Every direction that is asked for, on curves and maps."""
    return [*config.along, *(name for one in config.maps for name in (one.x, one.y))]


def _sources(config: BasinConfig) -> tuple[Sources, dict[str, Any]]:
    made_from: dict[str, Any] = {}
    anchors = []
    for name, file in (("aligned", config.anchor), ("harmful", config.harmful_anchor)):
        anchor = None if file is None else Anchor.load(Path(file).expanduser())
        if anchor is not None:
            if anchor.metadata.harmful is not None and name == "aligned":
                raise AnchorError(
                    f"anchor {file} is a harmful anchor, along which safety is lost; give it as "
                    "harmful_anchor, and as anchor the one of aligned - base."
                )
            made_from[name] = {"anchor_sha256": anchor.sha256}
        anchors.append(anchor)
    updates = {}
    for label, path in config.adapters.items():
        folder = Path(path).expanduser()
        if not folder.is_dir():
            raise CheckpointError(
                f"adapters.{label}: {path} is no folder; give one that PEFT saved."
            )
        updates[label], _ = read_update(folder)
        found = adapter_identity(str(folder))
        made_from[label] = {key: found[key] for key in ("sha256", "config_sha256")}
    sources = Sources(
        anchors[0], anchors[1], updates, operator=config.operator, rank=config.rank,
        seed=config.seed,
    )  # fmt: skip
    return sources, made_from


def _asked(config: BasinConfig) -> tuple[Asked, list[Asked]]:
    how: dict[str, Any] = {
        "part": config.part,
        "selection_frac": config.selection_frac,
        "seed": config.seed,
    }
    prompts = load_prompts(config.harm, **how)
    longest = prompts.max_new_tokens or config.generation.max_new_tokens
    harm = Asked(prompts.name, "harm", prompts.items, longest, prompts.identity())
    tasks = []
    for section in config.tasks:
        task = load_task(section, **how)
        if task.kind == "win_rate":
            raise EvaluationError(
                f"tasks: {task.name} is won or lost against a reference and has no right answers; "
                "leave it out of a basin."
            )
        tasks.append(
            Asked(task.name, task.kind, task.items, task.max_new_tokens, task.identity(), task)
        )
    names = [harm.name, *(one.name for one in tasks)]
    for one in (harm, *tasks):
        if not one.items:
            raise EvaluationError(
                f"{one.name}: nothing to ask; an empty set has no rate, so leave it out."
            )
        if names.count(one.name) > 1:
            raise EvaluationError(f"two sets are called '{one.name}'; give one of them a label.")
    return harm, tasks


def _runs(config: BasinConfig, candidate: Candidate) -> dict[str, Run]:
    """Runs that maps draw, read; each started from the model that is moved.

    Raises:
        ConfigError: one started from other weights, or trained all of them and there is no anchor.
    """
    found: dict[str, Run] = {}
    folders: Sequence[str] = [folder for one in config.maps for folder in one.runs.values()]
    for folder in dict.fromkeys(folders):
        run = read_run(Path(folder).expanduser())
        if run.full and config.anchor is None:
            raise ConfigError(
                f"maps: {folder} trained every weight, and its update is read in an anchor's "
                "modules alone; give an anchor."
            )
        started = weights_identity(run.start)
        if not _same_weights(started, candidate.identity):
            raise ConfigError(
                f"maps: {folder} started from {run.start.path}, which is not the model that is "
                "moved; its path would lie on another map"
                ", so leave it out."
            )
        found[folder] = run
    return found


def _same_weights(started: dict[str, Any], model: dict[str, Any]) -> bool:
    """Whether both are the same weights with the same adapters merged, wherever they lie."""
    theirs = [started["adapter"]["sha256"]] if "adapter" in started else []
    mine = [one["sha256"] for one in model.get("adapters", [])]
    return bool(started["sha256"] == model["sha256"]) and theirs == mine
