"""Checks of results that do not repeat: prompts, seeds, judges, files, versions, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from anchortune.maths.stats import Z95
from anchortune.report.diagnosis.facts import Facts, Measured
from anchortune.report.diagnosis.finding import Finding, Fine, Said, Unseen
from anchortune.report.diagnosis.safety import name, rate
from anchortune.report.words import number, percent, points
from anchortune.untrusted import without_secrets

TELLS = 0.05
"""A difference that a user would care about; where less cannot be told, it is said."""
AGREE = 0.4
"""Cohen's kappa below this is no more than fair agreement (J. Landis and G. Koch, 1977)."""
MUCH_UNSCORED = 0.05
_COMPUTES = ("torch", "transformers", "peft", "trl", "accelerate", "anchortune")
_MOST = 8


def sample_size(facts: Facts) -> Said:
    """How small a difference can be told at this n?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    known = facts.of("harm", "accuracy", "over_refusal", "win_rate")
    if not known:
        return Unseen("the evaluation has no rate that a repetition would be held against")
    told = [
        f"{name(one)}: with n = {one.own.n} a difference below "
        f"{points(least(one)).lstrip('+')} points cannot be told"
        for one in known
    ]
    if all(least(one) <= TELLS for one in known):
        return Fine("; ".join(told))
    return Finding(
        "caution",
        "; ".join(told),
        "two runs of the same thing differ by that much by chance alone, and the paper's own "
        "advantage over the next best method is 7.6 points",
        "ask more prompts, compare on the same prompts in pairs, and report the interval",
    )


def least(one: Measured) -> float:
    """The smallest difference that the sample can tell from none, at 95 %; a fraction.

    Half the width of the narrower paired interval where pairs are known, and else
    ``z·√(2p(1−p)/n)``, of two independent samples of this size, p no nearer to 0 or 1 than half an
    answer.
    """
    widths = [gap.high - gap.low for gap in (one.gap, one.plain_gap) if gap is not None]
    if widths:
        return min(widths) / 2
    edge = 0.5 / one.own.n
    share = min(1 - edge, max(edge, one.own.value))
    return Z95 * math.sqrt(2 * share * (1 - share) / one.own.n)


def seeds(facts: Facts) -> Said:
    """How many seeds is it?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    run = facts.training
    many = max((one.seeds for one in facts.measures), default=1)
    which = "" if run is None else f" ({run.seed})"
    if many == 1:
        return Finding(
            "caution",
            f"one seed{which}",
            "order, dropout and new weights are other ones with another seed, and how much that "
            "changes is not known from one",
            "give seeds: [1, 2, 3] in the job or sweep; the table then shows the spread over them",
        )
    spread = [
        f"{name(one)}: mean over {one.seeds} seeds, sd {points(one.seeds_sd).lstrip('+')} points"
        for one in facts.measures
        if one.seeds_sd is not None and one.kind in ("harm", "accuracy")
    ]
    return Fine("; ".join(spread) or f"{many} seeds")


def judges(facts: Facts) -> Said:
    """How far can the judges be trusted?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    harm = facts.of("harm")
    if not harm:
        return Unseen("no judge of harm was asked")
    found = []
    weak = sorted({str(one.judge) for one in harm if one.indicative})
    if weak:
        found.append(
            Finding(
                "caution",
                f"{', '.join(weak)} misses the bar that judges are set (indicative)",
                "with another judge the harmful score can be another, and only the difference of "
                "two models under one judge may be believed",
                "judge the same answers again with a stronger one: anchortune judge run",
            )
        )
    for one in harm:
        total = one.own.n + one.unscored
        if one.unscored > MUCH_UNSCORED * total:
            found.append(
                Finding(
                    "caution",
                    f"{name(one)}: {one.unscored} of {total} answers were not scored",
                    f"the rate {rate(one)} is of the others, which need not be like them",
                    "judge them with a second judge, or raise its min_confidence knowingly",
                )
            )
    for pair in facts.agreements:
        if pair.kappa is not None and pair.kappa < AGREE:
            found.append(
                Finding(
                    "caution",
                    f"{' and '.join(pair.judges)} on {pair.set}: {percent(pair.agree)} of {pair.n} "
                    f"verdicts agree, κ {pair.kappa:.2f}",
                    "they do not judge the same thing",
                    "read some answers on which they differ, and calibrate: anchortune judge "
                    "calibrate",
                )
            )
    told = ", ".join(sorted({str(one.judge) for one in harm}))
    if not found and any(one.indicative is None for one in harm):
        return Unseen(f"a sweep's record does not say whether {told} meets the bar of judges")
    return found or Fine(f"{told}: meets its bar, {sum(one.unscored for one in harm)} unscored")


def same_result(facts: Facts) -> Said:
    """Did the evaluation ask the very weights that the run made?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    if facts.asked is None:
        return Unseen("the evaluation does not say which weights it asked")
    if facts.asked:
        return Fine("the evaluation asked the weights that this run made")
    return Finding(
        "fault",
        "the SHA-256 of the adapter that was evaluated is not that of the run's result",
        "the figures are of another model",
        "evaluate again, or give the --eval that belongs to this run",
    )


def files_changed(facts: Facts) -> Said:
    """Are the files that it was made from still the same?"""
    if not facts.checked:
        return Unseen(facts.why("files"))
    if not facts.changed:
        return Fine(f"{facts.checked} files are as the record says")
    return Finding(
        "fault",
        "; ".join(facts.changed),
        "the same command would make another run now, or read another result",
        "put the old files back, or train again and compare new with new",
    )


def versions(facts: Facts) -> Said:
    """Is it another machine or installation than then?"""
    run = facts.training
    if run is None or not run.versions:
        return Unseen(facts.why("training"))
    other = [
        f"{package} {run.versions[package]} (here {facts.here[package]})"
        for package in _COMPUTES
        if package in run.versions
        and package in facts.here
        and run.versions[package] != facts.here[package]
    ]
    if not other:
        return Fine("the packages that computed it are those installed here")
    return Finding(
        "caution",
        f"it was computed with {', '.join(other)}",
        "the same seed gives the same bits only on the same machine and versions",
        "install the versions that the record names before holding bits against bits",
    )


def warned(facts: Facts) -> Said:
    """What did the evaluation itself warn of?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    if facts.warnings is None:
        return Unseen("a sweep's record holds no warnings of its evaluation")
    if not facts.warnings:
        return Fine("the evaluation has no warnings on record")
    some = "; ".join(facts.warnings[:_MOST])
    more = len(facts.warnings) - _MOST
    return Finding(
        "caution",
        some + (f"; and {more} more" if more > 0 else ""),
        "the evaluation says itself why its figures may not be what they seem",
        "mend what it names, and evaluate again",
    )


def compared(facts: Facts) -> Said:
    """What decided this result and not the one it should repeat?"""
    if facts.other is None:
        return Unseen(facts.why("other"))
    where, *others = facts.other
    ours: dict[str, dict[str, Any]] = {}
    theirs: dict[str, dict[str, Any]] = {}
    for mine, other in zip(
        (facts.training.decides if facts.training else {}, facts.decides), others, strict=True
    ):
        if mine and other:  # an evaluation that only one of them has is no difference
            for kind in ("inputs", "settings", "machine"):
                ours[kind] = {**ours.get(kind, {}), **mine.get(kind, {})}
                theirs[kind] = {**theirs.get(kind, {}), **other.get(kind, {})}
    if not ours:
        return Unseen(f"neither a training nor an evaluation is known of both this and {where}")
    found = []
    for kind in ("inputs", "settings", "machine"):
        pairs = differences(ours.get(kind, {}), theirs.get(kind, {}))
        if pairs:
            shown = "; ".join(pairs[:_MOST])
            more = f"; and {len(pairs) - _MOST} more" if len(pairs) > _MOST else ""
            found.append(_differs(kind, where, shown + more))
    known = sum(len(ours.get(kind, {})) for kind in ("inputs", "settings", "machine"))
    return found or Fine(f"{known} settings, hashes and versions are those of {where}")


_KINDS = {
    "inputs": ("other files", "a result repeats on the same model, data, anchor and prompts alone",
               "give both the same files; the hashes name which differ"),
    "settings": ("other settings", "each of them can change the result",
                 "set them alike, p, n and the seed first, and run again"),
    "machine": ("another machine, dtype or version", "equal settings give equal bits on one "
                "machine and one set of versions alone; elsewhere the last digits differ, and "
                "greedy answers with them",
                "hold rates with their intervals against each other, not bits"),
}  # fmt: skip


def _differs(kind: str, where: str, told: str) -> Finding:
    what, why, mend = _KINDS[kind]
    return Finding(
        "caution" if kind == "machine" else "fault", f"{what} than {where}: {told}", why, mend
    )


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """``key ours (theirs)`` of every key whose value differs, hashes cut short."""
    told = []
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key), theirs.get(key)
        if mine != other:
            told.append(f"{key} {_short(mine)} ({_short(other)})")
    return told


def _short(value: Any) -> str:
    text = without_secrets(number(value))
    hexadecimal = len(text) == 64 and all(c in "0123456789abcdef" for c in text)
    return text[:12] + "…" if hexadecimal else text
