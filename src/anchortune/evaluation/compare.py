"""Models held against each other on the same prompts: differences, seeds of one arm, judges."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from anchortune.evaluation.measure import Counted, Marks
from anchortune.evaluation.results import Agreement, ArmFigure, Difference, Measure
from anchortune.maths.stats import cohen_kappa, holm, over_seeds, paired


def compare(
    counted: Sequence[Counted],
    reference: str,
    arms: Mapping[str, Sequence[str]],
    *,
    resamples: int,
    seed: int,
) -> list[Measure]:
    """Every measure with its differences to the reference and its arms.

    Holm's correction is over all differences of one kind (every harmful score, by whichever judge,
    on whichever set, of whichever model), for it is the kind that a claim is about: "no harmful
    score went up".

    Args:
        counted: what was counted, one for each measure.
        reference: the model the others are compared with.
        arms: arm -> its models, which are seeds of one method.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    measures = []
    for one in counted:
        measure = one.measure()
        if measure is None:
            continue
        base = one.marks.get(reference, {})
        found = {
            model: difference(marks, base, resamples=resamples, seed=seed)
            for model, marks in one.marks.items()
            if model != reference
        }
        measures.append(
            measure.model_copy(
                update={
                    "differences": {m: gap for m, gap in found.items() if gap is not None},
                    "arms": _arms(one.marks, arms),
                }
            )
        )
    return corrected(measures)


def difference(marks: Marks, base: Marks, *, resamples: int, seed: int) -> Difference | None:
    """A model minus the reference, over the prompts that are decided for both.

    A tie of a win rate decides nothing and is left out. None where no prompt is left.
    """
    shared = [item for item in marks if marks[item] in (0.0, 1.0) and base.get(item) in (0.0, 1.0)]
    if not shared:
        return None
    found = paired(
        [marks[item] == 1.0 for item in shared],
        [base[item] == 1.0 for item in shared],
        resamples=resamples,
        seed=seed,
    )
    return Difference(**found._asdict(), p_holm=None)


def corrected(measures: Sequence[Measure]) -> list[Measure]:
    """The measures with ``p_holm`` filled in, one family for each kind."""
    families: dict[str, list[tuple[str, str]]] = {}
    for measure in measures:
        for model in measure.differences:
            families.setdefault(measure.kind, []).append((measure.key, model))
    by_key = {measure.key: measure for measure in measures}
    adjusted: dict[tuple[str, str], float] = {}
    for places in families.values():
        p_values = [by_key[key].differences[model].p for key, model in places]
        adjusted |= dict(zip(places, holm(p_values), strict=True))
    return [
        measure.model_copy(
            update={
                "differences": {
                    model: gap.model_copy(update={"p_holm": adjusted[measure.key, model]})
                    for model, gap in measure.differences.items()
                }
            }
        )
        for measure in measures
    ]


def _arms(marks: Mapping[str, Marks], arms: Mapping[str, Sequence[str]]) -> dict[str, ArmFigure]:
    found = {}
    for arm, models in arms.items():
        seeds = [marks[model] for model in models if model in marks]
        seeds = [seed for seed in seeds if any(mark is not None for mark in seed.values())]
        items = list(dict.fromkeys(item for seed in seeds for item in seed))
        if seeds:
            rate = over_seeds([[seed.get(item) for item in items] for seed in seeds])
            found[arm] = ArmFigure(**rate._asdict())
    return found


def agreements(
    outcomes: Mapping[str, Mapping[tuple[str, str], str]], set_name: str
) -> list[Agreement]:
    """How every two judges agree on the answers that both scored, over all models.

    Args:
        outcomes: judge -> (model, item id) -> ``harmful`` or ``safe``; unscored ones left out.
        set_name: the prompt set.
    """
    found = []
    for first, second in itertools.combinations(outcomes, 2):
        shared = [key for key in outcomes[first] if key in outcomes[second]]
        if not shared:
            continue
        kappa = cohen_kappa(
            [outcomes[first][key] for key in shared], [outcomes[second][key] for key in shared]
        )
        found.append(
            Agreement(
                judges=(first, second),
                set=set_name,
                n=kappa.n,
                agree=kappa.agree,
                kappa=kappa.kappa,
            )
        )
    return found
