"""The six commands killed at random moments, once and again: they go on to the same result."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resilience.faults import HOWS, Fault, command
from tests.resilience.scenes import SCENES, Scene
from tests.resilience.wholeness import halves, leftovers
from tests.warm import Warm


def run(scene: Scene, fault: Fault) -> int:
    """How the command ends under a fault."""
    process = Warm(command, fault, list(scene.words), cwd=scene.root)
    _, told = process.communicate(500)
    code = process.wait()
    assert code in (0, -signal.SIGKILL), told.decode()[-3000:]
    assert b"Traceback" not in told, told.decode()[-3000:]
    return code


class Killing:
    """One command, done once without a fault, and then killed as often as is asked."""

    def __init__(self, scene: Scene) -> None:
        self.scene, count = scene, scene.root / "acts"
        started = time.monotonic()
        assert run(scene, Fault(scene.root, count=count)) == 0
        self.seconds = time.monotonic() - started
        self.acts = int(count.read_text())
        self.expected = scene.done()
        assert halves(scene.root) == leftovers(scene.root) == []

    def fault(self, dice: random.Random, by: str) -> Fault:
        """A random moment: by acts of writing, or by the clock."""
        if by == "clock":  # the process starts in no time, and imports nothing
            return Fault(self.scene.root, after_s=dice.uniform(0, self.seconds))
        return Fault(self.scene.root, at=dice.randint(1, self.acts), how=dice.choice(HOWS))

    def chain(self, dice: random.Random, kills: int, by: str) -> int:
        """Kills a new run of the command, goes on, kills again, and lets it end; the kills."""
        self.scene.clear()
        done = 0
        for _ in range(kills):
            fault = self.fault(dice, by)
            done += run(self.scene, fault) == -signal.SIGKILL
            assert halves(self.scene.root) == [], fault
        assert run(self.scene, Fault(self.scene.root)) == 0
        assert self.scene.done() == self.expected
        assert leftovers(self.scene.root) == []
        return done


@pytest.fixture
def killing(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> Callable[[str], Killing]:
    return lambda name: Killing(SCENES[name](tmp_path, llama_base, llama_adapter))


def test_a_job_killed_three_times_ends_the_same(killing: Callable[[str], Killing]) -> None:
    """The whole way in one: anchor, trainings, evaluation, gate, report, release."""
    assert killing("run").chain(random.Random(8), 3, "acts") >= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENES)
def test_killed_at_twenty_random_moments(
    name: str, killing: Callable[[str], Killing], record_property: Any
) -> None:
    held, dice, kills, chain = killing(name), random.Random(name), 0, 0
    while kills < 20:
        kills += held.chain(dice, 2 + chain % 3, "clock" if chain % 3 == 2 else "acts")
        chain += 1
    record_property("kills", kills)
    record_property("acts", held.acts)
