"""What the records of a sweep tell: rates over seeds, paired differences, non-inferiority.

Nothing here reads a file or prints. Rates and differences are fractions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from anchortune.maths.seeds import paired_over_seeds
from anchortune.maths.stats import holm, over_seeds
from anchortune.report.runs import Outcome, RunRecord
from anchortune.report.sweep_load import UNTRAINED, SweepError, listed, nearest

LESS_IS_BETTER = frozenset({"harm", "over_refusal"})
INDICATIVE = frozenset({"builtin"})
"""Judges whose figures are marked so: they miss the bar that was set them (its card says how)."""

Item = tuple[str, str]
Marks = dict[Item, float | None]


@dataclass(frozen=True)
class Group:
    """The complete runs of one cell, one for each seed.

    Attributes:
        runs: sorted by seed.
        task: of the cell; decides which accuracy counts where a run has several.
    """

    runs: tuple[RunRecord, ...]
    task: str | None = None

    @property
    def untrained(self) -> bool:
        """Whether it is a model before fine-tuning, whose one run serves every seed."""
        return bool(self.runs) and all(r.labels.get("defence") in UNTRAINED for r in self.runs)


@dataclass(frozen=True)
class Spec:
    """Which verdicts a column counts.

    Attributes:
        measure: of the record's measures.
        set: prompt set or task; None where each run has one, or one named as its task.
        judge: whose; None where answers are held against targets.
    """

    measure: str
    set: str | None = None
    judge: str | None = None

    @property
    def less_is_better(self) -> bool:
        """Whether a lower rate is the better one."""
        return self.measure in LESS_IS_BETTER

    @property
    def indicative(self) -> bool:
        """Whether the judge misses the bar it was set."""
        return self.judge in INDICATIVE


@dataclass(frozen=True)
class Estimate:
    """A rate over the seeds of a cell.

    Attributes:
        value: the mean of the seeds' rates.
        low: of the 95 % interval: Wilson's for one seed, else clustered (``maths.over_seeds``).
        high: of the same.
        seeds: those with a verdict.
        n: different prompts with a verdict.
        unscored: (seed, prompt) pairs without one.
        asked: (seed, prompt) pairs, with one or without.
        sets: names of the prompt sets counted.
        judges: whose verdicts; none where answers are held against targets.
    """

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    n: int
    unscored: int
    asked: int
    sets: tuple[str, ...]
    judges: tuple[str, ...]

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Contrast:
    """A cell minus another, over the same seeds and prompts.

    Attributes:
        value: the difference of the rates.
        low: of its 95 % interval.
        high: of the same.
        p: two-sided, of no difference.
        p_holm: after Holm's correction over its family; None before.
        seeds: how many.
        pairs: (seed, prompt) pairs.
    """

    value: float
    low: float
    high: float
    p: float
    p_holm: float | None
    seeds: int
    pairs: int

    @property
    def shown(self) -> bool:
        """Whether it is more than chance: by its interval, and by p after correction."""
        p = self.p if self.p_holm is None else self.p_holm
        return not self.low <= 0 <= self.high and p < 0.05


Verdict = Literal["shown", "refuted", "undecided", "missing"]


@dataclass(frozen=True)
class NonInferiority:
    """Whether one arm is at most a margin worse than another.

    Attributes:
        arm: the row that is claimed for.
        against: the row it is held against.
        column: of the table.
        measure: what is compared.
        margin: most that it may be worse, a fraction.
        contrast: arm minus the other; None where there are no pairs.
        verdict: ``shown`` where the whole interval is within the margin, ``refuted`` where it is
            wholly beyond, else ``undecided``.
    """

    arm: str
    against: str
    column: str
    measure: str
    margin: float
    contrast: Contrast | None
    verdict: Verdict


def chosen(group: Group, run: RunRecord, spec: Spec) -> list[Outcome]:
    """The outcomes of a run that a column counts: none, one, or several it cannot choose from.

    Accuracy is what a task is about; of a task that has none, its win rate.
    """
    measures = {outcome.measure for outcome in run.outcomes}
    asked = spec.measure
    if asked == "accuracy" and asked not in measures:
        asked = "win_rate"
    found = [
        outcome
        for outcome in run.outcomes
        if outcome.measure == asked
        and spec.set in (None, outcome.set)
        and spec.judge in (None, outcome.judge)
    ]
    task = run.labels.get("task", group.task)
    if spec.set is None and len({outcome.set for outcome in found}) > 1:
        own = [outcome for outcome in found if outcome.set == task]
        return own or found
    return found


def specs_of(groups: Sequence[Group], wanted: Sequence[str], judge: str | None) -> list[Spec]:
    """The columns that ``wanted`` asks for, such as ``harm`` or ``accuracy:sst2``.

    A measure with several sets in one run, none of them the run's task, becomes a column for each
    set.

    Args:
        groups: all cells.
        wanted: ``MEASURE`` or ``MEASURE:SET``.
        judge: whose verdicts, where a measure has several judges.

    Raises:
        SweepError: no run has the measure, set or judge, or one of several judges is to be named.
    """
    outcomes = [outcome for group in groups for run in group.runs for outcome in run.outcomes]
    there: set[str] = {outcome.measure for outcome in outcomes}
    if "win_rate" in there:
        there.add("accuracy")
    specs: list[Spec] = []
    for word in wanted:
        measure, _, set_name = word.partition(":")
        if measure not in there:
            known = f"No run has the measure {measure}{nearest(measure, there)}"
            raise SweepError(known if there else "No run is complete: there is nothing to count.")
        whole = Spec(measure)
        sets = {o.set for g in groups for r in g.runs for o in chosen(g, r, whole)}
        sets |= {o.set for o in outcomes if o.measure == measure}
        if set_name and set_name not in sets:
            raise SweepError(f"No run has {measure} on {set_name}{nearest(set_name, sets)}")
        spec = Spec(measure, set_name or None)
        if any(len({o.set for o in chosen(g, r, spec)}) > 1 for g in groups for r in g.runs):
            specs += [replace(spec, set=name) for name in sorted(sets)]
        else:
            specs.append(spec)
    named = [_with_judge(groups, spec, judge) for spec in specs]
    if judge is not None and not any(spec.judge == judge for spec in named):
        every = [replace(spec, judge=None) for spec in named]
        judges = {o.judge for g in groups for r in g.runs for s in every for o in chosen(g, r, s)}
        told = (
            f"No run has the judge {judge} for {listed(sorted({spec.measure for spec in every}))}"
        )
        none = ", which no judge decides; leave out --judge."
        raise SweepError(told + (nearest(judge, filter(None, judges)) if any(judges) else none))
    return list(dict.fromkeys(named))


def _with_judge(groups: Sequence[Group], spec: Spec, judge: str | None) -> Spec:
    judges: dict[str, set[str | None]] = {}  # of each set
    for group in groups:
        for run in group.runs:
            for outcome in chosen(group, run, spec):
                judges.setdefault(outcome.set, set()).add(outcome.judge)
    everybody = set().union(*judges.values())
    if judge in everybody:
        return replace(spec, judge=judge)
    if any(len(some) > 1 for some in judges.values()):
        names = listed(sorted(str(name) for name in everybody))
        raise SweepError(f"Several judged {spec.measure} ({names}): choose one with --judge.")
    return replace(spec, judge=everybody.pop() if len(everybody) == 1 else None)


def marks_of(group: Group, run: RunRecord, spec: Spec) -> Marks:
    """The verdicts of a run that a column counts, by set and item."""
    return {
        (outcome.set, item): verdict
        for outcome in chosen(group, run, spec)
        for item, verdict in outcome.items.items()
    }


def estimate(group: Group, spec: Spec) -> Estimate | None:
    """The cell's rate; None where no prompt has a verdict."""
    by_seed = {run.seed: marks_of(group, run, spec) for run in group.runs}
    items = sorted({item for marks in by_seed.values() for item in marks})
    asked = [mark for marks in by_seed.values() for mark in marks.values()]
    unscored = asked.count(None)
    scored = {
        seed: [marks.get(item) for item in items]
        for seed, marks in by_seed.items()
        if any(mark is not None for mark in marks.values())
    }
    if not scored:
        return None
    rate = over_seeds(list(scored.values()))
    n = sum(
        any(marks[place] is not None for marks in scored.values()) for place in range(len(items))
    )
    sets = tuple(sorted({name for name, _ in items}))
    counted = [outcome for run in group.runs for outcome in chosen(group, run, spec)]
    judges = tuple(sorted({one.judge for one in counted if one.judge is not None}))
    return Estimate(
        rate.mean, rate.low, rate.high, tuple(scored), n, unscored, len(asked), sets, judges
    )


def contrast(first: Group, second: Group, spec: Spec) -> Contrast | None:
    """``first`` minus ``second`` over the seeds and prompts that both have verdicts for.

    The one run of a model that was not trained is paired with every seed of the other. A tie of a
    win rate decides nothing and is left out. None where there is no pair.
    """
    rows: list[dict[Item, int]] = []
    for ours, theirs in _paired_runs(first, second):
        own, other = marks_of(first, ours, spec), marks_of(second, theirs, spec)
        rows.append(
            {
                item: int(mark) - int(base)
                for item, mark in own.items()
                if mark in (0, 1) and (base := other.get(item)) in (0, 1)
            }
        )
    rows = [row for row in rows if row]
    if not rows:
        return None
    items = sorted({item for row in rows for item in row})
    found = paired_over_seeds([[row.get(item) for item in items] for row in rows])
    return Contrast(found.value, found.low, found.high, found.p, None, found.seeds, found.pairs)


def _paired_runs(first: Group, second: Group) -> list[tuple[RunRecord, RunRecord]]:
    if len(second.runs) == 1 and second.untrained:
        return [(run, second.runs[0]) for run in first.runs]
    if len(first.runs) == 1 and first.untrained:
        return [(first.runs[0], run) for run in second.runs]
    by_seed = {run.seed: run for run in second.runs}
    return [(run, by_seed[run.seed]) for run in first.runs if run.seed in by_seed]


def corrected(family: Sequence[Contrast | None]) -> list[Contrast | None]:
    """The family with ``p_holm`` filled in; what is missing stays so and counts for nothing."""
    p_values = [one.p for one in family if one is not None]
    adjusted = iter(holm(p_values) if p_values else [])
    return [None if one is None else replace(one, p_holm=next(adjusted)) for one in family]


def best_of(groups: Sequence[Group], spec: Spec) -> int | None:
    """The place of the cell that is better than every other one, beyond chance.

    It has the best rate, and its paired difference to each other cell has an interval without 0
    and p < .05 after Holm's correction over these differences. Untrained models do not compete;
    cells without verdicts are passed over.
    """
    rates = {
        place: found.value
        for place, group in enumerate(groups)
        if not group.untrained and (found := estimate(group, spec)) is not None
    }
    if len(rates) < 2:
        return None
    sign = 1 if spec.less_is_better else -1
    best = min(rates, key=lambda place: sign * rates[place])
    family = corrected([contrast(groups[best], groups[o], spec) for o in rates if o != best])
    won = all(one is not None and one.shown and sign * one.value < 0 for one in family)
    return best if won else None


def judge_margin(found: Contrast | None, spec: Spec, margin: float) -> Verdict:
    """What a difference says of the claim that the first is at most ``margin`` worse."""
    if found is None:
        return "missing"
    worse = (found.low, found.high) if spec.less_is_better else (-found.high, -found.low)
    if worse[1] < margin:
        return "shown"
    return "refuted" if worse[0] > margin else "undecided"


def seeds_of(groups: Iterable[Group]) -> list[int]:
    """The seeds of all trained runs, sorted."""
    return sorted({run.seed for group in groups if not group.untrained for run in group.runs})
