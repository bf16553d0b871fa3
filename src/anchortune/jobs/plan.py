"""A job checked in full before any work, with what each step will take."""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anchortune.config import PenaltySection
from anchortune.errors import JobError
from anchortune.evaluation.progress import duration
from anchortune.jobs.config import METHODS, REFERENCE, Arm, JobConfig
from anchortune.jobs.folder import JobFolder
from anchortune.jobs.judging import evaluation, reference
from anchortune.jobs.lock import holder_of, is_alive
from anchortune.jobs.making import AnchorStep, anchor_parents
from anchortune.jobs.step import Job, Part
from anchortune.report.gate import Limits

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.checkpoints.pairs import Pairing
    from anchortune.evaluation.plan import EvalPlan
    from anchortune.training.plan import Plan


@dataclass
class JobPlan:
    """A job that has been checked and can be run.

    Attributes:
        config: resolved.
        parts: by step, in their order.
        free_bytes: on the disk of the job's folder.
    """

    config: JobConfig
    parts: list[Part]
    free_bytes: int

    @property
    def seconds(self) -> float:
        """Of everything that is to be done, but for the ``untimed`` steps."""
        return sum(part.seconds or 0.0 for part in self.parts if part.open)

    @property
    def untimed(self) -> list[str]:
        """Steps to be done of which nobody knows how long they take."""
        return [part.name for part in self.parts if part.open and part.seconds is None]

    @property
    def memory_bytes(self) -> int:
        """Of the step that takes the most."""
        return max(part.memory_bytes for part in self.parts)

    @property
    def disk_bytes(self) -> int:
        """Of everything that is to be done."""
        return sum(part.disk_bytes for part in self.parts if part.open)

    def lines(self) -> list[str]:
        """For people: what would be done."""
        found = []
        for part in self.parts:
            found.append(f"== {part.name} ({part.state})")
            found += [f"   {line}" for line in part.lines]
        besides = f" ({', '.join(self.untimed)} besides)" if self.untimed else ""
        found.append(
            f"== in all: time about {duration(self.seconds)}{besides}, "
            f"memory about {self.memory_bytes / 2**30:.2f} GiB, disk at most about "
            f"{self.disk_bytes / 2**20:.0f} MiB of {self.free_bytes / 2**30:.1f} GiB free"
        )
        return found

    def summary(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "kind": "job",
            "config": self.config.model_dump(mode="json"),
            "steps": [
                {
                    "name": part.name,
                    "state": part.state,
                    "seconds": part.seconds,
                    "memory_bytes": part.memory_bytes,
                    "disk_bytes": part.disk_bytes,
                    **part.facts,
                }
                for part in self.parts
            ],
            "estimate": {
                "seconds": self.seconds,
                "untimed": self.untimed,
                "memory_bytes": self.memory_bytes,
                "disk_bytes": self.disk_bytes,
            },
        }


def plan_job(config: JobConfig, *, timed: bool = False) -> JobPlan:
    """Everything that can be checked without doing it, checked; nothing is written.

    Args:
        config: of the job.
        timed: estimate the times as well, which takes some seconds.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    folder = JobFolder(config.output)
    folder.check()
    holder = holder_of(folder.path) if folder.is_job() else None
    if holder is not None and is_alive(holder, folder.path):
        raise JobError(f"{folder.path} is in use ({holder}); wait for it, or name another output.")
    return plan_steps(Job(config, folder), timed=timed)


def plan_steps(job: Job, *, timed: bool = False) -> JobPlan:
    """As ``plan_job``, for who holds the folder already.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    config, folder = job.config, job.folder
    check_limits(config)
    parts: list[Part] = []
    if config.screen is not None:
        from anchortune.jobs.screening import ScreenStep

        parts.append(ScreenStep().plan(job))
    stand_in = None
    if config.anchored and config.anchor_path is None:
        part, stand_in = _plan_anchor(job, timed)
        parts.append(part)
    kinds = {arm.method: arm for arm in reversed(config.arms)}
    plans = {method: _plan_arm(job, arm, stand_in, timed) for method, arm in kinds.items()}
    parts += [_part_of(job, arm, plans[arm.method]) for arm in config.arms]
    trained = not any(part.open for part in parts)
    parts.append(_plan_evaluation(job, trained, timed))
    plan = JobPlan(config, parts, _free(folder))
    if plan.disk_bytes > plan.free_bytes:
        raise JobError(
            f"output {folder.path} needs about {plan.disk_bytes / 2**30:.1f} GiB and "
            f"{plan.free_bytes / 2**30:.1f} GiB are free there; name a folder on another disk."
        )
    return plan


def check_limits(config: JobConfig) -> None:
    """Raises where a limit asks for what the evaluation does not measure.

    Raises:
        JobError: naming the limit, and what to add.
    """
    limits, asked = config.limits, config.evaluate
    if limits is None:
        return
    given = limits.given()
    if not given:
        raise JobError(
            f"limits holds none; give one of {', '.join(Limits.model_fields)}, or drop the section."
        )
    judged = any(judge.name != "refusal" for judge in asked.judges)
    harm = judged and any(not section.benign for section in asked.harm)
    accuracy = any(task.name not in {"xstest", "alpaca"} for task in asked.tasks)
    refusals = any(task.name == "xstest" for task in asked.tasks) or any(
        section.benign for section in asked.harm
    )
    wants = {
        "max_harm": (harm, "a prompt set in evaluate.harm and a judge of harm (refusal is none)"),
        "max_unscored": (harm, "a prompt set in evaluate.harm and a judge of harm"),
        "min_accuracy": (accuracy, "a task with right answers in evaluate.tasks"),
        "max_accuracy": (accuracy, "a task with right answers in evaluate.tasks"),
        "max_over_refusal": (refusals, "the task xstest, or a benign set in evaluate.harm"),
    }
    for limit in given:
        for start, (there, what) in wants.items():
            if limit.startswith(start) and not there:
                raise JobError(f"limits.{limit} needs {what}; add it, or drop the limit.")


def _plan_anchor(job: Job, timed: bool) -> tuple[Part, Anchor | None]:
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


def _stand_in(job: Job, pairing: Pairing) -> Anchor:
    """An anchor of the right modules, shapes and ranks that holds unit vectors."""
    import torch

    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.build import DEFAULT_RANK
    from anchortune.checkpoints.adapter import AdapterCheckpoint
    from anchortune.maths.factors import Factors

    section = job.config.anchor
    asked = section.rank if section is not None else None
    limit = asked if isinstance(asked, int) else DEFAULT_RANK
    modules = {}
    for pair in pairing.modules:
        rows, columns = reversed(pair.shape) if pair.transposed else pair.shape
        rank = min(limit, rows, columns)
        if isinstance(pairing.aligned, AdapterCheckpoint):
            held = pairing.aligned.tensors[pairing.aligned.modules()[pair.aligned][0]].shape[0]
            rank = min(rank, held)
        modules[pair.name] = Factors(
            torch.eye(rows, rank), torch.ones(rank), torch.eye(columns, rank), float(rank) ** 0.5
        )
    return Anchor(modules)


def _time_anchor(job: Job, pairing: Pairing) -> float:
    """Seconds for all modules, by the largest one's and everybody's size."""
    from dataclasses import replace

    from anchortune.anchor.build import DEFAULT_RANK, factorise

    section = job.config.anchor
    sizes = [pair.shape[0] * pair.shape[1] for pair in pairing.modules]
    largest = pairing.modules[sizes.index(max(sizes))]
    started = time.perf_counter()
    delta = next(replace(pairing, modules=[largest]).deltas())
    energy = section.energy if section is not None else None
    rank = section.rank if section is not None else None
    factorise(delta, rank or (DEFAULT_RANK if energy is None else "full"), energy)
    return (time.perf_counter() - started) * sum(sizes) / max(sizes)


def _plan_arm(job: Job, arm: Arm, stand_in: Anchor | None, timed: bool) -> Plan:
    """The arm's training, checked; against ``stand_in`` where the anchor is not built yet."""
    from anchortune.training.folder import OtherRun
    from anchortune.training.plan import plan_stage

    path = job.folder.train(arm.name)
    config = job.config.training_of(arm, job.anchor, str(path))
    waiting = METHODS[arm.method].anchored and stand_in is not None
    penalty = config.penalty
    if waiting:
        config = config.model_copy(update={"penalty": None})
    try:
        plan = plan_stage(config, timed=timed, screened=job.screened)
    except OtherRun:  # the run moves it aside, and trains anew
        anew = config.model_copy(update={"output": str(path.with_name(f"{arm.name}.new"))})
        plan = plan_stage(anew, timed=timed, screened=job.screened)
    if waiting and penalty is not None and stand_in is not None:
        plan.notes += _check_fit(job, stand_in, penalty)
    return plan


def _check_fit(job: Job, anchor: Anchor, penalty: PenaltySection) -> list[str]:
    from anchortune.models.load import load_skeleton
    from anchortune.training.anchored import check_fit
    from anchortune.training.lora import add_lora

    skeleton = load_skeleton(job.config.model)
    if job.config.lora is not None:
        skeleton = add_lora(skeleton, job.config.lora, job.config.seed)
    return check_fit(anchor, skeleton, penalty)


def _part_of(job: Job, arm: Arm, plan: Plan) -> Part:
    cost = plan.estimate
    state = "new"
    first = plan.folder.path.name == arm.name
    if first:
        state = plan.state.value
    hidden = ("output", "note    the new adapter") if first else ("output", "note")
    summary = plan.summary()
    return Part(
        f"train-{arm.name}",
        state,
        [line for line in plan.lines() if not line.startswith(hidden)],
        {key: summary[key] for key in ("inputs", "steps", "device", "dtype", "notes")},
        cost.seconds,
        cost.memory_bytes,
        cost.disk_bytes,
    )


def _plan_evaluation(job: Job, trained: bool, timed: bool) -> Part:
    """The evaluation, checked, with what it takes.

    Before the arms are trained it is the reference's, and its cost as many times as there are
    models: the others are the reference with an adapter merged in.
    """
    from anchortune.evaluation.plan import plan_eval
    from anchortune.run_folder import OtherRun

    config = job.config
    models = 1 + len(config.arms)
    if trained:
        with contextlib.suppress(OtherRun):  # it will be moved aside
            plan = plan_eval(evaluation(job), timed=timed)
            return _evaluation_part(plan, plan.state.value, models, 1)
    path = str(job.folder.path / "eval.new")
    plan = plan_eval(config.evaluation_of({REFERENCE: reference(config)}, path), timed=timed)
    return _evaluation_part(plan, "new", models, models)


def _evaluation_part(plan: EvalPlan, state: str, models: int, times: int) -> Part:
    cost = plan.estimate
    answers = plan.answers * times
    lines = [line for line in plan.lines() if not line.startswith(("output", "total"))]
    seconds = cost.seconds if cost is not None else None
    return Part(
        "evaluate",
        state,
        [*lines, f"total   {answers} answers of {models} models, {plan.verdicts * times} verdicts"],
        {"models": models, "answers": answers, "verdicts": plan.verdicts * times},
        None if seconds is None else seconds * times,
        cost.memory_bytes if cost is not None else 0,
        cost.disk_bytes * times if cost is not None else 0,
    )


def _free(folder: JobFolder) -> int:
    place = folder.path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
