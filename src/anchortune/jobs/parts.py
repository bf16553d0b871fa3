"""The steps of a job as they would be done: each checked, with what it takes."""

from __future__ import annotations

import contextlib
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from anchortune.anchor.anchor import Anchor
from anchortune.config import PenaltySection, TrainConfig
from anchortune.config_defences import AnchorRef, AsftAltSection
from anchortune.jobs.config import REFERENCE, Arm
from anchortune.jobs.judging import evaluation, reference
from anchortune.jobs.making import AnchorStep, HarmfulStep, anchor_parents
from anchortune.jobs.step import Job, Part
from anchortune.jobs.unseen import check_unseen
from anchortune.maths.factors import Factors
from anchortune.progress import duration

if TYPE_CHECKING:
    from anchortune.checkpoints.pairs import Pairing
    from anchortune.evaluation.plan import EvalPlan
    from anchortune.training.plan import Plan


def plan_anchor(job: Job, timed: bool) -> tuple[Part, Anchor | None]:
    """(the step, what stands in for the anchor until it is built; None where it is)."""
    from anchortune.checkpoints.pairs import pair_checkpoints
    from anchortune.checkpoints.source import open_checkpoint

    config = job.config
    aligned, base = anchor_parents(config)
    pairing = pair_checkpoints(
        open_checkpoint(aligned["name"], revision=aligned["revision"]),
        open_checkpoint(base["name"], revision=base["revision"]),
        config.anchor_targets,
    )
    built = AnchorStep().prepare(job).outputs is not None
    anchor = _stand_in(job, pairing)
    disk = sum(4 * factors.rank * (sum(factors.shape) + 1) for factors in anchor.modules.values())
    largest = max(pair.shape[0] * pair.shape[1] for pair in pairing.modules)
    part = Part(
        "anchor",
        "complete" if built else "new",
        [
            f"{pairing.aligned.label} minus {pairing.base.label}: {len(pairing.modules)} modules, "
            f"at most {disk / 2**20:.1f} MiB",
            *(f"note    {note}" for note in pairing.notes),
        ],
        {"modules": len(pairing.modules)},
        _time_anchor(job, pairing) if timed and not built else None,
        memory_bytes=6 * 8 * largest,  # the SVD's float64 input, its factors and workspace
        disk_bytes=disk,
    )
    return part, None if built else anchor


def plan_harmful_anchor(job: Job, timed: bool) -> tuple[Part, Anchor | None]:
    """As ``plan_anchor``, for the harmful anchor."""
    made = HarmfulStep().prepare(job).outputs is not None
    plan = HarmfulStep().plan(job, timed=timed and not made)
    shapes = {name: plan.start.tensors[f"{name}.weight"].shape for name in plan.modules}
    disk = sum(4 * min(plan.rank, *shape) * (sum(shape) + 1) for shape in shapes.values())
    cost = plan.training.estimate if plan.training is not None else None
    part = Part(
        HarmfulStep.name,
        "complete" if made else "new",
        plan.lines(),
        {"modules": len(shapes), "pairs": plan.pairs, "method": plan.settings.method},
        None if cost is None else cost.seconds,
        # A gradient pass holds a sum for every module in float32, beside the model.
        4 * sum(a * b for a, b in shapes.values()) if cost is None else cost.memory_bytes,
        disk + (0 if cost is None else cost.disk_bytes),
    )
    if made:
        return part, None
    return part, Anchor(
        {name: _unit((shape[0], shape[1]), plan.rank) for name, shape in shapes.items()}
    )


def _stand_in(job: Job, pairing: Pairing) -> Anchor:
    """An anchor of the right modules, shapes and ranks that holds unit vectors."""
    from anchortune.anchor.build import DEFAULT_RANK
    from anchortune.checkpoints.adapter import AdapterCheckpoint

    section = job.config.anchor
    asked = section.rank if section is not None else None
    limit = asked if isinstance(asked, int) else DEFAULT_RANK
    modules = {}
    for pair in pairing.modules:
        rank = limit
        if isinstance(pairing.aligned, AdapterCheckpoint):
            held = pairing.aligned.tensors[pairing.aligned.modules()[pair.aligned][0]].shape[0]
            rank = min(rank, held)
        modules[pair.name] = _unit(pair.shape, rank)
    return Anchor(modules)


def _unit(shape: tuple[int, int], rank: int) -> Factors:
    """Unit vectors in place of singular ones."""
    rows, columns = shape
    rank = min(rank, rows, columns)
    return Factors(
        torch.eye(rows, rank), torch.ones(rank), torch.eye(columns, rank), float(rank) ** 0.5
    )


def _time_anchor(job: Job, pairing: Pairing) -> float:
    """Seconds for all modules, by the largest one's and everybody's size."""
    from anchortune.anchor.build import DEFAULT_RANK, at_once, factorise, threads

    section = job.config.anchor
    sizes = [pair.shape[0] * pair.shape[1] for pair in pairing.modules]
    largest = pairing.modules[sizes.index(max(sizes))]
    started = time.perf_counter()
    delta = pairing.delta(largest)
    energy = section.energy if section is not None else None
    rank = section.rank if section is not None else None
    limit = rank or (DEFAULT_RANK if energy is None else "full")
    workers = at_once(pairing, limit)
    with threads(torch.get_num_threads() // workers):
        factorise(delta, limit, energy)
    spent = time.perf_counter() - started
    return spent * sum(sizes) / max(sizes) / workers


@dataclass
class StandIns:
    """What stands in for anchors that are not made yet, so that all else can be checked.

    Attributes:
        aligned: for the anchor; None where it is there, or not needed.
        harmful: for the harmful anchor; likewise.
    """

    aligned: Anchor | None = None
    harmful: Anchor | None = None


def plan_arm(job: Job, arm: Arm, waiting: StandIns, timed: bool) -> Plan:
    """The arm's training, checked; against a stand-in where an anchor is not made yet.

    Raises:
        AnchortuneError: model, data or anchor cannot be used, or do not fit each other.
    """
    path = job.folder.train(arm.name)
    config = job.training_of(arm, path)
    needs, others = arm.how.needs(), arm.how.needs(penalty=False)
    absent = {
        key: anchor
        for key, anchor in (("anchor", waiting.aligned), ("harmful_anchor", waiting.harmful))
        if anchor is not None and key in needs
    }
    if not absent:
        return _plan(job, arm, config, timed)
    penalty = config.penalty
    along = isinstance(arm.how.penalty, AsftAltSection)
    own = absent.get("harmful_anchor" if along else "anchor") if penalty is not None else None
    with tempfile.TemporaryDirectory() as place:
        given: dict[str, object] = {} if own is None else {"penalty": None}
        for key in others & absent.keys():
            file = Path(place) / f"{key}.safetensors"
            absent[key].save(file)
            given[key] = AnchorRef(path=str(file))
        plan = _plan(job, arm, config.model_copy(update=given), timed)
    # Of a stand-in nothing but its modules and their shapes is true.
    plan.notes = [note for note in plan.notes if "could not be compared" not in note]
    plan.chain.edit = {}
    if own is not None and penalty is not None:
        plan.notes += _check_fit(job, own, penalty)
    plan.config = config
    return plan


def _plan(job: Job, arm: Arm, config: TrainConfig, timed: bool) -> Plan:
    from anchortune.training.folder import OtherRun
    from anchortune.training.plan import plan_stage

    try:
        return plan_stage(config, timed=timed, screened=job.omitting)
    except OtherRun:  # the run moves it aside, and trains anew
        path = job.folder.train(f"{arm.name}.new")
        anew = config.model_copy(update={"output": str(path)})
        return plan_stage(anew, timed=timed, screened=job.omitting)


def _check_fit(job: Job, anchor: Anchor, penalty: PenaltySection) -> list[str]:
    from anchortune.models.load import load_skeleton
    from anchortune.training.anchored import check_fit
    from anchortune.training.lora import add_lora

    skeleton = load_skeleton(job.config.model)
    if job.config.lora is not None:
        skeleton = add_lora(skeleton, job.config.lora, job.config.seed)
    return check_fit(anchor, skeleton, penalty)


def part_of(job: Job, arm: Arm, plan: Plan, seconds: float | None) -> Part:
    """One arm by its method's plan, which is of the method's first seed."""
    from anchortune.training.folder import OtherRun, RunFolder

    state = "new"
    with contextlib.suppress(OtherRun):
        held = RunFolder(job.folder.train(arm.name), plan.folder.identity | {"seed": arm.seed})
        state = held.state().value
    summary = plan.summary()
    return Part(
        f"train-{arm.name}",
        state,
        [
            line
            for line in plan.lines()
            if not line.startswith(("output", "time", "note    the new adapter"))
        ]
        + ([f"time    about {duration(seconds)}"] if seconds is not None else []),
        {key: summary[key] for key in ("inputs", "steps", "device", "dtype", "notes")},
        seconds,
        plan.estimate.memory_bytes,
        plan.estimate.disk_bytes,
    )


def plan_evaluation(job: Job, trained: bool, timed: bool) -> Part:
    """The evaluation, checked, with what it takes.

    Before the arms are trained it is the reference's, and its cost as many times as there are
    models: the others are the reference with an adapter merged in.
    """
    from anchortune.evaluation.plan import plan_eval
    from anchortune.run_folder import OtherRun

    config = job.config
    models = 1 + len(config.arms)
    seeds = {arm.seed for arm in config.arms}
    check_unseen(config.probe, config.refusals, seeds, config.evaluate)
    if trained:
        with contextlib.suppress(OtherRun):  # it will be moved aside
            plan = plan_eval(evaluation(job), timed=timed)
            return _evaluation_part(plan, plan.state.value, models, 1)
    path = str(job.folder.path / "eval.new")
    plan = plan_eval(config.evaluation_of({REFERENCE: reference(config)}, path), timed=timed)
    return _evaluation_part(plan, "new", models, models)


def _evaluation_part(plan: EvalPlan, state: str, models: int, times: int) -> Part:
    cost = plan.estimate
    if cost is not None and cost.seconds is not None:
        cost = replace(cost, seconds=cost.seconds * times, reading_s=cost.reading_s * times)
        plan.estimate = cost
    answers = plan.answers * times
    lines = [line for line in plan.lines() if not line.startswith(("output", "total"))]
    return Part(
        "evaluate",
        state,
        [*lines, f"total   {answers} answers of {models} models, {plan.verdicts * times} verdicts"],
        {"models": models, "answers": answers, "verdicts": plan.verdicts * times},
        None if cost is None else cost.seconds,
        cost.memory_bytes if cost is not None else 0,
        cost.disk_bytes * times if cost is not None else 0,
    )


def plan_release(job: Job, plan: Plan, state: str) -> Part:
    """Gate, report and release: what decides, and where the adapter goes.

    Args:
        job: the job.
        plan: of the main method's training.
        state: of the evaluation, which these follow.
    """
    limits, output = job.config.limits, job.folder.path
    made = "model" if job.config.lora is None else "adapter"
    if limits is None:
        lines = [f"no limits, so no gate: {output / made}"]
    else:
        told = ", ".join(f"{name} {bound:g}" for name, bound in limits.given().items())
        lines = [
            f"limits  {told}",
            f"{output / made} if the gate passes, else {job.folder.rejected / made}",
        ]
    # A copy of what was trained; with model.adapter the one on the bare base is larger.
    copies = 1 if job.config.model.adapter is None else 3
    size = copies * plan.parameters[0] * 4
    return Part("release", state, lines, seconds=0.0, disk_bytes=size)
