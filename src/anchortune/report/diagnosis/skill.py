"""Checks of accuracy that fell: λ, steps, labels, refusals of the harmless, gradients."""

from __future__ import annotations

from anchortune.report.diagnosis.facts import Facts, Training
from anchortune.report.diagnosis.finding import Finding, Fine, Level, Said, Unseen
from anchortune.report.diagnosis.safety import told
from anchortune.report.words import percent

SWAMPS = 0.5
"""The penalty is this share of what is minimised."""
SWAMPED = 30.0
"""Times the task's gradient that the penalty's may be; as in ``training.health``."""
STIFF = 0.002
"""Of plain fine-tuning's ``‖U‖²``: the update was hardly let go anywhere."""
HARDLY = 0.1
"""Of the fall of plain fine-tuning's loss."""
CUT = 0.05
"""Share of sequences that may be cut without a word."""
REFUSES = 0.2
"""Share of harmless requests refused; surely above it, a model is of little use."""
AGAINST = 0.05
"""The cosine below whose negative two directions are said to be in conflict."""


def level(facts: Facts) -> Level:
    """A fault where accuracy was measured to have fallen, else a caution."""
    return "fault" if facts.skill_lost else "caution"


def accuracy_fell(facts: Facts) -> Said:
    """The symptom itself."""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    known = facts.of("accuracy", "win_rate")
    if not known:
        return Unseen("the evaluation asked no task")
    if facts.skill_lost is None:
        return Unseen(f"nothing to compare with: {told(known)}")
    if not facts.skill_lost:
        return Fine(told(known))
    worse = [
        one
        for one in known
        if one.below(one.aligned, one.gap) or one.below(one.plain, one.plain_gap)
    ]
    return Finding(
        "fault",
        told(worse),
        "the task was learnt less well than without the penalty, or unlearnt",
        "read the findings below; where there is none, compare λ with a tenth of it",
    )


def lam_too_high(facts: Facts) -> Said:
    """Does the penalty outweigh the task?"""
    run = facts.training
    if run is None or run.penalty is None:
        return Unseen(facts.no_penalty)
    penalty, loss, lam = run.tenth("asft/penalty", True), run.tenth("loss", True), run.lam
    if penalty is None or loss is None or lam is None:
        return Unseen("no log of the run's loss and penalty")
    weight = lam * penalty
    share = weight / (loss + weight) if loss + weight > 0 else 0.0
    seen = [f"λR is {percent(share)} of λR + loss over the last tenth ({weight:.3g}, {loss:.3g})"]
    reasons = [seen[0]] if share >= SWAMPS else []
    ours, task = run.tenth("asft/penalty_grad_norm", True), run.tenth("asft/task_grad_norm", True)
    if ours is not None and task:
        seen.append(f"its gradient is {ours / task:.3g} times the task's")
        if ours > SWAMPED * task:
            reasons.append(seen[-1])
    ours_energy, theirs_energy = facts.energy, facts.plain_energy
    if ours_energy is not None and theirs_energy:
        seen.append(f"‖U‖² is {ours_energy:.3g}, without the penalty {theirs_energy:.3g}")
        if ours_energy < STIFF * theirs_energy:
            reasons.append(seen[-1])
    fall = run.fall()
    theirs = facts.plain.fall() if facts.plain is not None else None
    if fall is not None and theirs is not None and theirs > 0:
        seen.append(f"the loss fell by {fall:.3g}, without the penalty by {theirs:.3g}")
        if fall < HARDLY * theirs:
            reasons.append(seen[-1])
    if not reasons or facts.skill_lost is False:
        return Fine("; ".join(seen))
    return Finding(
        level(facts),
        f"λ {lam:g}: {'; '.join(reasons)}",
        "the penalty outweighs the task, so the model cannot move where the task needs it to",
        "lower penalty.lam tenfold, or set lam: auto; in the paper's units (scaled: false) a λ "
        "counts s² times less",
    )


def training_health(facts: Facts) -> Said:
    """What did the watch over the training say, or what does it say of the log now?"""
    run = facts.training
    if run is None or not run.log:
        return Unseen(facts.why("training") if run is None else "the run has no log at hand")
    if not run.health:
        return Fine(f"the {len(run.log)} logged steps are those of a healthy training")
    return [
        Finding(
            "fault" if stops or facts.skill_lost else "caution",
            told,
            "what a training did while it ran explains what came out of it",
            "as the sentence above says; docs/training.md tells what each threshold rests on",
        )
        for told, stops in run.health
    ]


def never_moved(facts: Facts) -> Said:
    """Did the adapter move at all?"""
    run, lie = facts.training, facts.lie
    if run is None:
        return Unseen(facts.why("training"))
    energy = facts.energy if facts.energy is not None else run.energy
    if energy is None:
        return Unseen(f"neither the log nor the update could be read ({facts.why('lie')})")
    if energy == 0.0:
        return Finding(
            "fault",
            "the update is exactly zero",
            "nothing was learnt: the result is the start model",
            "look at training.learning_rate, at the number of steps (with warm-up the first has a "
            "rate of 0) and at whether the data hold labels",
        )
    if lie is not None and lie.still:
        return Finding(
            "caution",
            f"{len(lie.still)} of {len(lie.still) + len(lie.modules)} adapted modules have not "
            f"moved ({', '.join(lie.still[:3])})",
            "they are frozen, or got no gradient",
            "leave them out of lora.target_modules, or see why they are frozen",
        )
    return Fine(f"‖U‖² is {energy:.3g}")


def too_few_steps(facts: Facts) -> Said:
    """Were all rows seen, and had the loss stopped falling?"""
    run = facts.training
    if run is None:
        return Unseen(facts.why("training"))
    steps, epochs = run.metrics.get("steps"), run.metrics.get("epochs")
    if epochs is None or steps is None:
        return Unseen("the run is not complete, so it has no final figures")
    if epochs < 0.95:
        return Finding(
            level(facts),
            f"{steps} steps saw {percent(epochs)} of the rows once",
            "the rest of the data taught nothing",
            "raise training.epochs, or training.max_steps, which goes before it",
        )
    falling = _still_falling(run)
    if falling is not None and facts.skill_lost:
        return Finding(
            "caution",
            f"over the last quarter of {steps} steps the loss still fell by {percent(falling)}",
            "the training may have ended before the task was learnt",
            "try twice the steps",
        )
    return Fine(f"{steps} steps, {epochs:.3g} passes over the rows")


def _still_falling(run: Training) -> float | None:
    """How far the mean loss of the last quarter lies below that of the one before, if a tenth."""
    losses = [float(line["loss"]) for line in run.log if line.get("loss") is not None]
    part = len(losses) // 4
    if part < 5:
        return None
    before, after = sum(losses[-2 * part : -part]) / part, sum(losses[-part:]) / part
    fall = (before - after) / before if before > 0 else 0.0
    return fall if fall >= 0.1 else None


def labels_cut(facts: Facts) -> Said:
    """Were answers cut off, or rows left out?"""
    run = facts.training
    if run is None or run.data is None:
        return Unseen(facts.why("training") if run is None else "the run has no record of its data")
    data = run.data
    sequences, cut = int(data.get("sequences") or 0), int(data.get("truncated") or 0)
    found: list[Finding] = []
    if sequences and cut > CUT * sequences:
        found.append(
            Finding(
                level(facts),
                f"{cut} of {sequences} sequences were cut at {data.get('max_length_tokens')} "
                "tokens",
                "what is cut is the end of the answer: its labels, its end token",
                "raise training.max_length_tokens, or shorten the rows",
            )
        )
    for source in data.get("sources") or ():
        dropped = sum((source.get("dropped") or {}).values())
        if dropped > CUT * max(1, int(source.get("sampled") or source.get("rows") or 0)):
            reasons = ", ".join(f"{why} {count}" for why, count in source["dropped"].items())
            found.append(
                Finding(
                    "caution",
                    f"{source.get('path')}: {dropped} rows could not be used ({reasons}); the "
                    f"first: {source.get('first_bad') or 'not told'}",
                    "what is left may be another task than was meant",
                    "mend the rows, or name their columns",
                )
            )
    if found:
        return found
    return Fine(f"{cut} of {sequences} sequences were cut, {data.get('learnt_tokens', 'unknown')} "
                "tokens carry a label")  # fmt: skip


def over_refusal(facts: Facts) -> Said:
    """Does the model refuse what is harmless?"""
    if facts.measures is None:
        return Unseen(facts.why("measures"))
    known = facts.of("over_refusal")
    if not known:
        return Unseen("the evaluation asked no harmless prompts (benign: true)")
    found = []
    for one in known:
        rose = one.above(one.aligned, one.gap)
        if rose or one.own.low > REFUSES:
            how = "more than before" if rose else "whatever was trained"
            found.append(
                Finding(
                    "fault" if rose else "caution",
                    f"{told([one])}",
                    f"harmless requests are refused {how}, and a refusal is no right answer either",
                    "align with benign rows beside the refusals, lower penalty.lam, or mix fewer "
                    "refusals in",
                )
            )
    return found or Fine(told(known))


def gradients_conflict(facts: Facts) -> Said:
    """Does the task pull against alignment?"""
    found = facts.gradients
    if found is None:
        return Unseen(facts.why("gradients"))
    seen = (
        f"on {found.rows} rows at the start model, the task's descent has cosine "
        f"{found.with_anchor:+.3f} with dW (chance {found.chance:.1e}) and "
        f"{percent(found.inside)} of it inside the anchor's subspaces (chance "
        f"{percent(found.chance_inside)}); two halves of the rows: {found.noise:+.3f}"
    )
    if found.with_refusals is not None:
        seen += f"; with the descent on {found.refusals} refusals {found.with_refusals:+.3f}"
    against = [value for value in (found.with_anchor, found.with_refusals) if value is not None]
    if all(value > -max(AGAINST, 3 * found.chance) for value in against):
        return Fine(seen)
    return Finding(
        level(facts),
        seen,
        "the task itself pulls back along the alignment: what the penalty holds is what the task "
        "asks for, so accuracy and safety are bought from each other",
        "mix in refusals (safe-instr), move the start on first (lox), choose other layers to "
        "adapt, or look for harmful rows in the data (anchortune screen)",
    )
