"""The measures of a run beside the aligned model's and plain fine-tuning's, for ``diagnose``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anchortune.errors import AnchortuneError, EvaluationError
from anchortune.evaluation.results import Figure, Results
from anchortune.files import parse_json
from anchortune.jobs.diagnose_training import flat, listed, mapping
from anchortune.jobs.folder import digest_of
from anchortune.maths.stats import Rate, paired, wilson
from anchortune.record import Record
from anchortune.report.diagnosis.facts import Gap, Measured
from anchortune.report.runs import Outcome, RunRecord, read_run

_ASKED = ("generation", "part", "selection_frac", "seed")
Items = Mapping[str, float | int | None]


def measures_of(results: Results, model: str, arm: str | None, plain: str | None) -> list[Measured]:
    """Everything that an evaluation measured on one model.

    Args:
        results: of the evaluation.
        model: its name there.
        arm: of its seeds, where it is one of several.
        plain: the name of plain fine-tuning there.
    """
    found = []
    for measure in results.measures:
        own = measure.figures.get(model)
        if own is None:
            continue
        reference = results.reference
        gap = measure.differences.get(model)
        seeds = measure.arms.get(arm) if arm is not None else None
        found.append(
            Measured(
                kind=measure.kind,
                set=measure.set,
                own=_rate(own),
                judge=measure.judge,
                indicative=measure.indicative,
                unscored=own.unscored,
                aligned=_of(measure.figures, reference, model),
                gap=None if gap is None else Gap(gap.value, gap.low, gap.high, gap.n),
                plain=_of(measure.figures, plain, model),
                seeds=1 if seeds is None else seeds.seeds,
                seeds_sd=None if seeds is None else seeds.sd,
            )
        )
    return found


def _rate(figure: Figure) -> Rate:
    return Rate(figure.value, figure.n, figure.low, figure.high)


def _of(figures: Mapping[str, Figure], name: str | None, model: str) -> Rate | None:
    figure = figures.get(name) if name is not None and name != model else None
    return None if figure is None else _rate(figure)


def model_in(record: Record, results: Results, run: Path, made: str | None) -> str:
    """Which of an evaluation's models is the result of a run.

    Args:
        record: of the evaluation.
        results: of the same.
        run: the training's folder.
        made: the hash of its result; None where it is not known.

    Raises:
        EvaluationError: none of them, or several.
    """
    places = {
        name: mapping(section).get("run")
        for name, section in mapping(record.config.get("models")).items()
    }
    by_place = [
        name
        for name, place in places.items()
        if isinstance(place, str) and place and Path(place).resolve() == run.resolve()
    ]
    by_hash = [name for name in results.models if made and _asked_of(results, name) == made]
    found = by_place or by_hash
    if len(found) != 1:
        which = "several of the models are" if found else "none of the models is"
        raise EvaluationError(
            f"{which} known to be the result of {run}; name one with --model: "
            f"{', '.join(results.models)}."
        )
    return found[0]


def _asked_of(results: Results, name: str) -> str | None:
    """The hash of the last adapter that a model was asked with, or of its weights."""
    identity = mapping(results.models.get(name))
    adapters = listed(identity.get("adapters"))
    found = mapping(adapters[-1]).get("sha256") if adapters else identity.get("sha256")
    return None if found is None else str(found)


def asked_same(results: Results, model: str, made: str | None) -> bool | None:
    """Whether the evaluation asked the weights of this hash; None where one is not known."""
    asked = _asked_of(results, model)
    return None if asked is None or made is None else asked == made


def decides_of(record: Record, results: Results, model: str) -> dict[str, dict[str, Any]]:
    """What decided an evaluation's result, by kind; see ``Training.decides``."""
    sets = {name: mapping(found) for name, found in mapping(record.inputs.get("sets")).items()}
    settings = flat({key: record.config.get(key) for key in _ASKED}, "evaluate")
    settings |= {f"n of {name}": found.get("n") for name, found in sets.items()}
    inputs = {f"prompts of {name}": found.get("items_sha256") for name, found in sets.items()}
    for judge in results.judges:
        inputs[f"judge {judge.get('name')}"] = digest_of(flat(judge))
    ways = listed(mapping(record.numbers.get("engines")).get(model))
    return {"settings": settings, "inputs": inputs, "machine": flat({"asked on": ways})}


def measures_of_cell(path: Path, run: RunRecord) -> tuple[list[Measured], RunRecord | None]:
    """(the measures of a sweep's run, the run of plain fine-tuning), siblings from its folder.

    The aligned model's record has the same labels but ``defence``; plain fine-tuning's the same
    seed too. Labels that those lack (λ, an operator) are no difference.
    """
    siblings = []
    for file in sorted(path.parent.glob("*.json")):
        try:
            siblings.append(read_run(file))
        except AnchortuneError:
            continue  # another file, or a broken record: it is not compared with
    done = [one for one in siblings if one.state == "complete" and one.digest != run.digest]
    aligned = next((one for one in done if _fits(one, run, "aligned")), None)
    sft = (one for one in done if _fits(one, run, "sft") and one.seed == run.seed)
    plain = next(sft, None)
    again = [one for one in done if one.labels == run.labels and one.seed != run.seed]
    found = measured(
        run.outcomes, aligned.outcomes if aligned else (), plain.outcomes if plain else (),
        [one.outcomes for one in again],
    )  # fmt: skip
    return found, plain


def _fits(one: RunRecord, run: RunRecord, defence: str) -> bool:
    rest = {axis: label for axis, label in one.labels.items() if axis != "defence"}
    return one.labels.get("defence") == defence and rest.items() <= run.labels.items()


def measured(
    own: Sequence[Outcome],
    aligned: Sequence[Outcome] = (),
    plain: Sequence[Outcome] = (),
    seeds: Sequence[Sequence[Outcome]] = (),
) -> list[Measured]:
    """Verdicts by item as measures, with paired differences."""
    found = []
    for outcome in own:
        rate = _wilson(outcome)
        if rate is None:
            continue
        start, other = _same(outcome, aligned), _same(outcome, plain)
        rates = [rate.value]
        for run in seeds:
            again = _same(outcome, run)
            value = None if again is None else _wilson(again)
            rates += [] if value is None else [value.value]
        mean = sum(rates) / len(rates)
        spread = math.sqrt(sum((x - mean) ** 2 for x in rates) / max(1, len(rates) - 1))
        found.append(
            Measured(
                kind=outcome.measure,
                set=outcome.set,
                own=rate,
                judge=outcome.judge,
                indicative=None,
                unscored=outcome.unscored,
                aligned=None if start is None else _wilson(start),
                gap=None if start is None else _gap(outcome.items, start.items),
                plain=None if other is None else _wilson(other),
                plain_gap=None if other is None else _gap(outcome.items, other.items),
                seeds=len(rates),
                seeds_sd=spread if len(rates) > 1 else None,
            )
        )
    return found


def _same(outcome: Outcome, others: Sequence[Outcome]) -> Outcome | None:
    key = (outcome.measure, outcome.set, outcome.judge)
    return next((one for one in others if (one.measure, one.set, one.judge) == key), None)


def _wilson(outcome: Outcome) -> Rate | None:
    scored = outcome.scored
    return wilson(sum(scored), len(scored)) if scored else None


def _gap(own: Items, other: Items) -> Gap | None:
    """The paired difference over the items that both have scored as yes or no."""
    both = [(own[key], other[key]) for key in own.keys() & other.keys()]
    pairs = [(a == 1, b == 1) for a, b in both if a in (0, 1) and b in (0, 1)]
    if not pairs:
        return None
    found = paired([a for a, _ in pairs], [b for _, b in pairs])
    return Gap(found.value, found.low, found.high, found.n)


def outcomes_in(file: Path) -> list[Outcome]:
    """The outcomes in an ``evaluated.json`` of a sweep's work folder.

    Raises:
        EvaluationError: it cannot be read.
    """
    try:
        said = parse_json(file.read_text(encoding="utf-8"))
        return [Outcome.model_validate(one) for one in said["outcomes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(f"{file} cannot be read ({type(error).__name__}).") from None
