"""Many runs in one process: open files, threads, tensors and objects stay level."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.resilience.soak import Held, soak

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


def level(found: list[Held], first: int, objects_a_run: float) -> None:
    """Holds the last of ``found`` against the one after ``first`` runs, when all is imported."""
    before, after = found[first], found[-1]
    runs = after.runs - before.runs
    assert after.files <= before.files, (before, after)
    assert after.threads <= before.threads, (before, after)
    assert after.tensors <= before.tensors, (before, after)
    assert after.objects - before.objects <= objects_a_run * runs, (before, after)


@needs_proc
def test_six_runs_hold_no_more_than_three(tmp_path: Path) -> None:
    level(soak(tmp_path, 6), 3, objects_a_run=100)


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_hundred_runs_hold_no_more_than_twenty(tmp_path: Path) -> None:
    found = soak(tmp_path, 200)
    level(found, 20, objects_a_run=20)
    grown = found[-1].resident_bytes - found[20].resident_bytes
    assert grown < 64 * 2**20, (found[20], found[-1])
