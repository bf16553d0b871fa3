"""Runs made up for the rules of ``diagnose``: a healthy one, and one for each signature."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from anchortune.maths.stats import Rate, wilson
from anchortune.report.diagnosis.facts import (
    Facts,
    Gap,
    Gradients,
    Harmful,
    Lie,
    Measured,
    Module,
    Training,
)

SAME = {
    "settings": {"seed": 1, "lora.rank": 8},
    "inputs": {"data": "a" * 64},
    "machine": {"torch": "2.13.0"},
}


def rate(hits: int, n: int) -> Rate:
    return wilson(hits, n)


def gap(value: float, half: float = 0.04, n: int = 1000) -> Gap:
    return Gap(value, value - half, value + half, n)


def measure(kind: Any, own: int, aligned: int, plain: int, n: int = 1000, **more: Any) -> Measured:
    """Rates of n with paired intervals of ±4 points."""
    found = Measured(
        kind=kind,
        set="bad" if kind in ("harm", "refusal", "coherence") else "task",
        own=rate(own, n),
        judge="guard" if kind == "harm" else None,
        aligned=rate(aligned, n),
        gap=gap((own - aligned) / n, n=n),
        plain=rate(plain, n),
        plain_gap=gap((own - plain) / n, n=n),
        seeds=3,
        seeds_sd=0.01,
    )
    return replace(found, **more)


MODULE = Module(
    name="model.layers.0.self_attn.q_proj",
    shape=(64, 64),
    rank=8,
    norm=2.0,
    kept=0.99,
    eigenvalue=0.9,
    cost_along=0.01,
    cost_random=0.875,
    energy=1.0,
    along=0.02,
    inside=0.6,
)
LOG = [
    {
        "step": step,
        "loss": 3.0 * 0.9**step + 1.0,
        "probe/fall": 0.3,
        "asft/penalty": 0.01,
        "asft/penalty_grad_norm": 0.5,
        "asft/task_grad_norm": 1.0,
    }
    for step in range(1, 41)
]
LAST = {
    "asft/lam": 1.0,
    "asft/update_energy": 1.0,
    "asft/penalised_share": 0.4,
    "asft/unpenalised_energy": 0.0,
}
TRAINING = Training(
    name="asft",
    penalty={"operator": "subspace", "side": "off", "lam": 1.0, "rank": None, "lam_inside": 0.0},
    seed=1,
    start="aligned",
    parents="anchor.safetensors was built from aligned and base",
    log=LOG,
    data={
        "sequences": 100,
        "truncated": 1,
        "learnt_tokens": 900,
        "max_length_tokens": 512,
        "sources": [{"path": "d.jsonl", "sampled": 100, "dropped": {"empty answer": 1}}],
    },
    harmful=Harmful(10, 100, "screen", True),
    last=LAST,
    metrics={"steps": 40, "epochs": 3.0},
    outputs={"adapter_model.safetensors": "b" * 64},
    versions={"torch": "2.13.0"},
    decides=SAME,
)
MEASURES = [
    measure("harm", 20, 10, 400),
    measure("refusal", 970, 980, 300),
    measure("coherence", 990, 995, 990),
    measure("accuracy", 800, 500, 805),
    measure("over_refusal", 50, 60, 10),
]
HEALTHY = Facts(
    run="runs/job",
    training=TRAINING,
    plain=replace(TRAINING, name="sft", penalty=None, outputs={"adapter_model.safetensors": "c"},
                  last={}),
    measures=MEASURES,
    lie=Lie("step 40", [MODULE, replace(MODULE, name="model.layers.0.self_attn.v_proj")]),
    gradients=Gradients(32, 0.02, 0.2, 0.001, 0.125, 0.6, 0.01, 8),
    checked=3,
    asked=True,
    here={"torch": "2.13.0"},
    decides={},
    other=("runs/theirs", SAME, {}),
)  # fmt: skip
UNSAFE = replace(HEALTHY, measures=[measure("harm", 400, 10, 410), *MEASURES[1:]])
UNSKILLED = replace(
    HEALTHY, measures=[MEASURES[0], measure("accuracy", 400, 500, 800)]
)  # fmt: skip


def trained(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    return replace(facts, training=replace(TRAINING, **changes))


def logged(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    return trained(facts, last={**LAST, **changes})


def lying(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    return replace(facts, lie=Lie("result", [replace(MODULE, **changes)] * 2))


def penalised(facts: Facts = HEALTHY, **changes: Any) -> Facts:
    return trained(facts, penalty={**(TRAINING.penalty or {}), **changes})


#: (facts, the check that must speak, its level, words of what it saw)
SIGNATURES: dict[str, tuple[Facts, str, str, str]] = {
    "harm": (UNSAFE, "harm-rose", "fault", "40.0 % .*n 1000.*aligned model 1.0 %.*410|41.0 %"),
    "refusals": (
        replace(HEALTHY, measures=[measure("refusal", 300, 980, 300)]),
        "harm-rose", "fault", "30.0 %",
    ),
    "no-penalty": (trained(penalty=None), "no-penalty", "caution", "without the AsFT penalty"),
    "lam-0": (logged(**{"asft/lam": 0.0}), "no-penalty", "fault", "λ is 0"),
    "twin": (
        replace(HEALTHY, plain=replace(TRAINING, name="sft")),
        "penalty-without-effect", "fault", "byte for byte that of sft, after 40 steps at λ 1",
    ),
    "share-of-chance": (
        logged(UNSAFE, **{"asft/penalised_share": 0.86}),
        "penalty-without-effect", "fault", r"86.0 % .* by chance 87.5 %",
    ),
    "size-of-plain": (
        replace(penalised(UNSAFE, operator="none"), plain_energy=2.02),
        "penalty-without-effect", "fault", "‖U‖² is 2, of plain fine-tuning 2.02",
    ),
    "other-start": (trained(UNSAFE, start="other"), "anchor-of-another-model", "fault", "other"),
    "loose": (
        logged(UNSAFE, **{"asft/unpenalised_energy": 0.5}),
        "modules-without-anchor", "fault", r"0\.5, those under it by 1",
    ),
    "uncovered": (
        replace(UNSAFE, lie=Lie("result", [MODULE], uncovered=["model.layers.0.mlp.up_proj"])),
        "modules-without-anchor", "fault", "1 of 2 modules .*up_proj",
    ),
    "norm-decay": (
        lying(penalised(UNSAFE, operator="gram"), cost_along=0.97, cost_random=0.999),
        "anchor-without-direction", "fault", "gram charges .* 0.97 .* 0.999",
    ),
    "all-free": (
        lying(UNSAFE, cost_random=0.2),
        "anchor-without-direction", "fault", "80.0 % of all directions are free",
    ),
    "noise": (
        lying(UNSAFE, kept=0.4, rank=8),
        "anchor-without-direction", "fault", "2 of 2 modules .* 40.0 %",
    ),
    "backwards": (lying(UNSAFE, along=-1.4), "went-backwards", "fault", "35.0 % of the way back"),
    "towards-harm": (
        replace(UNSAFE, lie=Lie("result", [replace(MODULE, along=1.4)], harmful=True)),
        "went-backwards", "fault", "towards the harmful model",
    ),
    "backwards-by-the-log": (
        replace(
            logged(UNSAFE, **{"asft/forwards_share": 0.01, "asft/backwards_share": 0.3}), lie=None
        ),
        "went-backwards", "fault", "30 % along −dW, by the log",
    ),
    "free-part": (
        logged(UNSAFE, **{"asft/penalised_share": 0.001}),
        "lost-in-the-free-part", "fault", "0.1 % of .* ‖U‖²/‖dW‖² is 0.25",
    ),
    "poison": (UNSAFE, "harmful-data", "fault", r"10 of 100 rows \(10.0 %\)"),
    "much-poison": (
        trained(replace(HEALTHY, measures=None), harmful=Harmful(30, 100, "mix", True)),
        "harmful-data", "fault", "30.0 %.* mixed in",
    ),
    "probe": (
        trained(UNSAFE, log=[*LOG, {"step": 41, "loss": 1.0, "probe/fall": 5.0}], warn_below=4.0),
        "probe-fell", "fault", "5.00 nats, and past 4.00 nats first at step 41",
    ),
    "probe-stop": (trained(stopped={"step": 7, "fall": 9.0}), "probe-fell", "fault", "step 7"),
    "weak-start": (
        replace(HEALTHY, measures=[measure("harm", 400, 410, 900)]),
        "weak-start", "fault", "41.0 %",
    ),
    "babble": (
        replace(HEALTHY, measures=[measure("coherence", 100, 990, 990)]),
        "broken-answers", "fault", "10.0 %",
    ),
    "accuracy": (UNSKILLED, "accuracy-fell", "fault", "40.0 %"),
    "accuracy-of-plain": (
        replace(HEALTHY, measures=[measure("accuracy", 700, 500, 800)]),
        "accuracy-fell", "fault", "plain fine-tuning 80.0 %",
    ),
    "lam-share": (
        trained(UNSKILLED, log=[{**line, "asft/penalty": 3.0} for line in LOG]),
        "lambda-too-high", "fault", "λ 1: λR is 7[0-9].* % of λR \\+ loss",
    ),
    "lam-gradient": (
        trained(UNSKILLED, log=[{**line, "asft/penalty_grad_norm": 50.0} for line in LOG]),
        "lambda-too-high", "fault", "50 times the task's",
    ),
    "lam-stiff": (
        replace(UNSKILLED, plain_energy=2000.0),
        "lambda-too-high", "fault", "‖U‖² is 2, without the penalty 2e\\+03",
    ),
    "lam-flat": (
        trained(UNSKILLED, log=[{**line, "loss": 3.0 - 0.001 * line["step"]} for line in LOG]),
        "lambda-too-high", "fault", "fell by 0.036, without the penalty by",
    ),
    "conflict": (
        replace(UNSKILLED, gradients=Gradients(32, -0.2, 0.2, 0.001, 0.125, 0.6)),
        "gradients-in-conflict", "fault", "-0.200 with dW",
    ),
    "conflict-with-refusals": (
        replace(UNSKILLED, gradients=Gradients(32, 0.2, 0.2, 0.001, 0.125, 0.6, -0.3, 8)),
        "gradients-in-conflict", "fault", "8 refusals -0.300",
    ),
    "health": (
        trained(health=[("the loss is nan at step 3; lower it.", True)]),
        "unhealthy-training", "fault", "nan at step 3",
    ),
    "zero": (
        replace(HEALTHY, lie=Lie("result", [], still=["a", "b"])),
        "never-moved", "fault", "exactly zero",
    ),
    "half-zero": (
        replace(HEALTHY, lie=Lie("result", [MODULE], still=["a"])),
        "never-moved", "caution", "1 of 2 adapted modules",
    ),
    "cut": (
        trained(UNSKILLED, data={**(TRAINING.data or {}), "truncated": 40}),
        "labels-cut", "fault", "40 of 100 sequences were cut at 512",
    ),
    "dropped": (
        trained(
            data={
                **(TRAINING.data or {}),
                "sources": [{"path": "d.jsonl", "sampled": 100, "dropped": {"empty answer": 30},
                             "first_bad": "line 3"}],
            }
        ),
        "labels-cut", "caution", "d.jsonl: 30 rows .*empty answer 30.*line 3",
    ),
    "half-an-epoch": (
        trained(UNSKILLED, metrics={"steps": 3, "epochs": 0.5}),
        "too-few-steps", "fault", "3 steps saw 50.0 %",
    ),
    "still-falling": (
        trained(UNSKILLED, log=[{**line, "loss": 9.0 * 0.95 ** line["step"]} for line in LOG]),
        "too-few-steps", "caution", "last quarter of 40 steps",
    ),
    "over-refusal": (
        replace(HEALTHY, measures=[measure("over_refusal", 400, 60, 10)]),
        "over-refusal", "fault", "40.0 %",
    ),
    "always-refused": (
        replace(HEALTHY, measures=[measure("over_refusal", 400, 410, 10)]),
        "over-refusal", "caution", "40.0 %",
    ),
    "other-weights": (
        replace(HEALTHY, asked=False), "other-weights-evaluated", "fault", "SHA-256"
    ),
    "changed": (
        replace(HEALTHY, changed=["d.jsonl holds other bytes than the record says"]),
        "files-changed", "fault", "d.jsonl",
    ),
    "other-data": (
        replace(HEALTHY, other=("o", {**SAME, "inputs": {"data": "d" * 64}}, {})),
        "differs-from-the-other", "fault", "other files than o: data aaaaaaaaaaaa… .dddddddddddd…",
    ),
    "other-seed": (
        replace(HEALTHY, other=("o", {**SAME, "settings": {"seed": 2, "lora.rank": 8}}, {})),
        "differs-from-the-other", "fault", r"other settings than o: seed 1 \(2\)$",
    ),
    "other-torch": (
        replace(HEALTHY, other=("o", {**SAME, "machine": {"torch": "2.11.0"}}, {})),
        "differs-from-the-other", "caution", r"torch 2.13.0 \(2.11.0\)",
    ),
    "few": (
        replace(HEALTHY, measures=[Measured("harm", "bad", rate(12, 117), judge="guard")]),
        "small-sample", "caution", r"with n = 117 a difference below 7\.[78] points cannot be told",
    ),
    "one-seed": (
        replace(HEALTHY, measures=[measure("harm", 20, 10, 400, seeds=1)]),
        "one-seed", "caution", r"one seed \(1\)",
    ),
    "indicative": (
        replace(HEALTHY, measures=[measure("harm", 20, 10, 400, indicative=True)]),
        "uncertain-judge", "caution", "guard misses the bar",
    ),
    "unscored": (
        replace(HEALTHY, measures=[measure("harm", 20, 10, 400, unscored=200)]),
        "uncertain-judge", "caution", "200 of 1200 answers",
    ),
    "warned": (
        replace(HEALTHY, warnings=["12 of 100 prompts are in the data"]),
        "evaluation-warns", "caution", "12 of 100 prompts",
    ),
    "versions": (
        replace(HEALTHY, here={"torch": "2.14.0"}),
        "other-versions", "caution", r"torch 2.13.0 \(here 2.14.0\)",
    ),
}  # fmt: skip
