"""What a step of a job is, and what all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from anchortune.config import TrainConfig
from anchortune.data.screened import Screened
from anchortune.jobs.config import Arm, JobConfig
from anchortune.jobs.folder import JobFolder, StepState


@dataclass
class Job:
    """A job while it runs: what its steps hand on to each other.

    Attributes:
        config: resolved.
        folder: where everything lies.
        screened: what a judge found in the data; None where it was not asked, or not yet.
        states: of the steps that are done, by name.
        checked: whether all of it was checked before the work.
    """

    config: JobConfig
    folder: JobFolder
    screened: Screened | None = None
    states: dict[str, StepState] = field(default_factory=dict)
    checked: bool = False

    def check(self) -> None:
        """Checks the whole job, once in a run, before a step works or moves an old result aside.

        So hours of training do not end at a mistake in what comes after, and it costs no result.

        Raises:
            AnchortuneError: of the kind of the first thing that cannot be used.
        """
        from anchortune.jobs.plan import plan_steps  # which is made of the steps

        if not self.checked:
            plan_steps(self)
            self.checked = True

    @property
    def omitting(self) -> Screened | None:
        """What the screening changes in training: nothing where no row is left out."""
        if self.screened is None or not any(self.screened.omitted()):
            return None
        return self.screened

    @property
    def anchor(self) -> str:
        """The place of the anchor; nothing need be there where no method needs one."""
        return self.config.anchor_path or str(self.folder.anchor)

    @property
    def harmful(self) -> str:
        """The place of the harmful anchor; likewise."""
        return self.config.harmful_path or str(self.folder.harmful)

    def training_of(self, arm: Arm, output: Path) -> TrainConfig:
        """The config of one training, which is to lie in ``output``."""
        return self.config.training_of(arm, self.anchor, str(output), self.harmful)


@dataclass
class Ready:
    """A step whose inputs have been looked at.

    Attributes:
        digest: of everything that decides its result.
        outputs: of the step as it stands, where it is done already; None where it is to be run.
        work: runs it, and returns its outputs.
        folder: relative to the job's, where its progress can be read.
        total: of what is counted there.
        verdicts: in all, of an evaluation.
        before: of ``total``, done already.
    """

    digest: str
    outputs: dict[str, Any] | None
    work: Callable[[], dict[str, Any]]
    folder: str | None = None
    total: int | None = None
    verdicts: int | None = None
    before: int = 0


@dataclass
class Part:
    """What one step of the job does and takes.

    Attributes:
        name: of the step.
        state: ``new``, ``unfinished`` or ``complete``.
        lines: for people.
        facts: the same as plain values.
        seconds: about; None where it was not timed or cannot be.
        memory_bytes: about, at the most.
        disk_bytes: at most about, in the job's folder.
    """

    name: str
    state: str
    lines: list[str]
    facts: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    memory_bytes: int = 0
    disk_bytes: int = 0

    @property
    def open(self) -> bool:
        """Whether it is still to be done."""
        return self.state != "complete"


class Step(Protocol):
    """One step of a job.

    Attributes:
        name: of its state and in ``status.json``.
        label: for people.
    """

    name: str
    label: str

    def prepare(self, job: Job) -> Ready:
        """Looks at the inputs and at what lies there; moves aside what another state left.

        Raises:
            AnchortuneError: an input cannot be used.
        """
        ...
