"""The runs of sweeps, from files and folders, and a choice of them by their labels."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from anchortune.errors import AnchortuneError
from anchortune.files import parse_json
from anchortune.report.runs import RunRecord, read_run

UNTRAINED = ("base", "aligned")
"""Values of ``defence`` that name a model as it was before fine-tuning: lines to compare with."""
_FIRST = (*UNTRAINED, "sft")
_TELLING = {"digest", "labels", "outcomes", "sweep"}
"""Keys of which a file has two at least that is, or was meant to be, a record of a run."""
SEED = "seed"
"""Not an axis of a table, but one can choose by it."""


class SweepError(AnchortuneError):
    """Records of which no such table or plot can be made, or a choice that fits none of them."""


def read_runs(places: Sequence[Path]) -> list[RunRecord]:
    """Every run in the given files and in the JSON files below the given folders.

    JSON in a folder that has nothing of a record of a run is passed over. Of
    two records of one digest a complete one beats a failed one. The order is by labels and seed,
    whatever the order of the files.

    Raises:
        SweepError: nothing there, or two records of one digest that do not agree.
        AnchortuneError: a record that cannot be read.
    """
    files: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            found = [p for p in sorted(place.rglob("*.json")) if p.is_file() and _is_run(p)]
            if not found:
                raise SweepError(
                    f"{place} holds no record of a run; name the results that a sweep wrote."
                )
            files |= dict.fromkeys(found)
        elif place.is_file():
            files[place] = None
        else:
            raise SweepError(f"{place} is not there; give records of runs or a folder of them.")
    by_digest: dict[str, RunRecord] = {}
    for run in map(read_run, files):
        other = by_digest.setdefault(run.digest, run)
        if other.state == run.state == "complete" and other.outcomes != run.outcomes:
            raise SweepError(
                f"Two records of the run {run.digest[:12]} hold different outcomes; "
                "give the results of one machine."
            )
        if _precedes(run, other):
            by_digest[run.digest] = run
    return sorted(by_digest.values(), key=_order)


def _is_run(path: Path) -> bool:
    if any(part.startswith(".") for part in path.parts[-2:]):
        return False  # half-written, or a folder of tools
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # broken: reading it tells what is wrong
    return isinstance(content, dict) and len(_TELLING & set(content)) >= 2


def _precedes(run: RunRecord, other: RunRecord) -> bool:
    """Which of two equal runs to keep, the same whichever was read first."""
    return (run.state != "complete", run.commit or "~", run.error or "") < (
        other.state != "complete",
        other.commit or "~",
        other.error or "",
    )


def _order(run: RunRecord) -> tuple[object, ...]:
    return sorted(run.labels.items()), run.seed, run.digest


def value_key(value: str) -> tuple[int, float, str]:
    """A key to sort the values of an axis by: untrained models, SFT, numbers by size, words."""
    if value in _FIRST:
        return 0, float(_FIRST.index(value)), value
    number = as_number(value)
    return (2, 0.0, value) if number is None else (1, number, value)


def as_number(value: str) -> float | None:
    """The number that a label is, or None."""
    try:
        number = float(value)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def axes_of(runs: Iterable[RunRecord]) -> dict[str, list[str]]:
    """The axes of the runs' labels, and the sorted values of each."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for axis, value in run.labels.items():
            found.setdefault(axis, set()).add(value)
    return {axis: sorted(found[axis], key=value_key) for axis in sorted(found)}


def parse_where(conditions: Sequence[str]) -> dict[str, list[str]]:
    """``["task=sst2", "lam=0.1,1"]`` as axis -> values, in the order given.

    Raises:
        SweepError: one that is not ``axis=value``.
    """
    found: dict[str, list[str]] = {}
    for condition in conditions:
        axis, equals, values = condition.partition("=")
        wanted = [value.strip() for value in values.split(",") if value.strip()]
        if not equals or not axis.strip() or not wanted:
            raise SweepError(f"--where {condition}: write AXIS=VALUE or AXIS=VALUE,VALUE.")
        found.setdefault(axis.strip(), []).extend(wanted)
    return found


def select(runs: Sequence[RunRecord], where: Mapping[str, Sequence[str]]) -> list[RunRecord]:
    """The runs that have one of the wanted values on each axis.

    A run without the axis stays: plain SFT has no λ, and belongs beside every λ.

    Raises:
        SweepError: an axis or a value that no run has, or nothing left.
    """
    axes = axes_of(runs)
    axes[SEED] = [str(seed) for seed in sorted({run.seed for run in runs})]
    for axis, values in where.items():
        check_axis(axis, axes)
        for value in values:
            if not any(same_value(value, known) for known in axes[axis]):
                raise SweepError(f"No run has {axis}={value}; there is {listed(axes[axis])}.")
    kept = [run for run in runs if all(_fits(run, axis, where[axis]) for axis in where)]
    if not kept:
        raise SweepError("No run has all that --where asks for; ask for less.")
    return kept


def _fits(run: RunRecord, axis: str, values: Sequence[str]) -> bool:
    if axis == SEED:  # a model that was not trained has no seed of its own
        return run.labels.get("defence") in UNTRAINED or str(run.seed) in values
    own = run.labels.get(axis)
    return own is None or any(same_value(own, value) for value in values)


def same_value(first: str, second: str) -> bool:
    """Whether two labels are one value: the same text, or the same number."""
    number = as_number(first)
    return first == second or (number is not None and number == as_number(second))


def check_axis(axis: str, axes: Mapping[str, Sequence[str]]) -> None:
    """Refuses an axis that no run has.

    Raises:
        SweepError: with the axes that there are and the nearest.
    """
    if axis not in axes:
        raise SweepError(f"No run has the axis {axis}{nearest(axis, axes)}")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: what there is, and what may be meant."""
    words = sorted(known)
    close = difflib.get_close_matches(word, words, 1)
    return f"; there is {listed(words)}." + (f" Did you mean {close[0]}?" if close else "")


def listed(words: Sequence[str], most: int = 12, between: str = ", ") -> str:
    """``a, b, c``; of many the first, and how many more."""
    if not words:
        return "none"
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more


_PLACE = re.compile(
    r"(?<![\w.:/])(?:~|[A-Za-z]:)?[\\/](?=\w)(?:[^\s\\/'\",;:()]+[\\/])*([^\s\\/'\",;:()]*)"
)


def without_paths(sentence: str) -> str:
    """A sentence in which an absolute path is only its last name, so that no machine shows."""
    return _PLACE.sub(lambda match: match[1] or "…", " ".join(sentence.split()))
