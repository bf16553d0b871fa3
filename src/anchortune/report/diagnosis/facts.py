"""What is known of a run, as data: read from its folder by ``jobs.diagnose``, judged by the rules.

A fact that could not be had is None, and ``Facts.missing`` says why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from anchortune.evaluation.results import Agreement, Kind
from anchortune.maths.stats import Rate


class Gap(NamedTuple):
    """A rate minus another's on the same prompts, with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Measured:
    """One measure on one set of prompts.

    Attributes:
        kind: which.
        set: of prompts.
        own: the run's model.
        judge: who judged, where somebody did.
        indicative: the judge misses the bar it was set; None where that is not on record.
        unscored: answers that could not be judged.
        aligned: the aligned model's rate; None where it was not asked.
        gap: own minus aligned.
        plain: the rate of plain fine-tuning; None where there is none beside it.
        plain_gap: own minus plain.
        seeds: how many seeds of the method were asked.
        seeds_sd: standard deviation of their rates; None with one.
    """

    kind: Kind
    set: str
    own: Rate
    judge: str | None = None
    indicative: bool | None = False
    unscored: int = 0
    aligned: Rate | None = None
    gap: Gap | None = None
    plain: Rate | None = None
    plain_gap: Gap | None = None
    seeds: int = 1
    seeds_sd: float | None = None

    def above(self, other: Rate | None, gap: Gap | None) -> bool | None:
        """Whether the run's rate surely lies above another's; None where there is none."""
        if gap is not None:
            return gap.low > 0
        return None if other is None else self.own.low > other.high

    def below(self, other: Rate | None, gap: Gap | None) -> bool | None:
        """Whether it surely lies below; likewise."""
        if gap is not None:
            return gap.high < 0
        return None if other is None else self.own.high < other.low


@dataclass(frozen=True)
class Harmful:
    """What is known of harmful rows in the training data.

    Attributes:
        rows: that are harmful.
        of: rows that were looked at.
        by: ``screen`` (a judge) or ``mix`` (they were mixed in on purpose).
        trained: whether they were trained on; a screen may have dropped them.
    """

    rows: int
    of: int
    by: str
    trained: bool

    @property
    def share(self) -> float:
        """Of all rows, a fraction."""
        return self.rows / self.of if self.of else 0.0


@dataclass(frozen=True)
class Training:
    """One training, complete or not.

    Attributes:
        name: what it is called.
        penalty: as it was resolved: operator, lam, side, …; None without one.
        seed: of order, dropout and new weights.
        complete: whether it has a record.
        start: which of the anchor's parents it began from: ``aligned``, ``base``, ``other``,
            ``unverified``; None where no anchor was given or the record does not say.
        parents: what the anchor was built from, in words.
        log: the lines of ``log.jsonl`` that have a loss, as they are.
        health: what is wrong by ``training.health``: (sentence, whether it ends a training).
        data: ``inputs.data`` of the record.
        harmful: rows among it; None where nobody looked.
        last: the last logged figures (of a sweep's record: ``numbers``).
        metrics: of the record.
        outputs: SHA-256 of the result's files, by name.
        stopped: what the safety probe wrote when it ended the run.
        warn_below: nats that the config lets the probe's margin fall; None where it says nothing.
        adapted: LoRA (True) or every weight (False).
        versions: of the packages that computed it.
        decides: flat key -> value of all that decides the result, by kind: ``settings``,
            ``inputs`` (SHA-256), ``machine``.
    """

    name: str
    penalty: dict[str, Any] | None
    seed: int
    complete: bool = True
    start: str | None = None
    parents: str = "the anchor"
    log: Sequence[Mapping[str, Any]] = ()
    health: Sequence[tuple[str, bool]] = ()
    data: Mapping[str, Any] | None = None
    harmful: Harmful | None = None
    last: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    stopped: Mapping[str, Any] | None = None
    warn_below: float | None = None
    adapted: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    decides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def lam(self) -> float | None:
        """λ at the end of the run; None where it is not known."""
        value = self.last.get("asft/lam", (self.penalty or {}).get("lam"))
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number else None

    @property
    def lam_inside(self) -> float:
        """The weight of the free part."""
        return float((self.penalty or {}).get("lam_inside") or 0.0)

    @property
    def energy(self) -> float | None:
        """``Σ‖U‖²_F`` at the end, as it was logged."""
        value = self.last.get("asft/update_energy")
        return None if value is None else float(value)

    def tenth(self, key: str, last: bool) -> float | None:
        """The mean of a logged figure over the first or the last tenth of the lines."""
        values = [float(line[key]) for line in self.log if line.get(key) is not None]
        if not values or not all(map(math.isfinite, values)):
            return None
        count = max(1, len(values) // 10)
        part = values[-count:] if last else values[:count]
        return sum(part) / count

    def fall(self) -> float | None:
        """How far the loss fell from the first to the last tenth; None where it was not logged."""
        first, end = self.tenth("loss", last=False), self.tenth("loss", last=True)
        return None if first is None or end is None or len(self.log) < 2 else first - end


@dataclass(frozen=True)
class Module:
    """One adapted module's update beside the anchor.

    Attributes:
        name: of the module.
        shape: (d_out, d_in).
        rank: directions of the anchor that the penalty uses.
        norm: ``‖dW‖_F``.
        kept: share of ``‖dW‖²`` that those directions hold.
        eigenvalue: the largest of ``gram``, ``σ²/‖dW‖_F``.
        cost_along: what the run's operator charges a unit update along dW; None with ``none``.
        cost_random: what it charges a random one.
        energy: ``‖U‖²_F``.
        along: ``⟨U, dW⟩`` of the directions used.
        inside: the share of ``‖U‖²`` inside the output subspace.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    norm: float
    kept: float
    eigenvalue: float
    cost_along: float
    cost_random: float
    energy: float
    along: float
    inside: float


@dataclass(frozen=True)
class Lie:
    """How the run's update lies to its anchor.

    Attributes:
        label: at which place of the run.
        modules: those that moved and that the anchor holds.
        uncovered: modules that moved and that the anchor lacks.
        still: adapted modules that have not moved at all.
        harmful: the anchor is a harmful one, along which safety is lost.
    """

    label: str
    modules: Sequence[Module]
    uncovered: Sequence[str] = ()
    still: Sequence[str] = ()
    harmful: bool = False

    @property
    def energy(self) -> float:
        """``Σ‖U‖²`` over the modules."""
        return math.fsum(one.energy for one in self.modules)

    @property
    def anchor_energy(self) -> float:
        """``Σ‖dW‖²`` over the modules."""
        return math.fsum(one.norm**2 for one in self.modules)

    @property
    def along(self) -> float:
        """``Σ⟨U, dW⟩ / Σ‖dW‖²``: −1 where the update takes all of dW back."""
        return math.fsum(one.along for one in self.modules) / self.anchor_energy

    def mean(self, key: str) -> float:
        """A figure of the modules, weighted by the update's energy."""
        return math.fsum(one.energy * getattr(one, key) for one in self.modules) / self.energy

    @property
    def chance_inside(self) -> float:
        """``k / d_out``, weighted likewise."""
        parts = (one.energy * one.rank / one.shape[0] for one in self.modules)
        return math.fsum(parts) / self.energy


class Gradients(NamedTuple):
    """Where the task pulls the start model, beside where alignment lies.

    Attributes:
        rows: of the task.
        with_anchor: cosine of the task's direction of descent with dW.
        inside: share of the task's direction inside the anchor's output subspaces.
        chance: the mean |cosine| of two random directions of that many numbers.
        chance_inside: ``k / d_out``.
        noise: the cosine of the directions of two halves of the rows.
        with_refusals: cosine with the direction of descent on refusals; None where none were given.
        refusals: rows of them.
    """

    rows: int
    with_anchor: float
    inside: float
    chance: float
    chance_inside: float
    noise: float
    with_refusals: float | None = None
    refusals: int = 0


Decides = Mapping[str, Mapping[str, Any]]
"""By kind, see ``Training.decides``."""


@dataclass(frozen=True)
class Facts:
    """All that is known.

    Attributes:
        run: what was looked at, in words.
        training: the run's; None where there is no folder of it.
        plain: plain fine-tuning beside it; None without.
        plain_energy: ``‖U‖²`` of its result; None where it is not known.
        measures: None where no evaluation was found.
        lie: None where update or anchor could not be read.
        gradients: None where nobody asked for them.
        missing: topic (``measures``, ``lie``, ``plain``, ``gradients``, ``other``, …) -> why.
        changed: files that are no longer what the record says, in words.
        checked: how many files were held against the record.
        warnings: what the evaluation itself warns of; None where its record has none to hold.
        agreements: of its judges.
        asked: the evaluation asked this very result; None where that cannot be told.
        here: versions of the packages here and now.
        decides: of the evaluation; see ``Training.decides``.
        other: what is compared with, what decided its training, and what its evaluation; empty
            where that is not known.
    """

    run: str
    training: Training | None = None
    plain: Training | None = None
    plain_energy: float | None = None
    measures: Sequence[Measured] | None = None
    lie: Lie | None = None
    gradients: Gradients | None = None
    missing: Mapping[str, str] = field(default_factory=dict)
    changed: Sequence[str] = ()
    checked: int = 0
    warnings: Sequence[str] | None = ()
    agreements: Sequence[Agreement] = ()
    asked: bool | None = None
    here: Mapping[str, str] = field(default_factory=dict)
    decides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other: tuple[str, Decides, Decides] | None = None

    def why(self, topic: str) -> str:
        """Why a topic is not known."""
        return self.missing.get(topic, "nothing of it was found")

    @property
    def no_penalty(self) -> str:
        """Why nothing is known of a penalty, where there is none."""
        return self.why("training") if self.training is None else "there is no penalty"

    def of(self, *kinds: Kind) -> list[Measured]:
        """The measures of some kinds."""
        return [one for one in self.measures or () if one.kind in kinds]

    @property
    def beside(self) -> Lie | None:
        """How the update lies to the anchor; None too where no module could be held against it."""
        return self.lie if self.lie is not None and self.lie.modules else None

    @property
    def energy(self) -> float | None:
        """``‖U‖²`` of the run's result, of s·B·A; None where it is not known."""
        if self.lie is not None and not self.lie.uncovered:
            return self.lie.energy
        run = self.training
        return None if run is None or (run.penalty or {}).get("scaled") is False else run.energy

    @property
    def safety_lost(self) -> bool | None:
        """Whether the run is surely less safe than the aligned model; None where nobody can tell.

        By the harmful score; where no judge gave one, by the refusals of harmful prompts.
        """
        said = [one.above(one.aligned, one.gap) for one in self.of("harm")]
        if not any(value is not None for value in said):
            said = [one.below(one.aligned, one.gap) for one in self.of("refusal")]
        known = [value for value in said if value is not None]
        return any(known) if known else None

    @property
    def skill_lost(self) -> bool | None:
        """Whether accuracy surely lies below the aligned model's or plain fine-tuning's."""
        said = [
            value
            for one in self.of("accuracy", "win_rate")
            for value in (one.below(one.aligned, one.gap), one.below(one.plain, one.plain_gap))
            if value is not None
        ]
        return any(said) if said else None
