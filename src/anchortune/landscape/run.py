"""A training's folder read for its trajectory: the update at every checkpoint that was kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.checkpoints.pairs import pair_checkpoints
from anchortune.checkpoints.source import open_checkpoint
from anchortune.config import AlignConfig, ModelSection, TrainConfig
from anchortune.config_io import load_config, parse_yaml
from anchortune.errors import TrainingError
from anchortune.maths.lowrank import LowRank
from anchortune.record import RECORD_FILE, read_record
from anchortune.training.folder import has_weights

RESULT = "result"


@dataclass(frozen=True)
class Place:
    """The weights at one moment of a run.

    Attributes:
        label: ``step 20`` or ``result``.
        step: optimizer steps that were done.
        folder: an adapter's, or a whole model's.
    """

    label: str
    step: int | None
    folder: Path


@dataclass
class Run:
    """A training that has been read.

    Attributes:
        path: its folder.
        config: as it was resolved.
        start: the model that it started from.
        places: by rising step, the result last where no checkpoint is the same.
        notes: what a reader of its figures should know.
    """

    path: Path
    config: TrainConfig | AlignConfig
    start: ModelSection
    places: list[Place]
    notes: list[str] = field(default_factory=list)

    @property
    def full(self) -> bool:
        """Whether every weight was trained, and places are whole models."""
        return self.config.lora is None

    @property
    def edited(self) -> bool:
        """Whether a defence changed the start weights, so that checkpoints lie on other ones."""
        return any(getattr(one, "name", "") == "lox" for one in _defence(self.config))

    def updates(self, place: Place, anchor: Anchor) -> Iterator[tuple[str, LowRank | Tensor]]:
        """``U`` of every module that moved, by its name, (d_out, d_in), one at a time.

        Args:
            place: one of ``places``.
            anchor: of a full training, its modules alone are looked at.

        Raises:
            CheckpointError: the weights cannot be read.
            PairError: the start is another model than the run's.
        """
        if not self.full:
            yield from read_update(place.folder)[0].items()
            return
        if self.start.adapter is not None:
            raise TrainingError(
                f"{self.path} trained every weight of {self.start.path} with an adapter merged in, "
                "and its update is not to be had from files; merge that adapter into a folder first"
            )
        before = open_checkpoint(self.start.path, revision=self.start.revision)
        after = open_checkpoint(str(place.folder))
        for delta in pair_checkpoints(after, before, sorted(anchor.modules)).deltas():
            if delta.dense is None or not bool(delta.dense.any()):
                continue
            yield delta.pair.name, delta.dense.T if delta.pair.transposed else delta.dense


def read_run(path: str | Path) -> Run:
    """The places of a training's folder, complete or not.

    Raises:
        TrainingError: it is no training's folder, or holds neither a checkpoint nor a result.
        ConfigError: its config cannot be read.
    """
    folder = Path(path)
    file = folder / "config.yaml"
    if not file.is_file():
        raise TrainingError(
            f"{folder} is no training's folder (it has no config.yaml): give the output of "
            "anchortune train or align"
        )
    try:
        tree = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except UnicodeDecodeError:
        raise TrainingError(
            f"{file} is not UTF-8: it is no config of a training, so name another folder"
        ) from None
    aligns = isinstance(tree, dict) and "method" in tree
    config = load_config(file, AlignConfig) if aligns else load_config(file, TrainConfig)
    start = config.model
    if isinstance(config, TrainConfig) and config.base is not None and _from_base(config):
        start = config.base
    run = Run(folder, config, start, _checkpoints(folder))
    _add_result(run)
    if not run.places:
        raise TrainingError(
            f"{folder} holds no checkpoint and no result: train it with machine.keep_checkpoints: "
            "true"
        )
    if len(run.places) == 1:
        run.notes.append(
            "one place only: a run keeps its checkpoints with machine.keep_checkpoints: true, and "
            "machine.save_steps says how many"
        )
    if run.edited:
        run.notes.append(
            "lox moved the start weights: at checkpoints the update is measured from there, in the "
            "result from the model before"
        )
    return run


def _defence(config: TrainConfig | AlignConfig) -> list[Any]:
    return list(config.defence) if isinstance(config, TrainConfig) else []


def _from_base(config: TrainConfig) -> bool:
    return any(getattr(one, "start", "") == "base" for one in config.defence)


def _checkpoints(folder: Path) -> list[Place]:
    found = []
    for one in (folder / "checkpoints").glob("checkpoint-*"):
        number = one.name.removeprefix("checkpoint-")
        # The trainer writes its state last: without it the saving was cut short.
        whole = has_weights(one) and (one / "trainer_state.json").is_file()
        if number.isdigit() and whole:
            found.append(Place(f"step {number}", int(number), one))
    return sorted(found, key=lambda place: place.step or 0)


def _add_result(run: Run) -> None:
    """The saved result, unless the last checkpoint is the same weights."""
    if not (run.path / RECORD_FILE).is_file():
        return
    record = read_record(run.path)
    try:
        step, made = int(record.metrics["steps"]), str(record.outputs["path"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise TrainingError(
            f"{run.path / RECORD_FILE} is no training's record: it names no steps, or no result"
            ", so train it to its end"
        ) from None
    same = not _defence(run.config) and bool(run.places) and run.places[-1].step == step
    if not same:
        run.places.append(Place(RESULT, step, run.path / made))
