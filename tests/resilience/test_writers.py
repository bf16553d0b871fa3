"""Every writer killed at every one of its acts: what is there is the old or the new, never half."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from anchortune.files import explained
from tests.resilience.faults import HOWS, Fault, faulty
from tests.resilience.wholeness import leftovers
from tests.resilience.writers import WRITERS, Writer
from tests.warm import Warm

#: Of the kills of one writer, so many in every run of the tests; all of them in `make full`.
SAMPLE = 4


def forked(writer: Writer, place: Path, fault: Fault) -> int:
    """How ``writer`` ends under a fault in a process of its own; 3: by an error of the system."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            with faulty(fault):
                writer.write(place)
            code = 0
        except OSError as error:
            (place.parent / "said").write_text(explained(error))
            code = 3
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def again(base: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(base, place)


def check(name: str, root: Path, sample: int | None, full: bool) -> dict[str, Any]:
    """What was tried on one writer, killed (or its disk full) at its acts, and what was found."""
    writer, place, base = WRITERS[name], root / "place", root / "base"
    base.mkdir(parents=True)
    writer.before(base)
    again(base, place)
    old = writer.read(place)
    count, said = root / "count", root / "said"
    assert forked(writer, place, Fault(place, count=count)) == 0
    acts, new = int(count.read_text()), writer.read(place)
    problems, ended = [], 0
    faults = [Fault(place, at, how, full=full) for at in range(1, acts + 1) for how in HOWS]
    if sample is not None:
        faults = random.Random(f"{name} {full}").sample(faults, min(sample, len(faults)))
    for fault in faults:
        again(base, place)
        code = forked(writer, place, fault)
        ended += code in (-signal.SIGKILL, 3)
        told = f"{fault.at} {fault.how}"
        try:
            seen = writer.read(place)
            if not writer.between(seen, old, new):
                problems.append(f"{told}: a reader sees {seen!r}"[:500])
            if code == 1 or (code == 0 and seen != new):
                problems.append(f"{told}: ended with {code}, and {seen!r}"[:500])
            if code == 3 and str(place) not in said.read_text():
                problems.append(f"{told}: {said.read_text()}")
            writer.write(place)
            if writer.read(place) != new:
                problems.append(f"{told}: then another result")
            problems += [f"{told}: left {one}" for one in leftovers(place)]
        except Exception as error:
            problems.append(f"{told}: {type(error).__name__}: {error}"[:500])
    return {"acts": acts, "tried": len(faults), "ended": ended, "problems": problems}


def check_all(names: list[str], root: str, sample: int | None, full: bool) -> None:
    """For a process without threads, which can be forked."""
    found = {name: check(name, Path(root) / name, sample, full) for name in names}
    (Path(root) / "found.json").write_text(json.dumps(found))


def checked(
    names: list[str], root: Path, sample: int | None = None, *, full: bool = False
) -> dict[str, dict[str, Any]]:
    process = Warm(check_all, names, str(root), sample, full)
    _, told = process.communicate(500)
    assert process.returncode == 0, told.decode()
    found: dict[str, dict[str, Any]] = json.loads((root / "found.json").read_text())
    return found


def problems(found: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    return {name: one["problems"] for name, one in found.items() if one["problems"]}


def test_a_killed_writer_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    found = checked(list(WRITERS), tmp_path, SAMPLE)
    assert problems(found) == {}
    assert all(one["ended"] == one["tried"] for one in found.values())


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WRITERS)
def test_killed_at_every_act(name: str, tmp_path: Path, record_property: Any) -> None:
    found = checked([name], tmp_path)
    record_property("kills", found[name]["ended"])
    assert problems(found) == {}
    assert found[name]["ended"] == found[name]["tried"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_at_every_act(name: str, tmp_path: Path, record_property: Any) -> None:
    """The error names the place; what was there stays; with room again, it is done."""
    found = checked([name], tmp_path, full=True)
    record_property("full", found[name]["ended"])
    assert problems(found) == {}
