"""Re-anchoring in mid-training: every few steps the penalty's anchor is made again.

The new anchor is the direction of steepest descent at the weights of that moment (see
``anchortune.training.gradient``), made before the step's own forward pass. Where the update is
measured from stays the start model, so what has been learnt stays penalised.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import TrainerCallback

from anchortune.anchor.asked import check_rank
from anchortune.anchor.binding import Target, cover
from anchortune.config import AlignConfig, DataSection, PenaltySection, TrainConfig
from anchortune.data.conversations import SourceReport
from anchortune.errors import AnchorError, TrainingError
from anchortune.files import atomic_path, write_json
from anchortune.maths.angles import energy, inner
from anchortune.maths.factors import Factors
from anchortune.maths.operators import Operator, Side
from anchortune.models.load import Numbers
from anchortune.training.anchored import settings
from anchortune.training.batches import tokenise
from anchortune.training.gradient import descent
from anchortune.training.mixins import check_trainer, put_in_front
from anchortune.training.template import Encoded, Template

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor

logger = logging.getLogger(__name__)
T = TypeVar("T")
STATE_FILE = "refresh_state.json"
TENSORS_FILE = "refresh_state.safetensors"
_PARTS = ("left", "sigma", "right")


@dataclass(frozen=True)
class Refresh:
    """How the anchor is made again, and from what.

    Attributes:
        every: optimizer steps between two times.
        rank: directions kept in each layer.
        rows: what the gradient is taken on.
        tokenizer: of the model.
        numbers: device and dtypes.
        report: of the rows' source.
    """

    every: int
    rank: int
    rows: Sequence[Encoded]
    tokenizer: Any
    numbers: Numbers
    report: SourceReport

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to go on, as plain values."""
        return {"every": self.every, "rank": self.rank, "data_sha256": self.report.sha256}

    def summary(self) -> dict[str, Any]:
        """For records."""
        return {"every": self.every, "rank": self.rank, "source": self.report.summary()}

    def line(self, steps: int) -> str:
        """For people: when and at what cost, in a run of ``steps``."""
        times = (steps - 1) // self.every
        return (
            f"the anchor is made again every {self.every} steps at rank {self.rank}: {times} "
            f"passes over {len(self.rows)} rows, which the time below leaves out"
        )

    def make(self, model: Any, modules: Sequence[str]) -> dict[str, Factors]:
        """The anchor's factors at the model's weights of this moment.

        Raises:
            AnchorError: a gradient is zero or no number.
        """
        return descent(model, self.tokenizer, self.numbers, modules, self.rows, self.rank)


def plan_refresh(
    config: TrainConfig | AlignConfig,
    template: Template,
    max_length: int,
    numbers: Numbers,
    steps: int,
) -> Refresh | None:
    """What the config's ``anchor_refresh`` asks for, its rows read; None without it.

    Args:
        config: of the run.
        template: of the model.
        max_length: longer rows are cut, in tokens.
        numbers: device and dtypes.
        steps: optimizer steps of the run.

    Raises:
        DataError: the rows cannot be used.
        TrainingError: the run is too short for it.
    """
    section = config.anchor_refresh if isinstance(config, TrainConfig) else None
    if section is None:
        return None
    if section.every >= steps:
        raise TrainingError(
            f"anchor_refresh.every is {section.every} and the run has {steps} steps, so the anchor "
            "would never be made again; lower it, or take anchor_refresh out."
        )
    sources: list[DataSection] = [section.data]
    # The rows that are taken are part of the method, not of a repetition: a seed of their own.
    data = tokenise(sources, template, max_length, 0)
    return Refresh(
        section.every, section.rank, data.rows, template.tokenizer, numbers, data.reports[0]
    )


class _State:
    """What the seam keeps for one trainer."""

    def __init__(self, refresh: Refresh, penalty: Any) -> None:
        self.refresh = refresh
        self.first = {t.name: t.factors for t in penalty.coverage.targets}
        self.unlogged: dict[str, float] = {}
        self.at: int | None = None
        """Steps that were done when the anchor was made last; None: never."""


class _Renewal(TrainerCallback):  # type: ignore[misc]
    """Makes the anchor again before the step that follows every so many."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        held: _State = self._trainer._refreshing
        if state.global_step and not state.global_step % held.refresh.every:
            self._trainer._renew(state.global_step)


class RefreshMixin:
    """Makes the penalty's anchor again in a trainer that has one (``AsftMixin``)."""

    _refreshing: _State

    def _renew(self, step: int) -> None:
        trainer: Any = self
        held, penalty = self._refreshing, trainer._asft.penalty
        before = {t.name: t.factors for t in penalty.coverage.targets}
        now = held.refresh.make(trainer.model, list(before))
        penalty.measure_against(now)
        held.at = step
        held.unlogged = {
            "refresh/cosine_to_first": cosine_of(now, held.first),
            "refresh/cosine_to_last": cosine_of(now, before),
        }
        logger.info(
            "the anchor was made again after step %d: cosine %.3g to the first, %.3g to the last",
            step, *held.unlogged.values(),
        )  # fmt: skip

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds how far the anchor has turned, where it was made again since the last log."""
        if "loss" in logs and self._refreshing.unlogged:
            logs.update(self._refreshing.unlogged)
            self._refreshing.unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            _save(Path(output_dir), self._refreshing, trainer._asft.penalty)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            trainer: Any = self
            _load(Path(checkpoint), self._refreshing, trainer._asft.penalty)


def cosine_of(one: Mapping[str, Factors], other: Mapping[str, Factors]) -> float:
    """The cosine of two anchors over all their modules as one vector, of the kept parts.

    Args:
        one: factors by module.
        other: of the same modules.
    """
    both = math.fsum(inner(one[name], other[name]) for name in one)
    sizes = [math.fsum(energy(side[name]) for name in one) for side in (one, other)]
    return max(-1.0, min(1.0, both / math.sqrt(sizes[0] * sizes[1])))


def attach_refresh(trainer: T, refresh: Refresh) -> T:
    """Lets a trainer's penalty be bound, every few steps, to an anchor made again.

    After ``attach``, before ``trainer.train()``. Checkpoints hold the anchor of the moment, so that
    a resumed run takes the steps of one that was not cut short, to the bit.

    Args:
        trainer: with its penalty.
        refresh: what is done.

    Raises:
        TrainingError: the trainer has no penalty or is refreshed already, runs in several
            processes, or the penalty's operator is one to which a gradient's scale matters.
    """
    if isinstance(trainer, RefreshMixin):
        raise TrainingError("this trainer's anchor is made again already: attach once")
    check_trainer(trainer, "call penalty.measure_against(descent(…))")
    made: Any = trainer
    state = getattr(made, "_asft", None)
    if state is None:
        raise TrainingError(
            "this trainer has no penalty whose anchor could be made again: attach that first"
        )
    if made.args.world_size > 1:
        raise TrainingError("an anchor is made again in one process only: train on one device")
    refuse_operator(state.penalty.operator)
    held = state.penalty
    check_ranks(refresh, held.coverage.targets, held.operator, held.side, held.rank)
    made._refreshing = _State(refresh, state.penalty)
    made.add_callback(_Renewal(made))
    put_in_front(made, RefreshMixin, "Refreshed")
    return trainer


def refuse_operator(operator: str) -> None:
    """Refuses an operator that has no use for a gradient as its anchor.

    Raises:
        TrainingError: it is ``gram`` or ``none``.
    """
    if operator == "gram":
        raise TrainingError(
            "operator gram depends on the size of dW, and a gradient's size says nothing: take "
            "subspace, subspace2, direction or direction_global, or leave anchor_refresh out"
        )
    if operator == "none":
        raise TrainingError(
            "operator none looks at no anchor, so there is none to make again: leave "
            "anchor_refresh out"
        )


def check_refresh(
    refresh: Refresh, anchor: Anchor, skeleton: Any, section: PenaltySection | None
) -> None:
    """Refuses what would fail only when the anchor is made again.

    Args:
        refresh: what is asked for.
        anchor: the first one.
        skeleton: the model with its adapter; the weights may be on the meta device.
        section: the penalty's settings.

    Raises:
        AnchorError: the penalty would vanish, or asks for a higher rank.
        TrainingError: its operator has no use for a gradient.
    """
    if section is None:
        return
    resolved = settings(section)
    refuse_operator(resolved["operator"])
    targets = cover(skeleton, anchor.modules).targets
    check_ranks(refresh, targets, resolved["operator"], section.side, section.rank)


def check_ranks(
    refresh: Refresh,
    targets: Sequence[Target],
    operator: Operator,
    side: Side,
    rank: int | None,
) -> None:
    """Refuses ranks at which the penalty on a new anchor would vanish, or that it will not hold.

    Args:
        refresh: how it will be made.
        targets: bound modules.
        operator: of the penalty.
        side: of the penalty.
        rank: of the penalty.

    Raises:
        AnchorError: naming the module.
    """
    for target in targets:
        kept = min(refresh.rank, *target.factors.shape)
        whole = kept == min(target.factors.shape)
        empty = torch.empty(1)
        stand_in = Factors(
            left=empty.expand(target.factors.shape[0], kept),
            sigma=empty.expand(kept),
            right=empty.expand(target.factors.shape[1], kept),
            norm=1.0,
            tail=0.0 if whole else 1.0,
        )
        try:
            check_rank(replace(target, factors=stand_in), operator, side, rank)
        except AnchorError as error:
            raise AnchorError(f"anchor_refresh at rank {refresh.rank}: {error}") from None


def _save(folder: Path, held: _State, penalty: Any) -> None:
    from safetensors.torch import save_file

    saved: dict[str, Any] = {
        "settings": held.refresh.identity(),
        "at": held.at,
        "unlogged": held.unlogged,
    }
    if held.at is not None:
        found = {t.name: t.factors for t in penalty.coverage.targets}
        saved["modules"] = {name: [f.norm, f.tail] for name, f in found.items()}
        tensors = {
            f"{name}.{part}": getattr(factors, part).detach().cpu().clone().contiguous()
            for name, factors in found.items()
            for part in _PARTS
        }
        with atomic_path(folder / TENSORS_FILE) as temporary:
            save_file(tensors, temporary)
    write_json(folder / STATE_FILE, saved)


def _load(folder: Path, held: _State, penalty: Any) -> None:
    from safetensors.torch import load_file

    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(
            f"{folder} was saved without anchor_refresh (it has no {STATE_FILE}): resume from a "
            "checkpoint of a run with it, or start anew"
        )
    saved = json.loads(path.read_text(encoding="utf-8"))
    for key, value in held.refresh.identity().items():
        if saved["settings"].get(key) != value:
            raise TrainingError(
                f"{folder} was saved with another anchor_refresh ({key} differs): resume with the "
                "same, or start anew"
            )
    held.at, held.unlogged = saved["at"], saved["unlogged"]
    if held.at is None:
        return
    tensors = load_file(folder / TENSORS_FILE)
    penalty.measure_against(
        {
            name: Factors(
                left=tensors[f"{name}.left"],
                sigma=tensors[f"{name}.sigma"],
                right=tensors[f"{name}.right"],
                norm=norm,
                tail=tail,
            )
            for name, (norm, tail) in saved["modules"].items()
        }
    )
