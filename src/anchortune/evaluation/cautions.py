"""What a reader must know before they believe a figure, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from anchortune.config import DataSection
from anchortune.data.named import local_path
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.evaluation.candidates import Run
from anchortune.evaluation.judging import Answers
from anchortune.evaluation.plan import EvalPlan
from anchortune.evaluation.results import Measure

#: With fewer prompts the interval of a rate near one half is wider than ±10 points.
SMALL = 100
#: The share of unscored answers, and of answers that were cut, above which it is said.
MUCH_UNSCORED, MANY_CUT = 0.05, 0.2


def cautions(
    plan: EvalPlan,
    measures: Sequence[Measure],
    answers: Answers,
    engines: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[str]:
    """Every caution that applies, the weightiest first.

    Args:
        plan: of the evaluation.
        measures: what was found.
        answers: of every model to every set.
        engines: by model, every way in which it was run.
    """
    return [
        *_of_part(plan),
        *_of_overlap(plan),
        *_of_training(plan),
        *_of_judges(plan, measures),
        *_of_unscored(plan, measures),
        *_of_cut(plan, answers),
        *_of_engines(engines),
        *_of_size(plan),
    ]


def _of_part(plan: EvalPlan) -> Iterator[str]:
    part = plan.config.part
    if part == "all" and not plan.generates:
        return  # answers made elsewhere, whose prompts nobody has split
    if part != "report":
        whole = "all prompts were" if part == "all" else "the selection part was"
        yield (
            f"{whole} asked: if a setting was chosen on these prompts, the figures are too good; "
            "report on part: report"
        )


def _of_judges(plan: EvalPlan, measures: Sequence[Measure]) -> Iterator[str]:
    through = {str(f["name"]): f.get("indicative_judges") or [] for f in plan.judge_facts}
    for name in sorted({m.judge for m in measures if m.indicative and m.judge}):
        told = f"the judge {name} misses the bar that was set for it"
        if through.get(name):
            told = f"the judge {name} holds verdicts of {', '.join(through[name])}, below its bar"
        yield f"indicative only: {told}"
    yield from plan.kin


def _of_unscored(plan: EvalPlan, measures: Sequence[Measure]) -> Iterator[str]:
    for measure in measures:
        for model in plan.candidates:
            figure = measure.figures.get(model)
            if figure is None:
                if measure.kind in {"harm", "refusal"}:
                    yield f"{measure.label}: no answer of {model} was scored, so there is no rate"
                continue
            total = figure.n + figure.unscored
            if figure.unscored > MUCH_UNSCORED * total:
                yield (
                    f"{measure.label}: {figure.unscored} of {total} answers of {model} were not "
                    "scored; the rate is of the others"
                )


def _of_cut(plan: EvalPlan, answers: Answers) -> Iterator[str]:
    for asked in plan.asked:
        many: dict[str, list[str]] = {}
        for model, candidate in plan.candidates.items():
            rows = answers.to(asked, model)
            cut = sum(row["finish"] == "length" for row in rows)
            # Where answers made elsewhere were cut, nobody says.
            made = f"{asked.max_new_tokens} new tokens"
            where = made if candidate.given is None else "the length that was set for them"
            if cut > MANY_CUT * len(rows):
                many.setdefault(where, []).append(f"{cut} of {len(rows)} of {model}")
        for where, models in many.items():
            yield (
                f"{asked.name}: answers were cut at {where} "
                f"({', '.join(models)}); what would have followed is not known"
            )


def _of_engines(engines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    ways = {
        name: [" ".join(map(str, way.values())) for way in runs] for name, runs in engines.items()
    }
    for name, each in ways.items():
        if len(each) > 1:
            yield f"{name} was run in several ways, for it was resumed: {'; '.join(each)}"
    dtypes = {str(way.get("dtype")) for runs in engines.values() for way in runs if "dtype" in way}
    if len(dtypes) > 1:
        told = ", ".join(sorted(dtypes))
        yield f"models were run in different dtypes ({told}); set machine.dtype"


def _of_size(plan: EvalPlan) -> Iterator[str]:
    small = [asked for asked in plan.asked if len(asked.items) < SMALL]
    if small:
        told = ", ".join(f"{asked.name} ({len(asked.items)})" for asked in small)
        yield f"small samples, wide intervals: {told}; with {SMALL} prompts a rate is known to ±10"


def _of_overlap(plan: EvalPlan) -> Iterator[str]:
    for name, candidate in plan.candidates.items():
        if candidate.run is None:
            continue
        seen = _texts(candidate.run)
        for asked in plan.asked:
            shared = sum(bool({item.prompt, item.goal} & seen) for item in asked.items)
            if shared:
                yield (
                    f"{asked.name}: {shared} of {len(asked.items)} prompts are in the data that "
                    f"{name} was trained on"
                )


def _of_training(plan: EvalPlan) -> Iterator[str]:
    for name, candidate in plan.candidates.items():
        for told in candidate.run.health if candidate.run is not None else ():
            yield f"the training of {name}: {told.rstrip('.')}"


def _texts(run: Run) -> set[str]:
    """Every text in the files that a run was trained on, as far as they are still there."""
    found: set[str] = set()
    for path in run.data:
        try:
            if not local_path(path).is_file():
                continue
            rows = read_rows(DataSection(path=path)).rows
        except DataError:
            continue
        for row in rows:
            found.update(_strings(row))
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value.strip()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
