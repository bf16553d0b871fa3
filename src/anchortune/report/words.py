"""Figures as people read them; fractions become percent here and nowhere else."""

from __future__ import annotations

import re

from anchortune.evaluation.results import Agreement, Difference, Measure
from anchortune.untrusted import markdown_cell as markdown_cell
from anchortune.untrusted import shown as shown

_IN_A_WORD = re.compile(r"(?<=\w)\\_(?=\w)")

KINDS = {
    "harm": "harmful score",
    "refusal": "refusal rate",
    "coherence": "coherence",
    "over_refusal": "over-refusal",
    "accuracy": "accuracy",
    "win_rate": "win rate",
}
"""The kinds of measures, in the order in which they are shown."""
MISSING = "–"


def markdown_text(text: str) -> str:
    """As ``markdown_cell``, with underscores within words as they are: there they do nothing."""
    return _IN_A_WORD.sub("_", markdown_cell(text))


def percent(fraction: float) -> str:
    """``12.3 %``."""
    return f"{100 * fraction:.1f} %"


def span(low: float, high: float) -> str:
    """``8.1–18.0``: an interval of rates, in percent."""
    return f"{100 * low:.1f}–{100 * high:.1f}"


def points(fraction: float) -> str:
    """``+3.4`` or ``−7.6``: a difference of rates in percentage points, with a true minus."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def points_span(low: float, high: float) -> str:
    """``−1.2 to +3.4``: an interval of differences, in percentage points."""
    return f"{points(low)} to {points(high)}"


def p_value(p: float) -> str:
    """``.012``, ``<.001`` or ``1``."""
    if p < 0.001:
        return "<.001"
    return "1" if p > 0.9995 else f"{p:.3f}".removeprefix("0")


def best_p(gap: Difference) -> float:
    """P after Holm's correction, or as it is where nobody corrected it."""
    return gap.p if gap.p_holm is None else gap.p_holm


def is_shown(gap: Difference) -> bool:
    """Whether a difference is more than chance: by its interval and by p after correction."""
    return not gap.low <= 0 <= gap.high and best_p(gap) < 0.05


def number(value: object) -> str:
    """A plain value for a table: four figures of a float, thousands apart, yes and no."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        if value.is_integer() and abs(value) < 1e6:
            return str(int(value))
        return f"{value:.4g}"
    return str(value)


def agreement(found: Agreement) -> str:
    """``builtin and file on advbench: 91.7 % of 24 agree, κ 0.83``."""
    kappa = "no spread" if found.kappa is None else f"κ {found.kappa:.2f}"
    judges = " and ".join(found.judges)
    return f"{judges} on {found.set}: {percent(found.agree)} of {found.n} agree, {kappa}"


def measure_name(measure: Measure, *, mark: bool = True) -> str:
    """``harmful score (builtin)``: the kind, who judged and, if ``mark``, that it is indicative."""
    judge = f" ({measure.judge})" if measure.judge else ""
    return KINDS[measure.kind] + judge + (", indicative" if mark and measure.indicative else "")
