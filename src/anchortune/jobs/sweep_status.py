"""Where sweeps are, read from a work folder or a folder of records. No torch here.

A sweep that is run lists its runs in ``<work>/sweeps/<name>.json``: with that, locks and records
tell the rest. Of a folder of records alone, what is missing is not known.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anchortune.errors import JobError
from anchortune.evaluation.outputs import OUTPUTS_FILE
from anchortune.files import write_json
from anchortune.jobs.folder import count_lines, last_step
from anchortune.jobs.sweep_store import SHORT
from anchortune.lock import holder_of, is_alive
from anchortune.progress import duration

if TYPE_CHECKING:
    from anchortune.jobs.sweep import Sweep

FOLDER = "sweeps"
FORMAT = 1


@dataclass(frozen=True)
class Working:
    """A run that somebody is at.

    Attributes:
        line: its labels and seed.
        doing: ``preparing``, ``training`` or ``answering``.
        done: optimizer steps, or answers of all models together; None of ``preparing``.
        total: optimizer steps, where the config states them.
        holder: the process.
    """

    line: str
    doing: Literal["preparing", "training", "answering"]
    done: int | None
    total: int | None
    holder: str

    def text(self) -> str:
        """For people."""
        unit = {"preparing": "", "training": "step", "answering": "answers"}[self.doing]
        told = f", {unit} {self.done}" if unit == "step" else f", {self.done} {unit}"
        of = f" of {self.total}" if self.total is not None and unit == "step" else ""
        return f"{self.line}: {self.doing}{told if unit else ''}{of} ({self.holder})"


@dataclass(frozen=True)
class SweepStatus:
    """A sweep as it stands.

    Attributes:
        name: of the sweep.
        results: its folder of records.
        total: runs in all; None where no list of them was found.
        counts: ``complete``, ``failed``, ``running`` and ``missing`` runs.
        working: the runs that somebody is at.
        failures: (labels and seed, why) of each that failed.
        left_s: seconds until the end at the pace so far; None where that cannot be told.
    """

    name: str
    results: str
    total: int | None
    counts: dict[str, int]
    working: list[Working] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_s: float | None = None

    def lines(self) -> list[str]:
        """For people: how many runs are in which state, then those that run or failed."""
        told = ", ".join(f"{count} {state}" for state, count in self.counts.items() if count)
        runs = "records" if self.total is None else f"{self.total} runs"
        left = f"; about {duration(self.left_s)} left" if self.left_s is not None else ""
        return [
            f"{self.name}: {runs}: {told or 'none yet'}{left}; {self.results}",
            *(f"  running   {one.text()}" for one in self.working),
            *(f"  failed    {line}: {error}" for line, error in self.failures),
        ]


@dataclass(frozen=True)
class SweepsReport:
    """The sweeps of a folder.

    Attributes:
        folder: a work folder, or one of records.
        sweeps: by name.
    """

    folder: str
    sweeps: list[SweepStatus]

    @property
    def state(self) -> Literal["running", "complete", "stopped"]:
        """``running`` while anybody is at a run; ``stopped`` where runs are missing then."""
        if any(one.counts["running"] for one in self.sweeps):
            return "running"
        missing = any(one.counts["missing"] for one in self.sweeps)
        return "stopped" if missing else "complete"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"folder": self.folder, "state": self.state} | {
            "sweeps": [asdict(one) for one in self.sweeps]
        }

    def lines(self) -> list[str]:
        """For people, sweep by sweep."""
        told = [line for one in self.sweeps for line in one.lines()]
        if all(one.total is None for one in self.sweeps):
            told.append(
                "These are records alone; what is missing, `anchortune sweep FILE --status` tells, "
                "or the sweep's work folder here."
            )
        return told


def list_runs(sweep: Sweep) -> None:
    """Writes which runs a sweep has, for whoever looks at its work folder."""
    work = sweep.store.path
    runs = [
        {
            "digest": run.digest,
            "training": run.training,
            "file": run.file,
            "line": run.line(),
            "steps": run.config.training.max_steps if run.training else None,
        }
        for run in sweep.every
    ]
    place = work / FOLDER / f"{sweep.config.name}.json"
    # What names a file that is not here stays as it was listed where the file was.
    here = {run["digest"] for run in runs}
    before = {run["line"]: run for run in _listed(place) if run.get("digest") not in here}
    runs += [before[line] for line in sweep.left_out if line in before]
    told = {"format": FORMAT, "sweep": sweep.config.name}
    told["left_out"] = sum(line not in before for line in sweep.left_out)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, told | {"results": os.path.relpath(sweep.results, work), "runs": runs})


def _listed(place: Path) -> list[dict[str, Any]]:
    """The runs of a list; none where there is no such list."""
    try:
        found = json.loads(place.read_text(encoding="utf-8"))["runs"]
        return [run for run in found if isinstance(run.get("line"), str)]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def read_sweeps(folder: Path) -> SweepsReport | None:
    """The sweeps of a work folder or of a folder of records; None where it is neither.

    Raises:
        JobError: a list of runs that cannot be read, or a work folder without one.
    """
    lists = sorted((folder / FOLDER).glob("[!.]*.json"))
    if lists:
        return SweepsReport(str(folder), [_of_list(folder, path) for path in lists])
    if any((folder / "locks").glob("runs-*")):
        raise JobError(
            f"{folder} is a work folder from before sweeps listed their runs there: ask "
            "`anchortune sweep FILE --status`, or run the sweep."
        )
    by_name: dict[str, list[dict[str, Any]]] = {}
    for record in _records(folder):
        by_name.setdefault(record["sweep"], []).append(record)
    if not by_name:
        return None
    return SweepsReport(
        str(folder), [_of_records(name, folder, found) for name, found in sorted(by_name.items())]
    )


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    """The records in a folder; other files are passed over."""
    for path in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else ():
        record = _record(path)
        if record is not None:
            yield record


def _record(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = ("sweep", "digest", "state", "labels", "seed", "timings")
    return found if isinstance(found, dict) and all(key in found for key in wanted) else None


def _line(record: dict[str, Any]) -> str:
    told = ", ".join(f"{axis} {label}" for axis, label in record["labels"].items())
    return f"{told}, seed {record['seed']}"


def _of_records(name: str, folder: Path, records: list[dict[str, Any]]) -> SweepStatus:
    states = Counter(record["state"] for record in records)
    counts = {state: states[state] for state in ("complete", "failed", "running", "missing")}
    failures = [(_line(r), r.get("error") or "") for r in records if r["state"] == "failed"]
    return SweepStatus(name, str(folder), None, counts, failures=failures)


def _of_list(work: Path, path: Path) -> SweepStatus:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        if listed["format"] != FORMAT:
            raise ValueError(f"format {listed['format']}")
        name, results = str(listed["sweep"]), Path(os.path.normpath(work / listed["results"]))
        runs = [(dict(run), str(run["digest"]), str(run["line"])) for run in listed["runs"]]
        left_out = int(listed.get("left_out", 0))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise JobError(
            f"{path} is no list of a sweep's runs ({error}); delete it, and run the sweep."
        ) from None
    counts = dict.fromkeys(("complete", "failed", "running", "missing"), 0)
    working: list[Working] = []
    failures: list[tuple[str, str]] = []
    took: list[float] = []
    for run, digest, line in runs:
        holder = _living(work / "locks" / f"runs-{digest[:SHORT]}")
        record = None if holder is not None else _record(results / str(run["file"]))
        if holder is not None:
            working.append(_working(work, run, digest, line, holder))
        elif record is not None and record["state"] == "failed":
            failures.append((line, record.get("error") or ""))
        elif record is not None and run["training"]:
            took.append(float(record["timings"].get("all_s", 0.0)))
        state = "running" if holder is not None else "missing"
        counts[record["state"] if record is not None else state] += 1
    counts["missing"] += left_out
    left = None
    if working and took:
        left = sum(took) / len(took) * (counts["missing"] + len(working)) / len(working)
    total = len(runs) + left_out
    return SweepStatus(name, str(results), total, counts, working, failures, left)


def _living(lock: Path) -> str | None:
    """The process that holds a lock and lives."""
    try:
        holder = holder_of(lock)
    except JobError:
        return None
    return str(holder) if holder is not None and is_alive(holder, lock) else None


def _working(work: Path, run: dict[str, Any], digest: str, line: str, holder: str) -> Working:
    outputs = work / "runs" / digest[:SHORT] / "eval" / OUTPUTS_FILE
    if outputs.is_file():
        return Working(line, "answering", count_lines(outputs), None, holder)
    log = work / "train" / str(run["training"])[:SHORT] / "log.jsonl"
    if run["training"] and log.is_file():
        return Working(line, "training", last_step(log), run["steps"], holder)
    return Working(line, "preparing", None, None, holder)
