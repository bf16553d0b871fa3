"""The record of one run of a sweep: what was set, and every verdict by item, in one JSON file.

Tables and plots are made from these files alone. Verdicts are kept by item, so that two runs which
answered the same prompts can be compared in pairs; neither prompt nor answer is in them, nor any
path of the machine that ran it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from anchortune.errors import AnchortuneError
from anchortune.sections import Section

FORMAT: Literal[1] = 1

Measure = Literal["harm", "refusal", "accuracy", "over_refusal", "coherence", "win_rate"]


class Outcome(Section):
    """One measure on one set of prompts.

    Attributes:
        measure: which; of ``harm`` and ``over_refusal`` less is better.
        set: label of the prompt set or task.
        judge: who judged; None where an answer is held against a target.
        items: by item id: 1 (harmful, refused, right, over-refused, coherent, won), 0, or None
            where it could not be scored; of a win rate also ½, for a tie.
    """

    measure: Measure
    set: str
    judge: str | None = None
    items: dict[str, Literal[0, 1] | Annotated[float, Field(gt=0, lt=1)] | None]

    @property
    def scored(self) -> list[int | float]:
        """The verdicts that there are."""
        return [value for value in self.items.values() if value is not None]

    @property
    def unscored(self) -> int:
        """Items without a verdict."""
        return len(self.items) - len(self.scored)


class RunRecord(Section):
    """One cell of a sweep at one seed.

    Attributes:
        format: of this file.
        sweep: name of the sweep that ran it first.
        digest: of everything that decides the result, seed included; the file is named by it.
        labels: axis -> label of this cell, e.g. ``{"defence": "asft", "task": "sst2"}``; without
            the seed.
        seed: of the run.
        state: a failed run stays on record as failed.
        error: one sentence, where it failed.
        settings: resolved config of training and evaluation, with names in place of paths.
        inputs: name -> SHA-256 of every file that was read.
        outcomes: what was measured; empty where it failed.
        numbers: other figures: losses, the update's energies, ``asft/*`` of the last step.
        timings: seconds by stage.
        commit: of the code, with ``-dirty`` where the tree was not clean; None outside of git.
        versions: of the packages.
        platform: machine, device and dtype.
    """

    format: Literal[1] = FORMAT
    sweep: str
    digest: str
    labels: dict[str, str]
    seed: int
    state: Literal["complete", "failed"]
    error: str | None = None
    settings: dict[str, Any]
    inputs: dict[str, str]
    outcomes: list[Outcome] = Field(default_factory=list)
    numbers: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    platform: dict[str, Any] = Field(default_factory=dict)


def read_run(path: Path) -> RunRecord:
    """The run in a file.

    Raises:
        AnchortuneError: it is no such record.
    """
    try:
        return RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        reason = f"{place}: {first['msg'].lower()}"
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise AnchortuneError(
        f"{path} is no record of a run, or a damaged one ({reason}): name what `anchortune sweep` "
        "wrote; a damaged record is made again by its sweep once it is deleted."
    )


def run_text(run: RunRecord) -> str:
    """The file's content: JSON, sorted, so that two equal runs give equal files."""
    return json.dumps(run.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"
