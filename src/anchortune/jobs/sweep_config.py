"""The strict config of ``anchortune sweep``, and the cells of its grid.

A cell is ``defaults`` with the overrides of one label of every axis merged in, and is checked as a
config of its own.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config import DataSection, Section, TrainConfig, shorthand
from anchortune.config_defences import label_of
from anchortune.config_io import parse_yaml, validate
from anchortune.config_mix import MixSection
from anchortune.errors import ConfigError
from anchortune.evaluation.config import AskSection
from anchortune.jobs.config import AnchorSection
from anchortune.sections import one_or_many

Reference = Literal["aligned", "base"]
#: The axis (or, without one, the chain's own name) under which records keep the defence.
DEFENCE = "defence"
MOST_CELLS = 100_000
_POSITION = re.compile(r"[0-9]{1,9}")
_NOT_HERE = {
    "output": "a sweep places its runs under work",
    "seed": "give seeds, beside axes",
    "penalty": "name asft in defence, with the penalty's keys",
    "screen": "a sweep does not screen its data",
    "preset": "write the settings out",
}


class CellAnchorSection(AnchorSection):
    """Where a sweep's anchor comes from: a file or Hub id, or built from the model and its base."""

    # Unset and false are one, so that a record from before the key stays as it is.
    allow_other_start: Annotated[bool | None, BeforeValidator(lambda value: value or None)] = Field(
        None,
        description="Use the anchor at `path` for a model whose weights are not those it was "
        "built from.",
    )

    @model_validator(mode="after")
    def _of_a_made_one(self) -> CellAnchorSection:
        if self.allow_other_start and self.path is None:
            raise ValueError("allow_other_start is for an anchor at a path; leave it out")
        return self


class CellConfig(TrainConfig):
    """One run of a sweep but for its seed: how it is trained, and what it is asked.

    The keys are those of ``anchortune train``, the penalty being named in ``defence``.
    """

    data: Annotated[list[DataSection], BeforeValidator(one_or_many)] = Field(
        default_factory=list, description="Rows to train on, as they are; or give mix."
    )
    mix: MixSection | None = Field(None, description="Rows to train on, mixed at the run's seed.")
    output: str = Field("", description="Not to be given.")
    anchor: Annotated[CellAnchorSection | None, shorthand("path")] = Field(  # type: ignore[assignment]
        None, description="A made anchor, by its path, or how to build one."
    )
    evaluate: AskSection

    @model_validator(mode="before")
    @classmethod
    def _asft_is_the_penalty(cls, value: Any) -> Any:
        """Leaves ``defence`` as it is; ``asft`` in it is folded when the run is trained."""
        for key, why in _NOT_HERE.items():
            if isinstance(value, dict) and value.get(key) is not None:
                raise ValueError(f"{key}: {why}")
        return value

    def _penalised(self) -> Any:
        """The penalty, which is not folded out of ``defence`` here."""
        named = (section for section in self.defence if section.name in ("asft", "asft-alt"))
        return next(named, None)

    @model_validator(mode="after")
    def _one_source_of_rows(self) -> CellConfig:
        if (self.mix is None) == (not self.data):
            raise ValueError("give either data or mix, the rows to train on")
        return self


@dataclass(frozen=True)
class Axis:
    """One axis of the grid.

    Attributes:
        name: under which records keep the label.
        overrides: by label, what is merged into the defaults: keys may be ``a.b.c``.
        only: on other axes, the labels beside which this one exists.
        keys: where its values go, of an axis of plain values; a cell outside the grid may then
            have another value.
        taken_out: labels that ``null`` took out of the file that is extended.
    """

    name: str
    overrides: dict[str, dict[str, Any]]
    only: dict[str, list[str]]
    keys: tuple[str, ...] = ()
    taken_out: frozenset[str] = frozenset()

    def applies(self, labels: Mapping[str, str]) -> bool:
        """Whether a cell with these labels has one on this axis."""
        return all(labels.get(axis) in wanted for axis, wanted in self.only.items())

    def override(self, label: str) -> dict[str, Any]:
        """What ``label`` changes.

        Raises:
            ConfigError: the axis has no such label.
        """
        if label not in self.overrides:
            known = ", ".join(self.overrides)
            raise ConfigError(f"axes.{self.name} has no '{label}'; there is {known}.")
        return self.overrides[label]

    def touches(self, keys: set[str]) -> bool:
        """Whether any of its labels changes one of these top-level keys."""
        return any(key.partition(".")[0] in keys for o in self.overrides.values() for key in o)


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        labels: axis -> label.
        config: what is run there.
    """

    labels: dict[str, str]
    config: CellConfig


def label_of_value(value: Any) -> str:
    """``0.1``, ``1e-05``, ``true``, ``q_proj+v_proj``: a value as a label."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return "+".join(map(label_of_value, value)) if isinstance(value, list) else str(value)


def _labels(value: Any) -> Any:
    """``{p: 0.1, defence: [sft, asft]}`` with every value a list of labels."""
    if not isinstance(value, dict):
        return value
    many = {axis: one if isinstance(one, list) else [one] for axis, one in value.items()}
    return {axis: [label_of_value(one) for one in some] for axis, some in many.items()}


Labels = Annotated[dict[str, list[str]], BeforeValidator(_labels)]


class SweepConfig(Section):
    """The config of ``anchortune sweep``."""

    name: str = Field(description="Of the sweep; its records carry it.", pattern=r"^[\w-][\w.-]*$")
    defaults: dict[str, Any] = Field(
        description="A run: keys of `anchortune train`, `mix` or `data`, and `evaluate`."
    )
    axes: dict[str, dict[str, Any] | None] = Field(
        default_factory=dict,
        description="By name: labels with what each changes; or `key` (one or several, `a.b.c`) "
        "with `values`. `only: {axis: labels}` keeps an axis to some cells; with it, labels go "
        "under `labels`. `null` takes out an axis, or a label, of the file that is extended.",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] = Field(
        [0], description="Every cell is run once with each."
    )
    skip: list[Labels] = Field(default_factory=list, description="Cells to leave out, by labels.")
    also: list[Labels] = Field(
        default_factory=list,
        description="Cells besides the grid, by labels; an axis of values takes others there.",
    )
    reference: list[Reference] = Field(
        ["aligned"], description="Models evaluated as they are, beside the trained ones."
    )
    results: str = Field(description="The folder of records, one JSON a run.")
    work: str = Field(
        "runs/sweeps", description="The folder of adapters, anchors and mixes, shared by sweeps."
    )

    @model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice; give each once")
        known = {name for name, axis in self.axes.items() if axis is not None}
        if "seed" in known:  # tables and plots choose runs by it
            raise ValueError("axes.seed: list the seeds beside axes, under seeds")
        for key in ("skip", "also"):
            for entry in getattr(self, key):
                unknown = sorted(set(entry) - known)
                if unknown:
                    raise ValueError(f"{key}: there is no axis '{unknown[0]}'; name one of axes")
        return self

    @property
    def grid(self) -> list[Axis]:
        """The axes, in the file's order.

        Raises:
            ConfigError: one that cannot be read.
        """
        found: list[Axis] = []
        for name, raw in self.axes.items():
            if raw is not None:
                found.append(_axis(name, raw, [axis.name for axis in found]))
        return found

    def cells(self) -> list[Cell]:
        """Every cell, checked; the first axis changes slowest.

        Raises:
            ConfigError: a cell is no valid run, or ``skip`` or ``also`` name what there is not.
        """
        axes = self.grid
        for axis in axes:
            for entry in self.skip:
                for label in entry.get(axis.name, []):
                    axis.override(label)
            besides = {label for entry in self.also for label in entry.get(axis.name, [])}
            for other in axes:
                for label in other.only.get(axis.name, []):
                    if label not in axis.taken_out | besides:
                        axis.override(label)
        whole = list(itertools.islice(_product(axes, {}), MOST_CELLS + 1))
        if len(whole) > MOST_CELLS:
            raise ConfigError(
                f"sweep {self.name}: more than {MOST_CELLS} cells; take fewer values."
            )
        chosen = [labels for labels in whole if not self._skipped(labels)]
        for entry in self.also:
            cells = list(_product(axes, entry))
            for name in entry:
                if not any(name in labels for labels in cells):
                    raise ConfigError(
                        f"also: by its only, the axis '{name}' is for none of the cells that "
                        f"{entry} means; leave it out there, or widen only."
                    )
            chosen += [labels for labels in cells if labels not in chosen]
        if not chosen:
            raise ConfigError(f"sweep {self.name}: skip leaves no cell; skip fewer.")
        return [self._cell(axes, labels) for labels in chosen]

    def _skipped(self, labels: Mapping[str, str]) -> bool:
        return any(
            all(labels.get(axis) in wanted for axis, wanted in entry.items()) for entry in self.skip
        )

    def _cell(self, axes: list[Axis], labels: dict[str, str]) -> Cell:
        where = f"sweep {self.name}"
        if labels:
            where += f" ({', '.join(f'{axis} {label}' for axis, label in labels.items())})"
        tree = copy.deepcopy(self.defaults)
        for axis in axes:
            if axis.name in labels:
                override = _of_value(axis, labels[axis.name]) or axis.override(labels[axis.name])
                merge(tree, override, where)
        config = validate(tree, CellConfig, where)
        named = {DEFENCE: label_of(config.defence)} if DEFENCE not in labels else {}
        return Cell(named | labels, config)


def _axis(name: str, raw: dict[str, Any], before: list[str]) -> Axis:
    where = f"axes.{name}"
    options = dict(raw)
    by_value, by_label = "key" in raw, "labels" in raw
    only: dict[str, list[str]] = _labels(options.pop("only", {})) if by_value or by_label else {}
    if not isinstance(only, dict):
        raise ConfigError(f"{where}: only is a mapping of axes to labels; write it so.")
    for axis in only:
        if axis not in before:
            raise ConfigError(
                f"{where}: only names the axis '{axis}', which is not before it"
                "; list that axis first."
            )
    keys: tuple[str, ...] = ()
    if by_value:
        one, values = options.pop("key"), options.pop("values", None)
        keys = tuple(one if isinstance(one, list) else [one])
        texts = all(isinstance(key, str) for key in keys)
        if not isinstance(values, list) or not values or options or not texts:
            raise ConfigError(f"{where}: give key, values (a list), and perhaps only.")
        overrides = {label_of_value(value): dict.fromkeys(keys, value) for value in values}
        if len(overrides) < len(values):
            raise ConfigError(f"{where}: a value is given twice; give it once.")
    else:
        overrides = options.pop("labels") if by_label else options
        if by_label and options:
            raise ConfigError(f"{where}: give labels, and perhaps only.")
    taken_out: frozenset[str] = frozenset()
    if isinstance(overrides, dict):
        taken_out = frozenset(label for label, change in overrides.items() if change is None)
        overrides = {label: change for label, change in overrides.items() if change is not None}
    if not isinstance(overrides, dict) or not overrides:
        raise ConfigError(f"{where}: give labels with what each changes, or key and values.")
    for label, override in overrides.items():
        if not isinstance(label, str) or not isinstance(override, dict):
            raise ConfigError(
                f"{where}.{label}: expected a label (a text) with a mapping of what it changes."
            )
    return Axis(name, overrides, only, keys, taken_out)


def _of_value(axis: Axis, label: str) -> dict[str, Any] | None:
    """What a value outside the grid changes; None of a label of the grid."""
    if label in axis.overrides or not axis.keys:
        return None
    return dict.fromkeys(axis.keys, parse_yaml(label, f"axes.{axis.name}"))


def _product(axes: list[Axis], fixed: Mapping[str, list[str]]) -> Iterator[dict[str, str]]:
    """Every choice of one label an axis; ``fixed`` names the labels of some axes."""

    def choose(index: int, labels: dict[str, str]) -> Iterator[dict[str, str]]:
        if index == len(axes):
            yield labels
            return
        axis = axes[index]
        if not axis.applies(labels):
            yield from choose(index + 1, labels)
            return
        for label in fixed.get(axis.name, list(axis.overrides)):
            if not axis.keys:
                axis.override(label)
            yield from choose(index + 1, labels | {axis.name: label})

    return choose(0, {})


def merge(tree: dict[str, Any], override: Mapping[str, Any], where: str) -> None:
    """Puts ``override`` into ``tree``: mappings into mappings, anything else in place of what was.

    A key may be ``a.b.c``, with positions where a list is.

    Raises:
        ConfigError: a key leads through what holds none.
    """
    for path, value in override.items():
        if not isinstance(path, str):
            raise ConfigError(f"{where}: a key is a text, and {path} is none; quote it.")
        node: Any = tree
        steps = path.split(".")
        for step, below in itertools.pairwise(steps):
            if isinstance(node, dict) and node.get(step) is None:
                if _POSITION.fullmatch(below):
                    raise ConfigError(
                        f"{where}: {path}: there is no '{step}' here that could have a place "
                        f"{below}; put a list there first."
                    )
                node[step] = {}
            node = node[_place(node, step, path, where)]
        place = _place(node, steps[-1], path, where)
        there = node.get(place) if isinstance(node, dict) else node[place]
        if isinstance(value, Mapping) and isinstance(there, dict):
            merge(there, value, where)
        else:
            node[place] = copy.deepcopy(value)


def _place(node: Any, step: str, path: str, where: str) -> Any:
    if isinstance(node, list) and _POSITION.fullmatch(step) and int(step) < len(node):
        return int(step)
    if isinstance(node, dict):
        return step
    raise ConfigError(
        f"{where}: {path}: there is nothing under '{step}'; give the step above it first."
    )
