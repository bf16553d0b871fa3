"""A job's folder: its steps' states, and what lies where. No torch here: ``status`` reads it too.

<output>/  job.json  config.yaml  status.json  lock.json  steps/  screen.json  anchor.safetensors
           harmful.safetensors  train/<arm>/  eval/  gate.json  report.html
           adapter/ or rejected/  superseded/  record.json
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from anchortune.errors import JobError
from anchortune.files import why_not_writable, write_json
from anchortune.record import RECORD_FILE
from anchortune.run_folder import is_empty

_MARK = "job.json"
_WITHDRAWN = ".withdrawn."
STATUS_FILE = "status.json"
FORMAT_VERSION = 1
RELEASED = ("adapter", "adapter-on-base", "model")
"""What a training makes, and so what a release consists of."""
Progress = Literal["waiting", "running", "done", "skipped", "failed"]


def digest_of(value: Any) -> str:
    """SHA-256 over plain values, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def count_lines(path: Path) -> int:
    """Whole lines of a file; 0 where there is none."""
    try:
        with path.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    except OSError:
        return 0


def last_step(log: Path) -> int:
    """The step of the last whole line of a training's log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 65536))
            lines = stream.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):
            continue
    return 0


@dataclass(frozen=True)
class StepState:
    """A step that was done: ``steps/<name>.json``.

    Attributes:
        digest: of everything that decides its result.
        outputs: what it made, with SHA-256, and figures of it.
        finished: when, UTC, ISO 8601.
        seconds: it took, in the run that finished it.
    """

    digest: str
    outputs: dict[str, Any]
    finished: str
    seconds: float


@dataclass
class StepStatus:
    """A step in ``status.json``.

    Attributes:
        name: ``screen``, ``anchor``, ``harmful-anchor``, ``train-asft``, ``evaluate``, ``gate``,
            ``report``, ``release``.
        state: how far it is.
        started: when, UTC, ISO 8601.
        seconds: it took; None before its end.
        folder: relative to the job's, where its progress can be read.
        total: of what is counted there: optimizer steps, or answers.
        verdicts: in all, of an evaluation.
        before: of ``total``, done already when it was started or resumed.
    """

    name: str
    state: Progress = "waiting"
    started: str | None = None
    seconds: float | None = None
    folder: str | None = None
    total: int | None = None
    verdicts: int | None = None
    before: int = 0


@dataclass
class JobStatus:
    """``status.json``: rewritten whenever something changes.

    Attributes:
        state: ``running`` until the end; then ``complete``, whatever the gate said, or ``failed``.
        started: of this run of the job, UTC, ISO 8601.
        updated: when this was written.
        steps: in their order.
        error: one sentence, where it failed.
        exit_code: of the command, at the end.
    """

    state: Literal["running", "complete", "failed"]
    started: str
    updated: str
    steps: list[StepStatus] = field(default_factory=list)
    error: str | None = None
    exit_code: int | None = None


class JobFolder:
    """The folder of one job.

    Args:
        path: the folder; made when claimed.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.steps = self.path / "steps"
        self.anchor = self.path / "anchor.safetensors"
        self.harmful = self.path / "harmful.safetensors"
        self.eval = self.path / "eval"
        self.gate = self.path / "gate.json"
        self.report = self.path / "report.html"
        self.rejected = self.path / "rejected"

    def train(self, arm: str) -> Path:
        """The run folder of an arm."""
        return self.path / "train" / arm

    def check(self) -> None:
        """Raises where the folder holds what is no job's, or where no folder can be.

        Raises:
            JobError: it is a file, holds other files, or may not be written to.
        """
        if self.path.exists() and not self.path.is_dir():
            raise JobError(f"output {self.path} is a file; name a folder.")
        if self.path.is_dir() and not is_empty(self.path) and not self.is_job():
            raise JobError(f"output {self.path} holds files that are no job's; name another one.")
        if reason := why_not_writable(self.path / _MARK):
            raise JobError(f"output {self.path} cannot be written: {reason}; name another folder.")

    def is_job(self) -> bool:
        """Whether a job claimed the folder."""
        return (self.path / _MARK).is_file()

    def claim(self) -> None:
        """Marks the folder as a job's."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self.is_job():
            write_json(self.path / _MARK, {"format_version": FORMAT_VERSION})

    def done(self, name: str) -> StepState | None:
        """What is known of a step that was done; None where there is nothing to rely on."""
        try:
            return StepState(**json.loads((self.steps / f"{name}.json").read_text("utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def finish(self, name: str, state: StepState) -> None:
        """Writes that a step is done."""
        write_json(self.steps / f"{name}.json", asdict(state))

    def forget(self, name: str) -> None:
        """Takes back that a step is done, before it is done again."""
        (self.steps / f"{name}.json").unlink(missing_ok=True)

    def set_aside(self, path: Path) -> Path | None:
        """Moves what another state of the job made into ``superseded/``; None: there is nothing.

        What was moved can be deleted by hand at any time: nothing reads it.
        """
        if not path.exists():
            return None
        kept = self.path / "superseded"
        kept.mkdir(exist_ok=True)
        number = 1
        while (place := kept / f"{path.name}-{number}").exists():
            number += 1
        path.rename(place)
        return place

    def withdraw(self) -> bool:
        """Takes a released or rejected adapter away, and the job's record; whether there was one.

        The renames come first, so that no half-deleted adapter is ever seen, and need no room, so
        that a full disk keeps nothing released. The training's own folder still has it.
        """
        (self.path / RECORD_FILE).unlink(missing_ok=True)
        self._clear()
        places = [*(self.path / name for name in RELEASED), self.rejected]
        found = [path for path in places if path.exists()]
        for path in found:
            path.rename(self.path / f"{_WITHDRAWN}{path.name}")
        self._clear()
        return bool(found)

    def _clear(self) -> None:
        """Deletes what was withdrawn, and half-made copies of a run that was killed."""
        half = [f".{name}.*.part" for name in RELEASED]
        for pattern in (f"{_WITHDRAWN}*", *half):
            for rubbish in self.path.glob(pattern):
                shutil.rmtree(rubbish)

    def write_status(self, status: JobStatus) -> None:
        """Writes ``status.json``."""
        write_json(self.path / STATUS_FILE, asdict(status))

    def read_status(self) -> JobStatus | None:
        """What ``status.json`` says; None where there is none.

        Raises:
            JobError: it cannot be read.
        """
        path = self.path / STATUS_FILE
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            steps = [StepStatus(**step) for step in value.pop("steps")]
            return JobStatus(**value, steps=steps)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise JobError(f"{path} cannot be read ({error}).") from None
