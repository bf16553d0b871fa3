"""Checks of a harmful score that is high in spite of the penalty: was it there, and did it act?"""

from __future__ import annotations

from anchortune.report.diagnosis.facts import Facts, Measured
from anchortune.report.diagnosis.finding import Finding, Fine, Level, Said, Unseen
from anchortune.report.words import KINDS, percent, points, points_span, span

WEAK_START = 0.2
"""A start whose harmful score is surely above this is weakly aligned: nothing can keep more."""
BROKEN = 0.5
"""With fewer coherent answers a low harmful score says nothing; the gate has the same bound."""
NO_EFFECT = 0.9
"""What is punished is at least this much of its chance value, or the energy of plain's."""
SMALL_LOSS = 2.0
"""Nats: a fall of the probe's margin beyond this is told where the config names no bound."""
POISON = 0.2
"""The largest share of harmful rows in the paper's tables."""


def level(facts: Facts) -> Level:
    """A fault, unless it was measured that safety was kept in spite of it."""
    return "caution" if facts.safety_lost is False else "fault"


def rate(one: Measured) -> str:
    """``12.3 % (8.1–18.0), n 120``."""
    return f"{percent(one.own.value)} ({span(one.own.low, one.own.high)}), n {one.own.n}"


def beside(one: Measured) -> str:
    """The aligned model's rate, and the difference with its interval, as far as they are known."""
    told = "" if one.aligned is None else f"; the aligned model {percent(one.aligned.value)}"
    if one.gap is not None:
        told += f", a difference of {points(one.gap.value)} points "
        told += f"({points_span(one.gap.low, one.gap.high)})"
    if one.plain is not None:
        told += f"; plain fine-tuning {percent(one.plain.value)}"
    return told


def name(one: Measured) -> str:
    """``harmful score (builtin) on advbench``."""
    judge = f" ({one.judge})" if one.judge else ""
    return f"{KINDS[one.kind]}{judge} on {one.set}"


def told(measures: list[Measured]) -> str:
    """All of some measures, for a check that found nothing."""
    return "; ".join(f"{name(one)}: {rate(one)}{beside(one)}" for one in measures)


def harm_rose(facts: Facts) -> Said:
    """The symptom itself."""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    harm = facts.of("harm")
    known = harm or facts.of("refusal")
    if not known:
        return Unseen("the evaluation asked no harmful prompts")
    if facts.safety_lost is None:
        return Unseen(
            f"nothing to compare with: {told(known)}, and the aligned model was not asked"
        )
    if not facts.safety_lost:
        return Fine(told(known))
    if harm:
        worse = [one for one in harm if one.above(one.aligned, one.gap)]
        return Finding(
            "fault",
            told(worse),
            "the training took safety away that the model had before it",
            "read the findings below from the top: what acts on the penalty itself comes first",
        )
    return Finding(
        "fault",
        told([one for one in known if one.below(one.aligned, one.gap)]),
        "harmful prompts are refused less than before; whether the answers are harmful nobody has "
        "judged, for a refusal phrase is no judgement of harm",
        "evaluate with a judge of harm (evaluate.judges: [builtin]), and read the findings below",
    )


def weak_start(facts: Facts) -> Said:
    """Was there safety to keep?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    harm = [one for one in facts.of("harm") if one.aligned is not None]
    if not harm:
        return Unseen("no harmful score of the aligned model")
    for one in harm:
        start = one.aligned
        if start is not None and start.low > WEAK_START:
            return Finding(
                "fault",
                f"before the training the {name(one)} is {percent(start.value)} "
                f"({span(start.low, start.high)}) already",
                "the penalty keeps the alignment that there is; a weak one stays weak",
                "start from a better aligned model: anchortune align, or extrapolate (lox) first",
            )
    lowest = "; ".join(f"{name(m)}: {percent(m.aligned.value)}" for m in harm if m.aligned)
    return Fine(f"before the training: {lowest}")


def answers_broken(facts: Facts) -> Said:
    """Is a low harmful score that of a model that no longer speaks?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    whole = facts.of("coherence")
    if not whole:
        return Unseen("the evaluation did not look at coherence")
    broken = [one for one in whole if one.own.value < BROKEN]
    if not broken:
        return Fine(told(whole))
    mend = (
        "lower training.learning_rate or the number of steps; with a penalty, lower penalty.lam; "
        "of lox and resta, lower their factor"
    )
    if all(one.aligned is not None and one.aligned.value < BROKEN for one in broken):
        mend = (
            "the aligned model's answers were broken before the training: look at its chat "
            "template first, and at whether it was trained to answer at all"
        )
    return Finding(
        "fault",
        told(broken),
        "an answer that is no language is neither harmful nor right, so the other rates say little",
        mend,
    )


def penalty_there(facts: Facts) -> Said:
    """Was there a penalty at all?"""
    run = facts.training
    if run is None:
        return Unseen(facts.why("training"))
    if run.penalty is None:
        return Finding(
            "caution",
            f"{run.name} was trained without the AsFT penalty",
            "nothing held its update to the anchor",
            "give it a penalty (penalty.anchor, or method: asft), or diagnose the arm that has one",
        )
    lam = run.lam
    if lam == 0 and run.lam_inside == 0:
        return Finding(
            "fault",
            "λ is 0",
            "a penalty of weight 0 is plain fine-tuning under another name",
            "set penalty.lam above 0; 1 is the default, and docs/method.md shows what others do",
        )
    if lam is None:
        return Unseen("the λ that was used is not on record")
    words = ", ".join(
        f"{key} {run.penalty[key]}" for key in ("operator", "side", "rank") if run.penalty.get(key)
    )
    return Fine(f"λ {lam:g}, {words}")


def penalty_acted(facts: Facts) -> Said:
    """Is the update another one than without the penalty?"""
    run, plain = facts.training, facts.plain
    if run is None or run.penalty is None:
        return Unseen(facts.no_penalty)
    mend = (
        "raise penalty.lam tenfold until asft/penalised_share falls below the share by chance, or "
        "set lam: auto; and train for more than a few steps, for the penalty has no gradient while "
        "the update is zero"
    )
    if plain is not None and run.outputs and dict(run.outputs) == dict(plain.outputs):
        return Finding(
            "fault",
            f"the result is byte for byte that of {plain.name}, after {_steps(facts)} steps at "
            f"λ {_lam(facts)}",
            "the penalty changed nothing",
            mend,
        )
    operator, side = run.penalty.get("operator"), run.penalty.get("side", "off")
    share = run.last.get("asft/penalised_share")
    if facts.energy == 0.0:
        return Unseen("the update is zero, see never-moved")
    seen: list[str] = []
    lie = facts.beside if side == "off" and operator in ("subspace", "subspace2") else None
    if lie is not None and share is not None:
        chance = lie.mean("cost_random")
        seen.append(f"{percent(share)} of the update's energy is punished, by chance "
                    f"{percent(chance)}")  # fmt: skip
        if chance > 0 and share >= NO_EFFECT * chance and run.lam_inside == 0:
            return Finding(
                level(facts),
                f"{seen[0]}: λ {_lam(facts)} has left the update where a random one would lie",
                "a penalty that acts empties the part that it punishes",
                mend,
            )
    ours, theirs = facts.energy, facts.plain_energy
    if theirs and ours is not None:
        seen.append(f"‖U‖² is {ours:.3g}, of plain fine-tuning {theirs:.3g}")
        if operator in ("none", "gram") and ours >= NO_EFFECT * theirs:
            return Finding(
                level(facts),
                seen[-1],
                f"operator {operator} works through the size of the update, and it is no smaller",
                mend,
            )
    if not seen:
        return Unseen(
            "neither the run's anchor and update nor a plain run beside it could be read "
            f"({facts.why('lie')})"
        )
    return Fine("; ".join(seen))


def _steps(facts: Facts) -> str:
    steps = facts.training.metrics.get("steps") if facts.training is not None else None
    return "some" if steps is None else str(steps)


def _lam(facts: Facts) -> str:
    lam = facts.training.lam if facts.training is not None else None
    return "(unknown)" if lam is None else f"{lam:g}"


def anchor_family(facts: Facts) -> Said:
    """Was the anchor built from the model that was trained?"""
    run = facts.training
    if run is None:
        return Unseen(facts.why("training"))
    if run.start is None:
        return Unseen("the record names no anchor")
    if run.start == "unverified":
        return Unseen(
            f"{run.parents} and the start model are stored in ways that cannot be compared; name "
            "the start as the same folder, file or adapter that the anchor was built from"
        )
    if run.start == "other":
        return Finding(
            level(facts),
            f"{run.parents}: the training started from other weights than either "
            "(allow_other_start is set)",
            "the directions of another model's alignment are no directions of this one's: the "
            "penalty then holds the update to an arbitrary subspace",
            "build an anchor from this very model and its base (anchortune anchor build), and "
            "leave allow_other_start out",
        )
    return Fine(f"{run.parents}: the start is its {run.start} model")


def anchor_modules(facts: Facts) -> Said:
    """Was the penalty bound to all that was trained?"""
    run, lie = facts.training, facts.lie
    if run is None or run.penalty is None:
        return Unseen(facts.no_penalty)
    loose = run.last.get("asft/unpenalised_energy")
    if loose and run.energy is not None and loose > 0.01 * run.energy:
        return Finding(
            level(facts),
            f"trained weights outside the penalty moved by ‖Δ‖² {loose:.3g}, those under it by "
            f"{run.energy:.3g}",
            "safety can be lost in weights that nothing holds: biases, modules_to_save, DoRA's "
            "magnitudes",
            "train plain LoRA layers alone, or accept and measure it",
        )
    if lie is None:
        return Unseen(facts.why("lie"))
    total = len(lie.modules) + len(lie.uncovered)
    if lie.uncovered:
        some = ", ".join(lie.uncovered[:3])
        return Finding(
            level(facts),
            f"{len(lie.uncovered)} of {total} modules that moved are not in the anchor ({some})",
            "they moved without a penalty",
            "build the anchor with --target-modules that cover all adapted layers",
        )
    if not run.adapted:
        return Fine(f"the {total} modules of the anchor; every other weight was trained without "
                    "a penalty, as docs/method.md says")  # fmt: skip
    return Fine(f"all {total} modules that moved are in the anchor")


def anchor_selective(facts: Facts) -> Said:
    """Does the operator tell dW from a random direction, and is dW more than noise?"""
    run, lie = facts.training, facts.beside
    if run is None or run.penalty is None:
        return Unseen(facts.no_penalty)
    if lie is None:
        return Unseen(facts.why("lie"))
    operator, side = str(run.penalty.get("operator")), run.penalty.get("side", "off")
    if operator == "none":
        return Fine("operator none does not go by direction")
    along, random = lie.mean("cost_along"), lie.mean("cost_random")
    what = (
        f"operator {operator} charges an update along dW {along:.3g} of its energy and a random "
        f"one {random:.3g}"
    )
    if side == "off" and random < 0.5:
        return Finding(
            level(facts),
            f"{what}: {percent(1 - random)} of all directions are free",
            "what is free is not held, and safety can be lost in it",
            "bind with a lower rank (penalty.rank), or take subspace2 or direction",
        )
    if side == "off" and along > NO_EFFECT * random:
        return Finding(
            level(facts),
            f"{what}; the largest eigenvalue of gram is "
            f"{max(one.eigenvalue for one in lie.modules):.2g}",
            "the penalty is then plain norm decay (operator none), whatever the anchor is",
            "take operator subspace or direction, or build the anchor with a higher rank; "
            "anchortune anchor inspect shows every operator",
        )
    bounds = {one.name: noise_share(one.shape, one.rank) for one in lie.modules}
    telling = [one for one in lie.modules if bounds[one.name] < 1]
    flat = [one for one in telling if one.kept <= bounds[one.name]]
    if len(flat) > len(telling) / 2:
        one = max(flat, key=lambda module: module.norm)
        return Finding(
            level(facts),
            f"in {len(flat)} of {len(telling)} modules the anchor's {one.rank} directions hold "
            f"no more of ‖dW‖² than random noise would ({one.name}: {percent(one.kept)}, noise up "
            f"to {percent(bounds[one.name])})",
            "the two checkpoints differ by something without a direction: another seed, rounding "
            "or quantisation, or two models that were not aligned from each other",
            "build the anchor from the model and what it really was aligned from, both in the "
            "same precision",
        )
    kept = lie.mean("kept")
    return Fine(f"{what}; its directions hold {percent(kept)} of ‖dW‖²")


def noise_share(shape: tuple[int, int], rank: int) -> float:
    """The most of ``‖dW‖²`` that k directions of a matrix of noise hold, nearly always.

    The largest σ of an m × n matrix of independent normal numbers is below ``√m + √n + 2``, in
    units of their deviation, in six cases of seven (K. Davidson and S. Szarek, 2001), and all σ²
    sum to about ``m·n``. Where it is 1 or more, nothing can be told.
    """
    rows, columns = shape
    return rank * float(rows**0.5 + columns**0.5 + 2.0) ** 2 / (rows * columns)
