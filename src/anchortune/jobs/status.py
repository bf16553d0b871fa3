"""``anchortune status``: where a job is, read from its folder by another process. No torch here.

Of sweeps it is ``sweep_status`` that reads.
"""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anchortune.errors import JobError
from anchortune.evaluation.outputs import OUTPUTS_FILE
from anchortune.jobs.folder import JobFolder, JobStatus, StepStatus, count_lines, last_step
from anchortune.jobs.sweep_status import SweepsReport, read_sweeps
from anchortune.lock import Holder, holder_of, is_alive
from anchortune.progress import duration
from anchortune.record import RECORD_FILE

State = Literal["running", "dead", "complete", "failed"]
_VERDICTS = "verdicts.jsonl"


@dataclass(frozen=True)
class StepReport:
    """A step as it stands.

    Attributes:
        name: of the step.
        state: ``waiting``, ``running``, ``done``, ``skipped`` (done in an earlier run), ``failed``
            or ``dead`` (its process is gone).
        seconds: it took, or has taken so far.
        unit: what is counted: ``steps`` or ``answers``; None where nothing is.
        done: of ``total``.
        total: in all.
        verdicts: (given, in all) of an evaluation.
        left_s: seconds until its end at the pace so far (of an evaluation: until all answers are
            there, for judging has another pace); None where that cannot be told.
    """

    name: str
    state: str
    seconds: float | None
    unit: str | None = None
    done: int | None = None
    total: int | None = None
    verdicts: tuple[int, int] | None = None
    left_s: float | None = None


@dataclass(frozen=True)
class Report:
    """A job as it stands.

    Attributes:
        folder: the job's.
        state: ``running``; ``dead``: the process that ran it is gone, running it again goes on;
            ``complete``: all steps are through, whatever the gate said; ``failed``.
        started: of this run of the job, UTC, ISO 8601.
        elapsed_s: since then, until now or until it ended.
        holder: the process that runs it, or ran it.
        steps: in their order.
        error: one sentence, where it failed.
        exit_code: of the command; None while it runs.
        decision: the gate's, where there was one.
    """

    folder: str
    state: State
    started: str
    elapsed_s: float
    holder: str | None
    steps: list[StepReport]
    error: str | None
    exit_code: int | None
    decision: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: the job, then its steps."""
        head = {
            "running": f"running for {duration(self.elapsed_s)} ({self.holder})",
            "dead": f"dead: {self.holder} is gone; run the job again and it goes on",
            "complete": f"complete after {duration(self.elapsed_s)}",
            "failed": f"failed after {duration(self.elapsed_s)}: {self.error}",
        }[self.state]
        if self.decision is not None:
            head += f"; gate: {self.decision}"
        width = max(len(step.name) for step in self.steps)
        return [
            f"{self.folder}: {head}",
            *(f"  {step.name:<{width}}  {_line(step)}".rstrip() for step in self.steps),
        ]


def _line(step: StepReport) -> str:
    parts = [step.state]
    if step.state in {"running", "dead", "failed"} and step.total is not None:
        parts.append(f"{step.done} of {step.total} {step.unit}")
        if step.verdicts is not None and step.verdicts[0]:
            parts.append("{} of {} verdicts".format(*step.verdicts))
    if step.seconds is not None:
        parts.append(duration(step.seconds))
    if step.left_s is not None:
        until = " to generate" if step.unit == "answers" else ""
        parts.append(f"about {duration(step.left_s)} left{until}")
    return ", ".join(parts)


def read_any(path: str | Path) -> Report | SweepsReport:
    """Where the job in a folder is, or where the sweeps are whose work or records it holds.

    Raises:
        JobError: it is no such folder, or one of its files cannot be read.
    """
    if not JobFolder(path).is_job():
        found = read_sweeps(Path(path).expanduser())
        if found is not None:
            return found
    return read_status(path)


def read_status(path: str | Path) -> Report:
    """Where the job in a folder is.

    Raises:
        JobError: no job's folder, or one of its files cannot be read.
    """
    folder = JobFolder(path)
    status = folder.read_status() if folder.is_job() else None
    if status is None:
        raise JobError(
            f"{path} is no job's folder; name the output of a job that `anchortune run` was given, "
            "or the work or results of a sweep."
        )
    holder = holder_of(folder.path)
    state = _state(status, holder, folder.path)
    ended = _now() if state == "running" else _time(status.updated)
    return Report(
        folder=str(path),
        state=state,
        started=status.started,
        elapsed_s=max(0.0, (ended - _time(status.started)).total_seconds()),
        holder=None if holder is None else str(holder),
        steps=[_step(step, state, folder) for step in status.steps],
        error=status.error,
        exit_code=status.exit_code,
        decision=_decision(folder) if state == "complete" else None,
    )


def _state(status: JobStatus, holder: Holder | None, folder: Path) -> State:
    if holder is not None:
        # A holder that has written its last status is about to let go of the folder.
        alive = is_alive(holder, folder)
        return "running" if alive and status.state == "running" else _ended(status)
    return _ended(status)


def _ended(status: JobStatus) -> State:
    return "dead" if status.state == "running" else status.state


def _step(step: StepStatus, job: State, folder: JobFolder) -> StepReport:
    state = "dead" if step.state == "running" and job == "dead" else step.state
    report = StepReport(step.name, state, step.seconds)
    running = state == "running"
    elapsed = None
    if running and step.started is not None:
        elapsed = max(0.0, (_now() - _time(step.started)).total_seconds())
        report = replace(report, seconds=elapsed)
    if step.folder is None or step.total is None:
        return report
    place = folder.path / step.folder
    if step.verdicts is None:
        done, unit, verdicts = last_step(place / "log.jsonl"), "steps", None
    else:
        done, unit = count_lines(place / OUTPUTS_FILE), "answers"
        verdicts = (min(count_lines(place / _VERDICTS), step.verdicts), step.verdicts)
    if step.state in {"done", "skipped"} or (place / RECORD_FILE).is_file():
        done = step.total
    done = min(done, step.total)
    new = done - step.before
    left = None
    if elapsed is not None and new > 0 and done < step.total:
        left = elapsed / new * (step.total - done)
    return replace(report, unit=unit, done=done, total=step.total, verdicts=verdicts, left_s=left)


def _decision(folder: JobFolder) -> str | None:
    done = folder.done("release")
    return done.outputs.get("decision") if done is not None else None


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.fromisoformat(text)
