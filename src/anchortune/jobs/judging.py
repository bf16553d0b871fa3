"""The steps that look at what was made: evaluation, gate and report."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from anchortune._version import __version__
from anchortune.errors import JobError
from anchortune.evaluation.config import CandidateSection, EvalConfig
from anchortune.evaluation.outputs import OUTPUTS_FILE
from anchortune.files import atomic_path, sha256_file, write_json
from anchortune.jobs.carry import carry
from anchortune.jobs.config import REFERENCE, Arm, JobConfig
from anchortune.jobs.folder import count_lines, digest_of
from anchortune.jobs.screening import sentence
from anchortune.jobs.step import Job, Ready
from anchortune.record import RECORD_FILE, read_record
from anchortune.report.gate import EXIT_CODES, Decision, GateResult, decide

logger = logging.getLogger(__name__)


def reference(config: JobConfig) -> CandidateSection:
    """The model that training starts from, as a candidate."""
    model = config.model
    return CandidateSection(
        path=model.path,
        revision=model.revision,
        adapter=[] if model.adapter is None else [model.adapter],
        trust_remote_code=model.trust_remote_code,
    )


def candidate(config: JobConfig, arm: Arm, run: Path) -> CandidateSection:
    """What an arm's training made, as a candidate.

    Args:
        config: of the job.
        arm: which.
        run: its run folder.
    """
    start = reference(config)
    if arm.how.starts_from_base and config.aligned_from is not None:
        base = config.aligned_from
        start = start.model_copy(
            update={"path": base.path, "revision": base.revision, "adapter": []}
        )
    many = config.seeds is not None
    named = {
        "arm": arm.method if many else None,
        "run": str(run),
        "system": read_record(run).outputs.get("system_prompt"),
    }
    if config.lora is None:
        return start.model_copy(
            update={"path": str(run / "model"), "revision": None, "adapter": [], **named}
        )
    return start.model_copy(update={"adapter": [*start.adapter, str(run / "adapter")], **named})


def evaluation(job: Job) -> EvalConfig:
    """The evaluation of the reference and of every arm."""
    config = job.config
    models = {REFERENCE: reference(config)}
    for arm in config.arms:
        models[arm.name] = candidate(config, arm, job.folder.train(arm.name))
    return config.evaluation_of(models, str(job.folder.eval))


class EvaluateStep:
    """Asks and judges the reference and every arm."""

    name = "evaluate"
    label = "evaluate: the same prompts to every model"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        from anchortune.evaluation.evaluate import run_eval
        from anchortune.evaluation.plan import plan_eval
        from anchortune.run_folder import OtherRun, State

        config, path = evaluation(job), job.folder.eval
        try:
            plan = plan_eval(config)
        except OtherRun as error:
            job.check()
            job.folder.withdraw()
            old = job.folder.set_aside(path)
            logger.info("%s; the old one is now %s", error, old)
            plan = plan_eval(config)
            plan.folder.claim()
            held = carry(old, path, plan.folder.identity) if old is not None else 0
            logger.info("%d of %d answers hold for this one too", held, plan.answers)
            plan.state = plan.folder.state()

        def work() -> dict[str, Any]:
            run_eval(plan)
            return {"record_sha256": sha256_file(path / RECORD_FILE)}

        outputs = None
        if plan.state is State.COMPLETE:
            plan.folder.tidy()
            outputs = {"record_sha256": sha256_file(path / RECORD_FILE)}
            state = job.folder.done(self.name)
            known = state is not None and state.digest == plan.folder.digest
            if known and state is not None and state.outputs != outputs:
                raise JobError(
                    f"{path / RECORD_FILE} was changed since it was written; delete {path} to "
                    "evaluate again."
                )
        return Ready(
            digest=plan.folder.digest,
            outputs=outputs,
            work=work,
            folder=path.name,
            total=plan.answers,
            verdicts=plan.verdicts,
            before=count_lines(path / OUTPUTS_FILE),
        )


class GateStep:
    """Decides on every main arm."""

    name = "gate"
    label = "gate: the limits against the intervals"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        limits = job.config.limits
        if limits is None:
            raise JobError("there is no gate without limits; give some.")
        digest = digest_of(
            {
                "evaluation": job.states["evaluate"].outputs["record_sha256"],
                "limits": limits.given(),
                "models": [arm.name for arm in job.config.main],
                "version": __version__,
            }
        )
        state, path = job.folder.done(self.name), job.folder.gate
        outputs = None
        if state is not None and state.digest == digest and path.is_file():
            outputs = state.outputs
            if sha256_file(path) != outputs["sha256"]:
                raise JobError(f"{path} was changed since it was written; delete it.")
        return Ready(digest, outputs, lambda: self._decide(job))

    def _decide(self, job: Job) -> dict[str, Any]:
        results = decisions(job)
        decision = worst([result.decision for result in results])
        path = job.folder.gate
        write_json(
            path,
            {
                "decision": decision,
                "exit_code": EXIT_CODES[decision],
                "sentence": " ".join(result.sentence() for result in results),
                "models": [result.to_json() for result in results],
            },
        )
        for result in results:
            logger.info("%s", result.sentence())
        return {"path": path.name, "sha256": sha256_file(path), "decision": decision}


def decisions(job: Job) -> list[GateResult]:
    """The gate's result on each main arm, the released one first; none without limits."""
    limits = job.config.limits
    if limits is None:
        return []
    record = read_record(job.folder.eval)
    return [decide(record, limits, model=arm.name) for arm in job.config.main]


def worst(found: list[Decision]) -> Decision:
    """One seed that fails, fails them all; one that cannot be told leaves all open."""
    for decision in ("failed", "undecided"):
        if decision in found:
            return "failed" if decision == "failed" else "undecided"
    return "passed"


class ReportStep:
    """Writes the page to open."""

    name = "report"
    label = "report: one page"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        digest = digest_of(
            {
                "evaluation": job.states["evaluate"].outputs["record_sha256"],
                "gate": job.states["gate"].outputs if "gate" in job.states else None,
                "screen": job.states["screen"].outputs if "screen" in job.states else None,
                "title": title(job),
                "version": __version__,
            }
        )
        state, path = job.folder.done(self.name), job.folder.report
        done = state is not None and state.digest == digest and path.is_file()
        return Ready(digest, state.outputs if done and state else None, lambda: self._write(job))

    def _write(self, job: Job) -> dict[str, Any]:
        from anchortune.report.page import write_page

        results = decisions(job)
        notes = [sentence(job.states["screen"].outputs)] if "screen" in job.states else []
        made = write_page(job.folder.eval, title=title(job), gate=results, notes=notes)
        with atomic_path(job.folder.report) as temporary:
            shutil.copyfile(made, temporary)
        return {"path": job.folder.report.name, "sha256": sha256_file(job.folder.report)}


def title(job: Job) -> str:
    """The job in a few words: its folder's name, how it trained, and what."""
    name = job.folder.path.resolve().name
    return f"{name}: {job.config.method.name} on {Path(job.config.model.path).name}"


def gate_of(job: Job) -> dict[str, Any] | None:
    """What ``gate.json`` says; None without a gate."""
    if job.config.limits is None:
        return None
    found: dict[str, Any] = json.loads(job.folder.gate.read_text(encoding="utf-8"))
    return found
