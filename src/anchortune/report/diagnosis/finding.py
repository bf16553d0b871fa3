"""What a check says: a finding with its mend, that it looked and found nothing, or that it did not.

A check never says more than it has looked at: what it had no facts for is told as not looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from anchortune.report.diagnosis.facts import Facts

Level = Literal["fault", "caution"]
Symptom = Literal["safety", "skill", "repeat"]
DOCS = "docs/diagnose.md"
FOUND = 3
"""The exit code where there is a fault, as of a failed gate."""


@dataclass(frozen=True)
class Finding:
    """Something that explains a symptom, or is one.

    Attributes:
        level: ``fault`` is to be mended; ``caution`` limits what the figures can tell.
        seen: what was seen, with figures.
        why: why it matters.
        mend: what to do.
    """

    level: Level
    seen: str
    why: str
    mend: str


class Fine(NamedTuple):
    """It was looked at and nothing is wrong; ``seen`` has the figures."""

    seen: str


class Unseen(NamedTuple):
    """It was not looked at; ``why`` names what was missing."""

    why: str


Said = Finding | Fine | Unseen | list[Finding]


class Check(NamedTuple):
    """One question about a run.

    Attributes:
        name: also the heading of its part in ``docs/diagnose.md``.
        symptom: what it explains.
        rule: answers it.
    """

    name: str
    symptom: Symptom
    rule: Callable[[Facts], Said]

    @property
    def docs(self) -> str:
        """Where to read more."""
        return f"{DOCS}#{self.name}"


@dataclass(frozen=True)
class Diagnosis:
    """What all checks said.

    Attributes:
        run: what was looked at, in words.
        findings: (check, finding), faults first.
        looked: (check, what was seen) where nothing is wrong.
        not_looked: (check, why).
    """

    run: str
    findings: list[tuple[Check, Finding]]
    looked: list[tuple[Check, str]]
    not_looked: list[tuple[Check, str]]

    @property
    def faults(self) -> int:
        """How many findings are faults."""
        return sum(finding.level == "fault" for _, finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 without a fault, else 3."""
        return FOUND if self.faults else 0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "run": self.run,
            "faults": self.faults,
            "findings": [
                {"check": check.name, "symptom": check.symptom, **asdict(found), "docs": check.docs}
                for check, found in self.findings
            ],
            "looked": [{"check": check.name, "seen": seen} for check, seen in self.looked],
            "not_looked": [{"check": check.name, "why": why} for check, why in self.not_looked],
            "exit_code": self.exit_code,
        }

    def lines(self) -> list[str]:
        """For people, one finding in five lines, whatever models, sets and files are called."""
        cautions = len(self.findings) - self.faults
        told = [
            f"{self.run}: {_count(self.faults, 'fault')}, {_count(cautions, 'caution')}; "
            f"{len(self.looked)} checks found nothing, {len(self.not_looked)} did not look"
        ]
        for check, found in self.findings:
            told += [
                "",
                f"{found.level.upper()} {check.name} ({check.symptom})",
                f"  seen  {found.seen}",
                f"  why   {found.why}",
                f"  mend  {found.mend}",
                f"  docs  {check.docs}",
            ]
        told += _listed("looked at, nothing found", self.looked)
        told += _grouped("not looked at", self.not_looked)
        return [line.replace("\n", " ") for line in told]


def _count(number: int, word: str) -> str:
    return f"{number or 'no'} {word}{'' if number == 1 else 's'}"


def _listed(title: str, items: Sequence[tuple[Check, str]]) -> list[str]:
    if not items:
        return []
    width = max(len(check.name) for check, _ in items)
    return ["", f"{title}:", *(f"  {check.name:<{width}}  {said}" for check, said in items)]


def _grouped(title: str, items: Sequence[tuple[Check, str]]) -> list[str]:
    """Checks that did not look, those of one reason on one line."""
    reasons: dict[str, list[str]] = {}
    for check, why in items:
        reasons.setdefault(why, []).append(check.name)
    told = [f"  {', '.join(names)}: {why}" for why, names in reasons.items()]
    return ["", f"{title}:", *told] if told else []


def apply(checks: Sequence[Check], facts: Facts) -> Diagnosis:
    """What every check says of ``facts``, in the order of ``checks``, faults first."""
    found: list[tuple[Check, Finding]] = []
    looked: list[tuple[Check, str]] = []
    unseen: list[tuple[Check, str]] = []
    for check in checks:
        said = check.rule(facts)
        if isinstance(said, Fine):
            looked.append((check, said.seen))
        elif isinstance(said, Unseen):
            unseen.append((check, said.why))
        else:
            found += [(check, one) for one in ([said] if isinstance(said, Finding) else said)]
    found.sort(key=lambda pair: pair[1].level != "fault")  # stable: the order of checks stays
    return Diagnosis(facts.run, found, looked, unseen)
