"""From what each answer counts to rates: for every model, by category, with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from anchortune.evaluation.results import Better, Figure, Kind, Measure
from anchortune.maths.stats import wilson

#: By item id, what an answer counts: 1, 0, or ½ for a tie; None: unscored.
Marks = Mapping[str, float | None]


@dataclass(frozen=True)
class Counted:
    """One thing counted on the answers to one set, before any rate is taken.

    Attributes:
        kind: what it is.
        set: the prompt set or task.
        marks: by model.
        better: which way is good.
        judge: who judged, where somebody did.
        named: whether the judge is part of the key: there may be several.
        indicative: the judge misses the bar it was set.
        label: for people.
        categories: by item id.
        note: of the measure.
    """

    kind: Kind
    set: str
    marks: Mapping[str, Marks]
    better: Better
    judge: str | None = None
    named: bool = False
    indicative: bool = False
    label: str = ""
    categories: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> str:
        """``harm:builtin:advbench``, ``accuracy:sst2``."""
        return ":".join([self.kind, *([str(self.judge)] if self.named else []), self.set])

    def measure(self) -> Measure | None:
        """The rates of every model, over all and by category; None where nothing was scored."""
        figures = {model: figure(marks.values()) for model, marks in self.marks.items()}
        known = {model: found for model, found in figures.items() if found is not None}
        if not known:
            return None
        return Measure(
            key=self.key,
            kind=self.kind,
            set=self.set,
            judge=self.judge,
            label=self.label or self.set,
            better=self.better,
            indicative=self.indicative,
            figures=known,
            categories=self._by_category(),
            note=self.note,
        )

    def _by_category(self) -> dict[str, dict[str, Figure]]:
        found: dict[str, dict[str, Figure]] = {}
        for category in sorted(set(self.categories.values())):
            members = {item for item, name in self.categories.items() if name == category}
            rates = {
                model: figure(mark for item, mark in marks.items() if item in members)
                for model, marks in self.marks.items()
            }
            found[category] = {model: rate for model, rate in rates.items() if rate is not None}
        return {category: rates for category, rates in found.items() if rates}


def figure(marks: Iterable[float | None]) -> Figure | None:
    """The rate of the scored ones with Wilson's interval, the unscored counted beside it.

    None where none is scored: there is no such rate.
    """
    every = list(marks)
    scored = [mark for mark in every if mark is not None]
    if not scored:
        return None
    rate = wilson(sum(scored), len(scored))
    return Figure(
        value=rate.value,
        n=rate.n,
        low=rate.low,
        high=rate.high,
        unscored=len(every) - len(scored),
    )
