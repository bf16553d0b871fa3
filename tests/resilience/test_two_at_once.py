"""Two processes at one output: the second is told who is there, and takes nothing away."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anchortune.errors import JobError, TrainingError
from anchortune.lock import locked, refuse_if_held
from anchortune.run_folder import OtherRun
from anchortune.training.folder import RunFolder, State
from tests.resilience.scenes import SCENES, Scene
from tests.resilience.wholeness import leftovers
from tests.warm import Warm, run_command

MakeScene = Callable[[str], Scene]
#: What each command holds while it works.
HELD = {"train": "out", "align": "out", "anchor": "an.safetensors", "eval": "out", "run": "job"}

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("align", "run")]


@pytest.fixture
def make(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> MakeScene:
    return lambda name: SCENES[name](tmp_path, llama_base, llama_adapter)


def hold(place: str, go: str) -> None:
    """Holds a place until a file is there."""
    with locked(Path(place)):
        Path(go + ".held").touch()
        while not Path(go).exists():
            time.sleep(0.02)


@pytest.mark.parametrize("name", ["train", "anchor", "eval", *SLOW])
def test_the_second_is_told_who_is_there(name: str, make: MakeScene) -> None:
    scene = make(name)
    place, go = scene.root / HELD[name], scene.root / "go"
    if name != "anchor":
        place.mkdir()
    first = Warm(hold, str(place), str(go))
    try:
        while not Path(f"{go}.held").exists():
            assert first.poll() is None
            time.sleep(0.02)
        second = run_command(*scene.words, cwd=scene.root)
    finally:
        go.touch()
    assert first.wait(60) == 0
    assert second.returncode == 2, second.stderr
    said = second.stderr.splitlines()[-1]
    assert f"{place} is in use (process {first.pid} on " in said
    assert "wait for it, or name another output." in said
    assert "Traceback" not in second.stderr
    assert not place.is_file()
    assert leftovers(scene.root) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*HELD, "sweep"])
def test_two_started_together_do_it_once(name: str, make: MakeScene) -> None:
    scene = make(name)
    assert run_command(*scene.words, cwd=scene.root).returncode == 0
    expected = scene.done()
    for _ in range(3):
        scene.clear()
        both = [run_together(scene) for _ in range(2)]
        ends = []
        for process in both:
            _, told = process.communicate(500)
            ends.append(process.returncode)
            text = told.decode()
            assert process.returncode in (0, 2), text[-3000:]
            assert "Traceback" not in text, text[-3000:]
            assert (process.returncode == 2) == ("is in use (process" in text), text[-3000:]
        assert 0 in ends
        assert scene.done() == expected
        assert leftovers(scene.root) == []


def run_together(scene: Scene) -> Warm:
    from tests.warm import call_command

    return Warm(call_command, list(scene.words), cwd=scene.root)


def test_a_folder_is_held_by_one_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"a": 1})
    with folder.held() as state:
        assert state is State.NEW
        assert folder.state() is State.UNFINISHED  # its own process may look
        with pytest.raises(JobError, match="is in use"):
            folder.held().__enter__()
    assert folder.state() is State.UNFINISHED
    assert leftovers(tmp_path) == []
    with pytest.raises(OtherRun, match="holds another run"):
        RunFolder(tmp_path / "run", {"a": 2}).held().__enter__()
    assert leftovers(tmp_path) == []  # not even a lock is put into another's folder


def test_other_files_are_not_claimed(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    with pytest.raises(TrainingError, match="holds files that are not a run's"):
        RunFolder(tmp_path / "run", {"a": 1}).held().__enter__()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine.txt"]


def test_what_a_process_left_that_was_killed_at_the_very_end_is_taken_away(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", {"a": 1})
    (folder.checkpoints / "checkpoint-2").mkdir(parents=True)
    (folder.path / ".checkpoints.k3y.part").mkdir()
    folder.tidy(folder.checkpoints)
    assert folder.checkpoints.is_dir()  # nobody was killed
    (folder.path / "lock.json").write_text('{"pid": 1, "host": "elsewhere", "started": ""}')
    os.utime(folder.path / "lock.json", (0, 0))
    folder.tidy(folder.checkpoints)
    assert list(folder.path.iterdir()) == []


def test_what_may_not_be_taken_away_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    (tmp_path / "lock.json").write_text('{"pid": 1, "host": "elsewhere", "started": ""}')
    os.utime(tmp_path / "lock.json", (0, 0))
    monkeypatch.setattr("anchortune.lock.write_json", refused)
    RunFolder(tmp_path, {"a": 1}).tidy()


def test_a_killed_claim_leaves_a_folder_that_can_be_claimed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".identity.json.k3y.part.json").write_text('{"a"')
    (run / "lock.json").write_text('{"pid": 999999999, "host": "elsewhere", "started": ""}')
    os.utime(run / "lock.json", (0, 0))
    folder = RunFolder(run, {"a": 1})
    assert folder.state() is State.NEW
    with folder.held():
        pass
    assert [path.name for path in run.iterdir()] == ["identity.json"]
    refuse_if_held(run)
