"""All checks, in the order in which their findings should be read."""

from __future__ import annotations

from anchortune.report.diagnosis import movement, repeat, safety, skill
from anchortune.report.diagnosis.facts import Facts
from anchortune.report.diagnosis.finding import Check, Diagnosis, apply

CHECKS = (
    Check("harm-rose", "safety", safety.harm_rose),
    Check("accuracy-fell", "skill", skill.accuracy_fell),
    Check("no-penalty", "safety", safety.penalty_there),
    Check("penalty-without-effect", "safety", safety.penalty_acted),
    Check("unhealthy-training", "skill", skill.training_health),
    Check("never-moved", "skill", skill.never_moved),
    Check("anchor-of-another-model", "safety", safety.anchor_family),
    Check("modules-without-anchor", "safety", safety.anchor_modules),
    Check("anchor-without-direction", "safety", safety.anchor_selective),
    Check("went-backwards", "safety", movement.went_backwards),
    Check("lost-in-the-free-part", "safety", movement.free_part),
    Check("harmful-data", "safety", movement.poison),
    Check("probe-fell", "safety", movement.probe),
    Check("weak-start", "safety", safety.weak_start),
    Check("broken-answers", "safety", safety.answers_broken),
    Check("lambda-too-high", "skill", skill.lam_too_high),
    Check("gradients-in-conflict", "skill", skill.gradients_conflict),
    Check("labels-cut", "skill", skill.labels_cut),
    Check("too-few-steps", "skill", skill.too_few_steps),
    Check("over-refusal", "skill", skill.over_refusal),
    Check("other-weights-evaluated", "repeat", repeat.same_result),
    Check("files-changed", "repeat", repeat.files_changed),
    Check("differs-from-the-other", "repeat", repeat.compared),
    Check("small-sample", "repeat", repeat.sample_size),
    Check("one-seed", "repeat", repeat.seeds),
    Check("uncertain-judge", "repeat", repeat.judges),
    Check("evaluation-warns", "repeat", repeat.warned),
    Check("other-versions", "repeat", repeat.versions),
)


def diagnose(facts: Facts) -> Diagnosis:
    """What all checks say of a run."""
    return apply(CHECKS, facts)
