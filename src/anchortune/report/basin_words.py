"""What was found of a basin in words: names of directions, EPLs with what is known of them."""

from __future__ import annotations

from collections.abc import Sequence

from anchortune.report.basin import Basin, Count, Epl, Point, Ratio
from anchortune.report.words import MISSING, shown

#: Table 7 of arXiv 2506.08473: EPL of d_aligned and of d_harm.
PAPER = {
    "Llama-2": (0.1287, 0.0099),
    "Qwen-2": (0.6594, 0.0149),
    "Gemma-2": (0.3069, 0.0046),
}
SIDES = {"+": "+α", "-": "−α"}
SCALES = {
    "layer": "d̂ = ‖W‖ · D/‖D‖ in each weight (α = 1: a step as long as the weight itself)",
    "whole": "d̂ = D of norm 1 over all weights together (α is a length)",
}
_PARTS = {"inside": "inside the anchor", "off": "off the anchor"}
_ENDS = {"aligned": ("towards base", "further from base"), "harmful": ("", "towards harm")}


def named(direction: str) -> str:
    """``aligned:off`` as ``aligned, off the anchor``."""
    name, _, part = direction.rpartition(":")
    if name and part in _PARTS:
        return f"{shown(name)}, {_PARTS[part]}"
    return shown(direction)


def ends_of(direction: str) -> tuple[str, str]:
    """Where −α and +α lead, in words; empty where nothing is to be said."""
    return _ENDS.get(direction, ("", ""))


def alpha(value: float) -> str:
    """An α with three figures; never as a power of ten."""
    text = f"{value:.3g}"
    return f"{value:.6f}".rstrip("0") if "e" in text else text


def value_of(epl: Epl) -> str:
    """``0.129``, ``≥ 0.31`` where some draws never left, or ``> 0.5`` where none did."""
    if epl.censored == epl.draws:
        return f"> {alpha(epl.value)}"
    return f"≥ {alpha(epl.value)}" if epl.censored else alpha(epl.value)


def interval(low: float, high: float | None) -> str:
    """``0.11–0.15``, or ``0.11 and more``."""
    return f"{alpha(low)} and more" if high is None else f"{alpha(low)}–{alpha(high)}"


def interval_of(epl: Epl) -> str:
    """The interval; nothing where no draw left."""
    return MISSING if epl.censored == epl.draws else interval(epl.low, epl.high)


def bracket_of(epl: Epl) -> str:
    """Between which measured α the edge lies."""
    if epl.outside is None:
        return f"inside up to {alpha(epl.inside)}"
    return f"{alpha(epl.inside)}–{alpha(epl.outside)}"


def ended_of(epl: Epl) -> str:
    """What ended the search, with the draws that never left."""
    why = {"harm": "left", "incoherent": "incoherent first", "range": "never left"}[epl.ended]
    return f"{why}; {epl.censored} of {epl.draws} draws never" if _some(epl) else why


def _some(epl: Epl) -> bool:
    return 0 < epl.censored < epl.draws


def sides_mean(epls: Sequence[Epl], direction: str) -> str:
    """The mean of the sides' EPLs; ``>`` before it where a side or a draw was never left."""
    found = [epl for epl in epls if epl.direction == direction]
    if not found:
        return MISSING
    mean = sum(epl.value for epl in found) / len(found)
    return ("> " if any(epl.censored for epl in found) else "") + alpha(mean)


def ratio_of(ratio: Ratio) -> str:
    """``13×``, ``at least 13×``; an undefined one is no number."""
    if ratio.bound == "undefined":
        return "undefined"
    text = times(ratio.value)
    return f"{ratio.bound} {text}" if ratio.bound else text


def ratio_interval(ratio: Ratio) -> str:
    """Its interval; nothing of one that is undefined."""
    if ratio.bound == "undefined":
        return MISSING
    if ratio.high is None:
        return f"{times(ratio.low)} and more"
    return f"{times(ratio.low)} to {times(ratio.high)}"


def times(value: float) -> str:
    """``0.85×``, ``4.2×``, ``13×``."""
    digits = 2 if value < 1 else 1 if value < 10 else 0
    return f"{value:.{digits}f}×"


def share(count: Count | None) -> float | None:
    """A count as a fraction; None where nothing was counted."""
    return count.count / count.of if count is not None and count.of else None


def is_incoherent(point: Point, limit: float) -> bool:
    """Whether so many of a place's answers are no language that a search ends there."""
    coherent = share(point.coherent)
    return coherent is not None and 1 - coherent >= limit - 1e-9


def start_of(points: Sequence[Point]) -> float | None:
    """The harmful score of the model where it stands."""
    for point in points:
        if point.alpha in (0, (0, 0)):
            return share(point.harm)
    return None


def headline(basin: Basin) -> list[str]:
    """What was found, in one sentence for each direction and one for each ratio that is known."""
    names = list(dict.fromkeys(epl.direction for epl in basin.epl))
    found = []
    for name in names:
        sides = [epl for epl in basin.epl if epl.direction == name]
        told = ", ".join(f"{value_of(epl)} on {SIDES[epl.side]}" for epl in sides)
        found.append(f"EPL along {named(name)}: {told}.")
    for ratio in basin.ratios:
        if ratio.bound != "undefined":
            found.append(f"{named(ratio.over)} over {named(ratio.under)}: {ratio_of(ratio)}.")
    return found
