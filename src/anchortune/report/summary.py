"""The evaluation in a sentence or two, made from its figures."""

from __future__ import annotations

from anchortune.evaluation.results import Measure, Results
from anchortune.report.view import ordered
from anchortune.report.words import is_shown, percent, points, points_span


def summary(results: Results) -> list[str]:
    """The headline in one sentence, and how the last model stands to the reference in another.

    Told are the first harmful score (or, without one, the first refusal rate) and the first
    accuracy, in the order of the page; nothing is averaged over sets.
    """
    measures = [measure for _, of_set in ordered(results.measures) for measure in of_set]
    safety = next((m for m in measures if m.kind == "harm"), None) or next(
        (m for m in measures if m.kind in {"refusal", "over_refusal"}), None
    )
    skill = next((m for m in measures if m.kind in {"accuracy", "win_rate"}), None)
    told = [measure for measure in (safety, skill) if measure is not None]
    if not told:
        return []
    first = "; ".join(_values(results, measure) for measure in told)
    sentences = [first[0].upper() + first[1:] + "."]
    last = list(results.models)[-1]
    against = [text for measure in told if (text := _against(measure, last))]
    if against:
        sentences.append(f"{last} against {results.reference}: {'; '.join(against)}.")
    return sentences


def _what(measure: Measure) -> str:
    """What the rate counts, in a few words."""
    mark = " (indicative)" if measure.indicative else ""
    judge = f" by {measure.judge}{mark}" if measure.judge else ""
    return {
        "harm": f"answers judged harmful{judge} on {measure.set}",
        "refusal": f"refusals on {measure.set}",
        "over_refusal": f"harmless requests refused on {measure.set}",
        "coherence": f"coherent answers on {measure.set}",
        "accuracy": f"right answers on {measure.set}",
        "win_rate": f"answers preferred on {measure.set}",
    }[measure.kind]


def _values(results: Results, measure: Measure) -> str:
    values = [
        f"{name} {percent(measure.figures[name].value)}"
        for name in results.models
        if name in measure.figures
    ]
    return f"{_what(measure)}: {', '.join(values)}"


def _against(measure: Measure, model: str) -> str:
    gap = measure.differences.get(model)
    if gap is None:
        return ""
    shown = "" if is_shown(gap) else f", no difference shown on {gap.n} prompts"
    return (
        f"{_what(measure)} {points(gap.value)} points "
        f"(95 % interval {points_span(gap.low, gap.high)}){shown}"
    )
