"""The alignment direction and the harmful one looked for again at each checkpoint of a run.

One estimator throughout, ``-∇L`` (see ``training.gradient``): on refusals it is where the model
would have to go to refuse more, on harmful pairs to comply more. What is compared is the estimate
at a checkpoint with the same estimate at step 0, never with an anchor made in another way; beside
it stands what the sample of rows alone makes of it.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.binding import match_name
from anchortune.anchor.inspect import oriented
from anchortune.config import DataSection, MachineSection, ModelSection
from anchortune.data.named import name_for_records
from anchortune.defences.against import factors_of
from anchortune.errors import TrainingError
from anchortune.landscape.run import Place, Run
from anchortune.maths.angles import (
    chance_cosine,
    cosine,
    energy,
    principal_angles,
    random_angles,
    share_inside,
)
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_config, load_model, load_tokenizer, pick_numbers
from anchortune.report.drift import Direction, Turn
from anchortune.training.batches import TokenisedData, tokenise
from anchortune.training.gradient import descent
from anchortune.training.refresh import cosine_of
from anchortune.training.template import Encoded, Template

logger = logging.getLogger(__name__)
_MAX_LENGTH = 2048


@dataclass(frozen=True)
class Asked:
    """One direction to estimate.

    Attributes:
        name: which.
        source: the rows: refusals, or harmful pairs.
        anchor: made in another way, for one figure at each place; None without.
    """

    name: Literal["aligned", "harmful"]
    source: DataSection
    anchor: Anchor | None = None


@dataclass
class Estimates:
    """What has been checked and can be estimated.

    Attributes:
        run: whose checkpoints.
        asked: the directions, with their rows.
        anchor: says which modules, and how their weights are stored.
        rank: triplets kept in each module.
        numbers: device and dtypes.
        tokenizer: of the start model.
    """

    run: Run
    asked: list[tuple[Asked, TokenisedData]]
    anchor: Anchor
    rank: int
    numbers: Numbers
    tokenizer: Any

    def lines(self) -> list[str]:
        """For people: what would be done."""
        places = len(self.run.places) + 1
        told = [
            f"{one.name:8}{len(data.rows)} rows of {one.source.path}" for one, data in self.asked
        ]
        rows = sum(len(data.rows) for _, data in self.asked)
        passes = rows * (places + 1)  # step 0 is done on the halves too
        return [
            *told,
            f"gradients of {len(self.anchor)} modules at {places} places, {passes} rows forwards "
            f"and backwards, {self.numbers.device.type}",
        ]


def plan_directions(
    run: Run,
    anchor: Anchor,
    asked: Sequence[Asked],
    *,
    rank: int = 32,
    machine: MachineSection | None = None,
) -> Estimates:
    """Reads the rows; no model is loaded.

    Args:
        run: whose checkpoints.
        anchor: whose modules are looked at.
        asked: the directions.
        rank: triplets to keep in each module.
        machine: device and dtype.

    Raises:
        TrainingError: the run's checkpoints lie on weights that are not in a file.
        DataError: rows cannot be used, or are fewer than two.
    """
    if run.edited:
        raise TrainingError(
            f"{run.path} moved the start weights before training (lox), so its checkpoints are no "
            "models by themselves: leave out the rows, and the update alone is looked at"
        )
    start = run.start
    numbers = pick_numbers(machine or MachineSection(), run.config.lora)
    tokenizer = load_tokenizer(start)
    if not tokenizer.chat_template:
        tokenizer = load_tokenizer(run.config.model)
    template = Template(tokenizer)
    limit = getattr(load_config(start).get_text_config(), "max_position_embeddings", None)
    longest = min(_MAX_LENGTH, limit or _MAX_LENGTH)
    read = []
    for one in asked:
        data = tokenise([one.source], template, longest, 0)
        if len(data.rows) < 2:
            raise TrainingError(
                f"{one.source.path} holds {len(data.rows)} usable row: give two or more, for the "
                "halves are compared"
            )
        read.append((one, data))
    return Estimates(run, read, anchor, rank, numbers, tokenizer)


def directions_again(
    plan: Estimates, tell: Callable[[int, int], None] = lambda done, total: None
) -> list[Direction]:
    """Each direction at step 0 and at every place of the run.

    The model is loaded once, and an adapter put on it for each checkpoint; of a full training each
    checkpoint is a model.

    Args:
        plan: checked.
        tell: is told after each place how many of how many are done.

    Raises:
        AnchorError: a gradient is zero or no number.
        CheckpointError: a model cannot be loaded.
    """
    total = len(plan.run.places) + 1
    first: list[dict[str, Factors]] = []
    made: list[dict[str, Any]] = []
    model = load_model(plan.run.start, plan.numbers)
    for one, data in plan.asked:
        whole, even, odd = (
            _estimate(plan, model, rows) for rows in (data.rows, data.rows[::2], data.rows[1::2])
        )
        first.append(whole)
        sizes = [math.prod(factors.shape) for factors in whole.values()]
        made.append(
            {
                "name": one.name,
                "data": name_for_records(one.source.path),
                "data_sha256": data.reports[0].sha256,
                "rows": len(data.rows),
                "rank": plan.rank,
                "chance": chance_cosine(sum(sizes)),
                "noise": cosine_of(even, odd),
                "start_cosine": _with_anchor(whole, one.anchor),
            }
        )
    tell(1, total)
    turns: list[list[Turn]] = [[] for _ in plan.asked]
    if plan.run.full:
        del model
        model = None
    for number, place in enumerate(plan.run.places):
        with _model_at(plan, model, place) as live:
            for at, (one, data) in enumerate(plan.asked):
                now = _estimate(plan, live, data.rows)
                turns[at].append(_turn(place, now, first[at], one.anchor))
        tell(number + 2, total)
    return [Direction(**facts, turns=found) for facts, found in zip(made, turns, strict=True)]


def _estimate(plan: Estimates, model: Any, rows: Sequence[Encoded]) -> dict[str, Factors]:
    """By the anchor's names, d_out first however the weights are stored."""
    infos = plan.anchor.metadata.modules
    found = descent(model, plan.tokenizer, plan.numbers, list(infos), rows, plan.rank)
    return {name: oriented(factors, infos[name]) for name, factors in found.items()}


@contextmanager
def _model_at(plan: Estimates, model: Any, place: Place) -> Iterator[Any]:
    if plan.run.full:
        yield load_model(ModelSection(path=str(place.folder)), plan.numbers)
        return
    from peft import PeftModel

    wrapped = PeftModel.from_pretrained(model, str(place.folder))
    try:
        yield wrapped.to(plan.numbers.device)
    finally:
        wrapped.unload()  # takes the adapter off; nothing was merged, so nothing is to be undone


def _turn(
    place: Place, now: Mapping[str, Factors], first: Mapping[str, Factors], anchor: Anchor | None
) -> Turn:
    angles, chances = [], []
    caught = chance = total = 0.0
    for name, factors in now.items():
        start = first[name]
        angles.append(float(principal_angles(start.left, factors.left).rad2deg().mean()))
        d_out = factors.shape[0]
        chances.append(float(random_angles(d_out, start.rank, factors.rank).rad2deg().mean()))
        weight = energy(factors)
        caught += weight * share_inside(start.left, factors.left, factors.sigma)
        chance += weight * start.rank / d_out
        total += weight
    return Turn(
        label=place.label,
        step=place.step,
        cosine=cosine_of(now, first),
        anchor_cosine=_with_anchor(now, anchor),
        angle_mean=statistics.fmean(angles),
        random_mean=statistics.fmean(chances),
        inside=caught / total,
        chance_inside=chance / total,
        modules={name: cosine(factors, first[name]) for name, factors in now.items()},
    )


def _with_anchor(found: Mapping[str, Factors], anchor: Anchor | None) -> float | None:
    """The cosine with an anchor over the modules that it holds."""
    if anchor is None:
        return None
    pairs = {name: match_name(name, anchor.modules) for name in found}
    held = {name: factors_of(anchor, key) for name, key in pairs.items() if key is not None}
    return cosine_of({name: found[name] for name in held}, held) if held else None
