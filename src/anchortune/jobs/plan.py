"""A job checked in full before any work, with what each step will take."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anchortune.errors import JobError
from anchortune.jobs.config import JobConfig
from anchortune.jobs.folder import JobFolder
from anchortune.jobs.parts import (
    StandIns,
    part_of,
    plan_anchor,
    plan_arm,
    plan_evaluation,
    plan_harmful_anchor,
    plan_release,
)
from anchortune.jobs.step import Job, Part
from anchortune.lock import refuse_if_held
from anchortune.progress import duration
from anchortune.report.gate import Limits

if TYPE_CHECKING:
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
    refuse_if_held(folder.path)
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
    waiting = StandIns()
    if config.anchored and config.anchor_path is None:
        part, waiting.aligned = plan_anchor(job, timed)
        parts.append(part)
    if config.harmful_settings is not None:
        part, waiting.harmful = plan_harmful_anchor(job, timed)
        parts.append(part)
    kinds = {arm.method: arm for arm in reversed(config.arms)}
    plans: dict[str, Plan] = {}
    for method, arm in kinds.items():  # one is timed, for the penalty's share is small
        plans[method] = plan_arm(job, arm, waiting, timed and not plans)
    timed_plan = next(iter(plans.values()))
    seconds = {name: _seconds(plan, timed_plan) for name, plan in plans.items()}
    parts += [part_of(job, arm, plans[arm.method], seconds[arm.method]) for arm in config.arms]
    trained = not any(part.open for part in parts)
    parts.append(plan_evaluation(job, trained, timed))
    parts.append(plan_release(job, plans[config.method.name], parts[-1].state))
    plan = JobPlan(config, parts, _free(folder))
    if plan.disk_bytes > plan.free_bytes:
        raise JobError(
            f"output {folder.path} needs about {plan.disk_bytes / 2**30:.1f} GiB and "
            f"{plan.free_bytes / 2**30:.1f} GiB are free there; name a folder on another disk."
        )
    return plan


def _seconds(plan: Plan, timed: Plan) -> float | None:
    """What a training takes by the one that was timed: as many steps, or more."""
    seconds = timed.estimate.seconds
    return None if seconds is None else seconds * plan.steps / timed.steps


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
        "min_coherence": (bool(asked.harm), "a prompt set in evaluate.harm"),
        "min_accuracy": (accuracy, "a task with right answers in evaluate.tasks"),
        "max_accuracy": (accuracy, "a task with right answers in evaluate.tasks"),
        "max_over_refusal": (refusals, "the task xstest, or a benign set in evaluate.harm"),
    }
    for limit in given:
        for start, (there, what) in wants.items():
            if limit.startswith(start) and not there:
                raise JobError(f"limits.{limit} needs {what}; add it, or drop the limit.")


def _free(folder: JobFolder) -> int:
    place = folder.path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
