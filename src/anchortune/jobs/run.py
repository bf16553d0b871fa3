"""``anchortune run``: screen → anchors → train → evaluate → gate → report → release.

Every step looks at its inputs by their hashes: what is done already is skipped, what was cut short
goes on, and what changed is done again with all that depends on it.
"""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from anchortune.config_io import dump_yaml
from anchortune.errors import AnchortuneError
from anchortune.evaluation.ask import free_memory
from anchortune.files import sha256_file, write_text
from anchortune.jobs.config import JobConfig
from anchortune.jobs.folder import JobFolder, JobStatus, StepState, StepStatus
from anchortune.jobs.judging import EvaluateStep, GateStep, ReportStep, gate_of
from anchortune.jobs.making import AnchorStep, HarmfulStep, TrainStep
from anchortune.jobs.plan import plan_job
from anchortune.jobs.release import UNGATED, ReleaseStep
from anchortune.jobs.screening import ScreenStep
from anchortune.jobs.step import Job, Ready, Step
from anchortune.lock import locked
from anchortune.record import (
    RECORD_FILE,
    Record,
    now,
    platform_facts,
    read_record,
    versions,
    write_record,
)
from anchortune.untrusted import without_secrets

logger = logging.getLogger(__name__)

#: Steps that take no time, so that a mistake in them may wait until they come.
_CHEAP = {"gate", "report", "release"}


@dataclass(frozen=True)
class JobResult:
    """What came of a job.

    Attributes:
        folder: the job's.
        record: what ``record.json`` holds.
        decision: the gate's; None where the job sets no limits.
        sentence: the gate's, or why there is none.
        exit_code: 0, or the gate's 3 (failed) or 4 (undecided).
        adapter: where the adapter (or the fully trained model) lies.
        released: whether that is where a release picks it up, and not ``rejected/``.
        report: the page to open.
    """

    folder: Path
    record: Record
    decision: Literal["passed", "failed", "undecided"] | None
    sentence: str
    exit_code: int
    adapter: Path
    released: bool
    report: Path

    def lines(self) -> list[str]:
        """For people: the gate's sentence, where the adapter is, and what to open."""
        gate = self.sentence if self.decision is None else f"{self.decision}: {self.sentence}"
        kept = f"{self.adapter.name:<7}" if self.released else "not released, kept at"
        return [f"gate    {gate}", f"{kept} {self.adapter}", f"report  {self.report}"]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "folder": str(self.folder),
            "decision": self.decision,
            "sentence": self.sentence,
            "exit_code": self.exit_code,
            "adapter": str(self.adapter),
            "released": self.released,
            "report": str(self.report),
            "record": self.record.model_dump(mode="json"),
        }


def steps_of(config: JobConfig) -> list[Step]:
    """The steps that a job takes, in their order."""
    steps: list[Step] = []
    if config.screen is not None:
        steps.append(ScreenStep())
    if config.anchored and config.anchor_path is None:
        steps.append(AnchorStep())
    if config.harmful_settings is not None:
        steps.append(HarmfulStep())
    steps += [TrainStep(arm) for arm in config.arms]
    steps.append(EvaluateStep())
    if config.limits is not None:
        steps.append(GateStep())
    return [*steps, ReportStep(), ReleaseStep()]


def run_job(config: JobConfig) -> JobResult:
    """Does the whole job, or what is left of it in its folder.

    Raises:
        JobError: the folder is in use, or holds what is no job's.
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    folder = JobFolder(config.output)
    new = not folder.is_job()
    if new:
        logger.info("checking the whole job")
        plan_job(config)  # a mistake in it leaves no folder behind
    folder.claim()
    with locked(folder.path) as dead:
        if dead is not None:
            logger.info("%s was left by a run that ended early (%s); going on", folder.path, dead)
        steps = steps_of(config)
        status = JobStatus("running", now(), now(), [StepStatus(step.name) for step in steps])
        folder.write_status(status)
        job = Job(config, folder, checked=new)
        if config.limits is None:  # what earlier limits decided is no word on this adapter
            folder.gate.unlink(missing_ok=True)
        try:
            for number, step in enumerate(steps):
                logger.info("[%d/%d] %s", number + 1, len(steps), step.label)
                _take(job, step, status, number)
            record = _record(job)
        except BaseException as error:
            try:
                folder.withdraw()
            finally:
                with contextlib.suppress(OSError):  # a full disk; the error itself is to be seen
                    _failed(folder, status, error)
            raise
        result = _result(job, record)
        status.state, status.updated, status.exit_code = "complete", now(), result.exit_code
        folder.write_status(status)
        return result


def _take(job: Job, step: Step, status: JobStatus, number: int) -> None:
    """One step: skipped where it is done, else run and marked as done."""
    shown, folder = status.steps[number], job.folder
    shown.state, shown.started = "running", now()
    _tell(folder, status)
    ready = step.prepare(job)
    known = folder.done(step.name)
    if ready.outputs is not None:
        logger.info("    done already")
        seconds = known.seconds if known is not None else 0.0
        if known is None or (known.digest, known.outputs) != (ready.digest, ready.outputs):
            known = StepState(ready.digest, ready.outputs, now(), seconds)
            folder.finish(step.name, known)  # cut short between the work and this note of it
        job.states[step.name] = known
        shown.state, shown.seconds = "skipped", seconds
        _tell(folder, status)
        return
    if step.name not in _CHEAP:
        job.check()
    if folder.withdraw():
        logger.info("    the adapter of the run before is taken away until this one is through")
    write_text(folder.path / "config.yaml", dump_yaml(job.config))
    shown.folder, shown.total, shown.verdicts = ready.folder, ready.total, ready.verdicts
    shown.before = ready.before
    _tell(folder, status)
    folder.forget(step.name)
    job.states[step.name] = _work(folder, step, ready)
    shown.state, shown.seconds = "done", job.states[step.name].seconds
    _tell(folder, status)
    free_memory()


def _work(folder: JobFolder, step: Step, ready: Ready) -> StepState:
    started = time.perf_counter()
    outputs = ready.work()
    state = StepState(ready.digest, outputs, now(), round(time.perf_counter() - started, 3))
    folder.finish(step.name, state)
    return state


def _tell(folder: JobFolder, status: JobStatus) -> None:
    status.updated = now()
    folder.write_status(status)


def _failed(folder: JobFolder, status: JobStatus, error: BaseException) -> None:
    for step in status.steps:
        if step.state == "running":
            step.state = "failed"
    bug = not isinstance(error, AnchortuneError | OSError | KeyboardInterrupt)
    text = (
        "stopped by hand" if isinstance(error, KeyboardInterrupt) else without_secrets(str(error))
    )
    status.state = "failed"
    status.error = f"{type(error).__name__}: {text}" if bug else text
    status.exit_code = 1 if bug else getattr(error, "exit_code", AnchortuneError.exit_code)
    if isinstance(error, KeyboardInterrupt):
        status.exit_code = 130  # as shells have it
    _tell(folder, status)


def _record(job: Job) -> Record:
    """The job's record: what is there where nothing was done anew, else written, last of all."""
    folder, states = job.folder, job.states
    if (folder.path / RECORD_FILE).is_file():
        held = read_record(folder.path)
        if held.outputs["steps"] == _hashes(job):
            return held
    write_text(folder.path / "config.yaml", dump_yaml(job.config))
    released = states["release"].outputs
    record = Record(
        kind="job",
        created=now(),
        config=job.config.model_dump(mode="json"),
        seed=job.config.seed,
        inputs=_inputs(job),
        outputs={
            "steps": _hashes(job),
            "release": released,
            "report": states["report"].outputs,
        },
        numbers={},
        timings={f"{name}_s": state.seconds for name, state in states.items()},
        metrics={"decision": released["decision"], "gate": gate_of(job)},
        versions=versions(),
        platform=platform_facts(),
    )
    write_record(folder.path, record)
    return record


def _hashes(job: Job) -> dict[str, Any]:
    return {
        name: {"digest": state.digest, "outputs": state.outputs}
        for name, state in job.states.items()
    }


def _inputs(job: Job) -> dict[str, Any]:
    """What the first main arm was made from, as its own record has it, and what others were."""
    arm = job.config.main[0]
    inputs = dict(read_record(job.folder.train(arm.name)).inputs)
    needs, config = arm.how.needs(), job.config
    if "anchor" in needs and config.anchor_path is None:
        inputs["anchor_built"] = {"sha256": sha256_file(job.folder.anchor)}
    if "harmful_anchor" in needs and config.harmful_path is None:
        inputs["harmful_anchor_made"] = {"sha256": sha256_file(job.folder.harmful)}
    return inputs


def _result(job: Job, record: Record) -> JobResult:
    gate, released = gate_of(job), job.states["release"].outputs
    path = job.folder.path
    return JobResult(
        folder=path,
        record=record,
        decision=gate["decision"] if gate is not None else None,
        sentence=gate["sentence"] if gate is not None else UNGATED,
        exit_code=gate["exit_code"] if gate is not None else 0,
        adapter=path / released["path"],
        released=released["released"],
        report=job.folder.report,
    )
