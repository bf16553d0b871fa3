"""Checks of where the update went, what it was trained on, and what the probe saw."""

from __future__ import annotations

from anchortune.report.diagnosis.facts import Facts
from anchortune.report.diagnosis.finding import Finding, Fine, Said, Unseen
from anchortune.report.diagnosis.safety import POISON, SMALL_LOSS, level
from anchortune.report.words import percent

BACK = 0.1
"""Share of the alignment difference dW that an update may take back."""
EMPTY, LARGE = 0.05, 0.1
"""The punished share is nothing; what is free is a good part of ``‖dW‖²``."""


def went_backwards(facts: Facts) -> Said:
    """Did the update lead back along the anchor to the base model?"""
    lie = facts.beside
    if lie is None:
        return _by_log(facts)
    along, all_of_it = (-lie.along, "+1") if lie.harmful else (lie.along, "−1")
    end = "towards the harmful model" if lie.harmful else "back towards the base model"
    seen = f"⟨U, dW⟩/‖dW‖² is {lie.along:+.3g} ({lie.label})"
    if along > -BACK:
        return Fine(f"{seen}; {all_of_it} would be all the way {end}")
    return Finding(
        level(facts),
        f"{seen}: {percent(-along)} of the way {end}",
        "a direction is free both ways, so an operator that leaves dW free lets it be undone",
        "raise penalty.lam_inside (an operator that is a projection), move the start on first "
        "(lox, extrapolate) or mend after (resta, csulora)"
        if not lie.harmful
        else "raise penalty.lam, or take operator subspace or direction",
    )


def _by_log(facts: Facts) -> Said:
    last = facts.training.last if facts.training is not None else {}
    ahead, back = last.get("asft/forwards_share"), last.get("asft/backwards_share")
    if ahead is None or back is None:
        return Unseen(facts.why("lie"))
    told = (f"{100 * share:.2g} % along {way}" for share, way in ((ahead, "+dW"), (back, "−dW")))
    seen = f"of the update's energy {', '.join(told)}"
    if back < BACK or back <= ahead:
        return Fine(f"{seen}, by the log")
    return Finding(
        level(facts),
        f"{seen}, by the log",
        "a direction is free both ways, so an operator that leaves dW free lets it be undone",
        "raise penalty.lam_inside, move the start on first (lox) or mend after (resta, csulora)",
    )


def free_part(facts: Facts) -> Said:
    """Is what was lost lost inside the part that the operator leaves free?"""
    run = facts.training
    if run is None or run.penalty is None:
        return Unseen(facts.no_penalty)
    operator, side = run.penalty.get("operator"), run.penalty.get("side", "off")
    share, energy = run.last.get("asft/penalised_share"), facts.energy
    if side != "off" or operator in ("gram", "none"):
        return Fine(f"operator {operator}, side {side}: no part is free by design")
    if share is None or energy is None:
        return Unseen("the run's log holds no figures of the penalty")
    lie = facts.beside
    size = None if lie is None else lie.energy / lie.anchor_energy
    seen = f"{percent(share)} of ‖U‖² = {energy:.3g} is punished, the rest is free"
    seen += "" if size is None else f"; ‖U‖²/‖dW‖² is {size:.3g}"
    if facts.safety_lost is False:
        return Fine(f"{seen}; safety was kept")
    if share > EMPTY or run.lam_inside or (size is not None and size < LARGE):
        return Fine(seen)
    return Finding(
        "fault" if facts.safety_lost else "caution",
        seen,
        "the penalty has done all that it can, and a larger λ would change nothing: what safety is "
        "lost is lost inside the free part"
        if facts.safety_lost
        else "nearly all of the update lies in the part that nothing holds; whether safety was "
        "lost there has not been measured",
        "bound the free part (penalty.lam_inside, from a hundredth of lam), use fewer directions "
        "(penalty.rank, operator direction), adapt fewer modules, or mend after (csulora)",
    )


def poison(facts: Facts) -> Said:
    """How much of what was trained on was harmful?"""
    run = facts.training
    if run is None:
        return Unseen(facts.why("training"))
    found = run.harmful
    if found is None:
        return Unseen("nobody screened the data, and it is no mix of a known share: "
                      "anchortune screen looks")  # fmt: skip
    how = "look harmful to the screen" if found.by == "screen" else "were mixed in as harmful"
    seen = f"{found.rows} of {found.of} rows ({percent(found.share)}) {how}"
    if not found.trained:
        return Fine(f"{seen}, and were left out")
    if not found.rows or facts.safety_lost is False:
        return Fine(seen)
    if found.share <= POISON and facts.safety_lost is None:
        return Fine(f"{seen}, and were trained on")
    beyond = found.share > POISON
    return Finding(
        "fault",
        f"{seen}, and were trained on",
        "that is more than the paper's tables try (20 %); a penalty slows what the data teach, it "
        "does not unteach it"
        if beyond
        else "every penalty is weighed against what these rows teach, and their answers are often "
        "longer than the task's, so their share of the loss is larger than of the rows",
        "leave them out (screen.action: drop), after a look at what the judge named"
        if found.by == "screen"
        else "this is an experiment's own poison: raise penalty.lam, or mix in refusals "
        "(safe-instr)",
    )


def probe(facts: Facts) -> Said:
    """What did the safety probe see while the model trained?"""
    run = facts.training
    if run is None:
        return Unseen(facts.why("training"))
    if run.stopped is not None:
        return Finding(
            "fault",
            f"the probe stopped the run at step {run.stopped.get('step')}, its margin "
            f"{_nats(run.stopped.get('fall'))} below the start's",
            "the model was unlearning to refuse; no result was written",
            "give the penalty more weight, or lower training.learning_rate; then delete the folder "
            "and train again",
        )
    falls = [(line["step"], line["probe/fall"]) for line in run.log
             if line.get("probe/fall") is not None]  # fmt: skip
    if not falls:
        return Unseen("no probe watched the training (the section probe of the config)")
    bound = run.warn_below or SMALL_LOSS
    worst = max(fall for _, fall in falls)
    if worst <= bound:
        return Fine(f"the probe's margin fell by at most {_nats(worst)} in {len(falls)} looks")
    first = next(step for step, fall in falls if fall > bound)
    return Finding(
        level(facts),
        f"the probe's margin fell by {_nats(worst)}, and past {_nats(bound)} first at step {first}",
        "from there on the model begins its answers with a refusal less readily than before",
        f"look at what changed about step {first} in log.jsonl; let the probe steer λ "
        "(lam: auto, steer: probe) or stop the run (probe.stop_below)",
    )


def _nats(value: object) -> str:
    return f"{value:.2f} nats" if isinstance(value, (int, float)) else "an unknown number of nats"
