"""The runs of a sweep: which there are, which are done, and all that are left worked through.

Several processes, on one machine or many, may work on one sweep: each run is claimed by a lock.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from anchortune.errors import AnchortuneError, CheckpointError, ConfigError, DataError
from anchortune.files import write_text
from anchortune.jobs.folder import digest_of
from anchortune.jobs.sweep_config import DEFENCE, Cell, CellConfig, SweepConfig
from anchortune.jobs.sweep_inputs import (
    Inputs,
    apart,
    check_cell,
    hashed,
    hashes_of,
    named,
    reference_tree,
    run_tree,
    training_tree,
)
from anchortune.jobs.sweep_store import SHORT, Store
from anchortune.report.runs import RunRecord, read_run, run_text

logger = logging.getLogger(__name__)
State = Literal["complete", "failed", "running", "missing"]
_WAIT_S = 1.0


@dataclass(frozen=True)
class Run:
    """One run: a cell at a seed, or a model that is evaluated as it is.

    Attributes:
        kind: ``trained``, ``aligned`` or ``base``.
        labels: of its cell.
        seed: of the run; 0 of a model that is not trained.
        config: of its cell.
        digest: of everything that decides the result.
        training: the digest of its training, which others may share; None without one.
        reference: the digest of the aligned model's evaluation, beside which it stands.
        settings: for the record.
        inputs: SHA-256 by the key that names a file.
    """

    kind: Literal["trained", "aligned", "base"]
    labels: dict[str, str]
    seed: int
    config: CellConfig
    digest: str
    training: str | None
    reference: str
    settings: dict[str, Any]
    inputs: dict[str, str]

    @property
    def file(self) -> str:
        """Name of its record: labels for people, the digest for the rest."""
        rest = [label for axis, label in self.labels.items() if axis != DEFENCE]
        words = [self.labels[DEFENCE], *rest] + ([f"s{self.seed}"] if self.training else [])
        plain = [re.sub(r"[^\w.+-]+", "_", word) for word in words]
        return f"{'-'.join(plain)[:120]}-{self.digest[:SHORT]}.json"

    def line(self) -> str:
        """For people."""
        return line_of(self.labels, self.seed if self.training else None)


def line_of(labels: dict[str, str], seed: int | None) -> str:
    """Labels and seed, for people; a model that is not trained has none."""
    told = ", ".join(f"{axis} {label}" for axis, label in labels.items())
    return told if seed is None else f"{told}, seed {seed}"


class Sweep:
    """A sweep's runs, its records and its work folder.

    Args:
        config: of the sweep.
        only: ``axis -> labels``, to choose some of its runs.

    Raises:
        AnchortuneError: a cell is no valid run, or a file is not there that a chosen run names.
    """

    def __init__(self, config: SweepConfig, only: dict[str, list[str]] | None = None) -> None:
        self.config = config
        self.results = Path(config.results).expanduser()
        self.store = Store(config.work)
        self._inputs = Inputs()
        self._only = only or {}
        #: Lines of runs that were not chosen and name a file that is not here; set by ``every``.
        self.left_out: list[str] = []

    @cached_property
    def runs(self) -> list[Run]:
        """Those that were chosen, in the order in which they are done."""
        return self._chosen(self.every)

    @cached_property
    def every(self) -> list[Run]:
        """All: references first, then seed by seed, so that a whole table is there early.

        Without those that were not chosen and name a file that is not here.
        """
        cells = self.config.cells()
        self._check_only(cells)
        for cell in cells:
            check_cell(cell)
        cells = [apart(cell) for cell in cells]
        runs = self._references(cells)
        for seed in self.config.seeds:
            for cell in cells:
                with self._unless_unasked(cell.labels, seed):
                    runs.append(self._trained(cell, seed))
        by_digest: dict[str, Run] = {}
        for run in runs:
            other = by_digest.setdefault(run.digest, run)
            if other is not run:
                raise ConfigError(
                    f"sweep {self.config.name}: these cells are one and the same run: "
                    f"{other.line()}; {run.line()}. Keep an axis to the cells that it changes, "
                    "with only, or leave some out, with skip."
                )
        return runs

    @contextmanager
    def _unless_unasked(self, labels: dict[str, str], seed: int | None = None) -> Iterator[None]:
        """Lets a file be missing that only a run names which was not chosen."""
        try:
            yield
        except (ConfigError, DataError, CheckpointError):
            if self._asked(labels):
                raise
            self.left_out.append(line_of(labels, seed))

    def _asked(self, labels: dict[str, str]) -> bool:
        return all(labels.get(axis, wanted[0]) in wanted for axis, wanted in self._only.items())

    def _check_only(self, cells: Sequence[Cell]) -> None:
        """Raises where a choice names what the sweep has not."""
        for axis, wanted in self._only.items():
            found = [cell.labels[axis] for cell in cells if axis in cell.labels]
            if not found:
                raise ConfigError(
                    f"--only {axis}: there is no such axis; choose one of the sweep's."
                )
            known = dict.fromkeys([*(self.config.reference if axis == DEFENCE else []), *found])
            for label in wanted:
                if label not in known:
                    raise ConfigError(f"--only {axis}={label}: there is {', '.join(known)}.")

    def _chosen(self, runs: list[Run]) -> list[Run]:
        kept = [run for run in runs if self._asked(run.labels)]
        if not kept:
            raise ConfigError("--only leaves no run; ask for less.")
        return kept

    def _trained(self, cell: Cell, seed: int) -> Run:
        config = cell.config
        tree = run_tree(config, seed)
        training = digest_of(hashed(training_tree(config, seed), self._inputs))
        inputs = hashes_of(tree, self._inputs)
        digest = digest_of([hashed(tree, self._inputs), inputs.get("judge.builtin")])
        reference = self._digest_of_reference(config, "aligned")
        return Run(
            "trained", cell.labels, seed, config, digest, training, reference, named(tree), inputs
        )

    def _digest_of_reference(self, config: CellConfig, which: str) -> str:
        tree = reference_tree(config, which)
        judge = hashes_of(tree, self._inputs).get("judge.builtin")
        return digest_of([which, hashed(tree, self._inputs), judge])

    def _references(self, cells: Sequence[Cell]) -> list[Run]:
        """What is evaluated as it is; of the labels, those that decide it."""
        found: dict[str, Run] = {}
        for which in self.config.reference:
            keys = {"model", "base", "evaluate"} if which == "base" else {"model", "evaluate"}
            axes = [axis.name for axis in self.config.grid if axis.touches(keys)]
            for cell in cells:
                labels: dict[str, str] = {DEFENCE: which}
                labels |= {a: cell.labels[a] for a in axes if a in cell.labels and a != DEFENCE}
                with self._unless_unasked(cell.labels | labels):
                    digest = self._digest_of_reference(cell.config, which)
                    known = found.get(digest)
                    if known is not None:  # what differs between its cells does not decide it
                        labels = {k: v for k, v in labels.items() if known.labels.get(k) == v}
                    aligned = self._digest_of_reference(cell.config, "aligned")
                    found[digest] = self._untrained(which, labels, cell.config, digest, aligned)
        return list(found.values())

    def _untrained(
        self,
        which: Literal["aligned", "base"],
        labels: dict[str, str],
        config: CellConfig,
        digest: str,
        aligned: str,
    ) -> Run:
        tree = reference_tree(config, which)
        inputs = hashes_of(tree, self._inputs)
        return Run(which, labels, 0, config, digest, None, aligned, named(tree), inputs)

    def reference_of(self, run: Run) -> Run:
        """The aligned model's own run beside ``run``, whether the sweep records it or not."""
        labels, digest = {DEFENCE: "aligned"}, run.reference
        return self._untrained("aligned", labels, run.config, digest, digest)

    def digest_of_mix(self, run: Run) -> str:
        """Of the rows that ``run`` trains on."""
        mix = run.config.mix
        tree = None if mix is None else mix.model_dump(mode="json")
        return digest_of([hashed(tree, self._inputs), run.seed])

    def path(self, run: Run) -> Path:
        """Where its record lies, or would."""
        return self.results / run.file

    def record(self, run: Run) -> RunRecord | None:
        """Its record; None where there is none.

        Raises:
            AnchortuneError: the file is no record.
        """
        path = self.path(run)
        return read_run(path) if path.is_file() else None

    def state(self, run: Run) -> State:
        """How far it is."""
        if self.store.is_held("runs", run.digest):
            return "running"
        record = self.record(run)
        return "missing" if record is None else record.state

    def write(self, run: Run, record: RunRecord) -> None:
        """Writes its record, and takes away those of the same cell that it makes stale."""
        write_text(self.path(run), run_text(record))
        for path, old in self._others(run):
            logger.info("%s is stale: its cell was run with %s", path.name, _changed(old, record))
            path.unlink(missing_ok=True)

    def _others(self, run: Run) -> list[tuple[Path, RunRecord]]:
        found = []
        for path in sorted(self.results.glob(f"{run.file[: -SHORT - 5]}*.json")):
            try:
                old = read_run(path)
            except (AnchortuneError, OSError):  # another process may just have taken it away
                continue
            same = (old.sweep, old.labels, old.seed) == (self.config.name, run.labels, run.seed)
            if same and old.digest != run.digest:
                found.append((path, old))
        return found

    def stale(self) -> list[Path]:
        """Records of cells of this sweep made with other settings or other inputs."""
        return [path for run in self.runs for path, _ in self._others(run)]

    def adopt(self) -> None:
        """Gives records of runs whose labels were renamed their new ones; nothing is run anew."""
        lacking = {run.digest: run for run in self.runs if not self.path(run).is_file()}
        for path in sorted(self.results.glob("[!.]*.json")) if lacking else ():
            digits = path.stem.rpartition("-")[2]
            run = next((r for d, r in lacking.items() if d.startswith(digits)), None)
            if run is None or len(digits) != SHORT:
                continue
            old = read_run(path)
            if old.digest != run.digest:
                continue
            update = {"labels": run.labels, "sweep": self.config.name}
            write_text(self.path(run), run_text(old.model_copy(update=update)))
            if old.sweep == self.config.name:
                path.unlink(missing_ok=True)  # another process may do the same

    def counts(self) -> Counter[State]:
        """How many runs are in each state."""
        return Counter(self.state(run) for run in self.runs)

    def failures(self) -> list[tuple[Run, str]]:
        """Runs that failed, and why."""
        return [
            (run, record.error or "")
            for run in self.runs
            if (record := self.record(run)) is not None and record.state == "failed"
        ]


def _changed(old: RunRecord, new: RunRecord) -> str:
    """What differs, in a word."""
    files = [key for key in new.inputs if old.inputs.get(key) != new.inputs[key]]
    if files:
        return f"another {files[0]}"
    keys = [key for key in new.settings if old.settings.get(key) != new.settings[key]]
    return f"another {keys[0]}" if keys else "other settings"


def work_through(
    sweep: Sweep,
    execute: Callable[[Sweep, Run], RunRecord],
    *,
    retry_failed_before: float | None = None,
    told: Callable[[Run, RunRecord], None] | None = None,
    runs: Sequence[Run] | None = None,
) -> None:
    """Does every run that is missing, in order, and waits for those that others are doing.

    A run whose training somebody else is at is put off. Where a worker dies, its run is taken over.

    Args:
        sweep: whose runs.
        execute: does one, and returns its record, of a failure too.
        retry_failed_before: do runs again whose failure was recorded before this time (seconds
            since the epoch); None leaves failures alone.
        told: of every run done here.
        runs: some of the sweep's; None: all.
    """
    left = list(sweep.runs if runs is None else runs)
    while left:
        waiting: list[Run] = []
        moved = False
        for run in left:
            if not _to_do(sweep, run, retry_failed_before):
                continue
            training = run.training
            if training is not None and sweep.store.is_held("train", training):
                waiting.append(run)
                continue
            with sweep.store.claimed("runs", run.digest) as mine:
                if not mine:
                    waiting.append(run)
                    continue
                if not _to_do(sweep, run, retry_failed_before):
                    continue
                record = execute(sweep, run)
                sweep.write(run, record)
                moved = True
            if told is not None:
                told(run, record)
        left = waiting
        if left and not moved:
            time.sleep(_WAIT_S)


def _to_do(sweep: Sweep, run: Run, retry_failed_before: float | None) -> bool:
    record = sweep.record(run)
    if record is None:
        return True
    if record.state == "complete" or retry_failed_before is None:
        return False
    return sweep.path(run).stat().st_mtime < retry_failed_before
