"""The EPLs of a basin and their ratios as a table, beside the paper's Table 7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from anchortune.report.basin import Basin
from anchortune.report.basin_words import (
    PAPER,
    SCALES,
    SIDES,
    alpha,
    bracket_of,
    ended_of,
    interval_of,
    named,
    ratio_interval,
    ratio_of,
    sides_mean,
    times,
    value_of,
)
from anchortune.report.words import MISSING, markdown_cell, shown

Form = Literal["text", "markdown"]
EPL_HEAD = ("direction", "side", "EPL", "95 %", "between", "search ended")
RATIO_HEAD = ("EPL over EPL", "ratio", "95 %")
PAPER_HEAD = ("model", "EPL aligned", "EPL harmful", "ratio")


def epl_rows(basin: Basin) -> list[tuple[str, ...]]:
    """A row for each direction and side, in the order of ``EPL_HEAD``."""
    return [
        (
            named(epl.direction),
            SIDES[epl.side],
            value_of(epl),
            interval_of(epl),
            bracket_of(epl),
            ended_of(epl),
        )
        for epl in basin.epl
    ]


def ratio_rows(basin: Basin) -> list[tuple[str, ...]]:
    """A row for each ratio, in the order of ``RATIO_HEAD``."""
    return [
        (f"{named(one.over)} / {named(one.under)}", ratio_of(one), ratio_interval(one))
        for one in basin.ratios
    ]


def paper_rows(basin: Basin) -> list[tuple[str, ...]]:
    """This model first, then the paper's, in the order of ``PAPER_HEAD``."""
    ours = next((r for r in basin.ratios if (r.over, r.under) == ("aligned", "harmful")), None)
    here = (
        shown(basin.model),
        sides_mean(basin.epl, "aligned"),
        sides_mean(basin.epl, "harmful"),
        ratio_of(ours) if ours is not None else MISSING,
    )
    theirs = [
        (f"{name} (paper)", f"{aligned}", f"{harmful}", times(aligned / harmful))
        for name, (aligned, harmful) in PAPER.items()
    ]
    return [here, *theirs]


def notes(basin: Basin) -> list[str]:
    """What the figures depend on, a sentence each."""
    found = [
        f"EPL: the first |α| at which the harmful score has risen by more than "
        f"{100 * basin.tolerance:.3g} points over α = 0, as {shown(basin.judge)} judges the "
        f"answers to {shown(basin.set)}; looked for up to |α| = {alpha(basin.alpha_max)}, and no "
        f"further than where {100 * basin.incoherent:.3g} % of the answers are no language.",
        f"Scale: {SCALES[basin.scale]}.",
        "Between: the largest |α| measured inside and the smallest outside; over several draws "
        "the outermost of each.",
        "Intervals are 95 % ones, for another sample of prompts and of draws.",
    ]
    if any(epl.draws > 1 for epl in basin.epl):
        found.append("Of random directions the EPL is the mean over the draws.")
    sides = list(dict.fromkeys(epl.side for epl in basin.epl)) or ["+", "-"]
    found.append(
        "The paper (arXiv 2506.08473, Table 7) gives neither its tolerance nor its range of α, and "
        "one value for both sides; "
        + (
            "ours is the mean of the two."
            if len(sides) > 1
            else f"ours is of {SIDES[sides[0]]} alone."
        )
    )
    return found


def render(basin: Basin, form: Form = "text") -> str:
    """EPLs, ratios, the paper's beside them, and what they depend on."""
    parts = [_table(EPL_HEAD, epl_rows(basin), form)]
    if basin.ratios:
        parts.append(_table(RATIO_HEAD, ratio_rows(basin), form))
    if {"aligned", "harmful"} <= {epl.direction for epl in basin.epl}:
        parts.append(_table(PAPER_HEAD, paper_rows(basin), form))
    bullet = "* " if form == "markdown" else ""
    parts.append("\n".join(bullet + note for note in notes(basin)))
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], form: Form) -> str:
    if form == "markdown":
        lines = [
            head,
            ["---"] * len(head),
            *([markdown_cell(cell) for cell in row] for row in rows),
        ]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
    every = [head, *rows]
    widths = [max(len(row[at]) for row in every) for at in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in every
    )
