"""A disk that is full or may not be written to: a sentence, no loss, and it goes on with room."""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.resilience.faults import HOWS, Fault, command
from tests.resilience.scenes import SCENES, Scene
from tests.resilience.wholeness import halves, leftovers
from tests.warm import Warm, call_command

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("align", "eval", "sweep")]
MakeScene = Callable[[str], Scene]
FULL = r"No space left on device; free some room there and run the same command again"


@pytest.fixture
def make(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> MakeScene:
    return lambda name: SCENES[name](tmp_path, llama_base, llama_adapter)


def told(process: Warm) -> str:
    """What a command says of an error of the system: code 2, one sentence, no traceback."""
    _, err = process.communicate(500)
    text = err.decode()
    assert process.returncode == 2, text[-3000:]
    assert "Traceback" not in text, text[-3000:]
    lines = [line for line in text.splitlines() if line.startswith("anchortune: ")]
    assert len(lines) == 1, text
    assert text.splitlines()[-1] == lines[0]
    return lines[0]


def with_fault(scene: Scene, fault: Fault) -> Warm:
    return Warm(command, fault, list(scene.words), cwd=scene.root)


def limited(most_bytes: int, words: list[str]) -> None:
    """A command that may write no file longer than so many bytes: the kernel refuses the rest."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    call_command(words)


def test_a_full_disk_is_named_and_nothing_is_lost(make: MakeScene) -> None:
    scene = make("eval")
    count = scene.root / "acts"
    assert with_fault(scene, Fault(scene.root, count=count)).wait(500) == 0
    expected, acts = scene.done(), int(count.read_text())
    scene.clear()
    line = told(with_fault(scene, Fault(scene.root, at=acts // 2, how="torn", full=True)))
    assert str(scene.root / "out") in line
    assert "free some room" in line
    assert halves(scene.root) == []
    assert with_fault(scene, Fault(scene.root)).wait(500) == 0
    assert scene.done() == expected
    assert leftovers(scene.root) == []


def test_a_file_that_grows_too_large_is_named(make: MakeScene) -> None:
    """By the kernel's own limit, so that the libraries that write tensors meet it themselves."""
    scene = make("anchor")
    line = told(Warm(limited, 3000, list(scene.words), cwd=scene.root))
    assert f"{scene.root / 'an.safetensors'}: File too large" in line
    assert not (scene.root / "an.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("place", [0.25, 0.5, 1.0])
def test_a_training_whose_files_grow_too_large(make: MakeScene, place: float) -> None:
    """A file may be a byte smaller than one that it writes: a small, a middling, the largest."""
    scene = make("train")
    assert with_fault(scene, Fault(scene.root)).wait(500) == 0
    expected = scene.done()
    # What the command says goes to files too, which must not be cut.
    written = {file.stat().st_size for file in (scene.root / "out").rglob("*.*")}
    sizes = sorted(size for size in written if size > 4096)
    scene.clear()
    most_bytes = sizes[round(place * (len(sizes) - 1))] - 1
    line = told(Warm(limited, most_bytes, list(scene.words), cwd=scene.root))
    assert str(scene.root / "out") in line
    assert halves(scene.root) == []
    assert with_fault(scene, Fault(scene.root)).wait(500) == 0
    assert scene.done() == expected


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", SCENES)
def test_the_disk_fills_at_a_random_moment(
    name: str, make: MakeScene, record_property: Callable[[str, object], None]
) -> None:
    scene, dice, full = make(name), random.Random(name), 0
    count = scene.root / "acts"
    assert with_fault(scene, Fault(scene.root, count=count)).wait(500) == 0
    expected, acts = scene.done(), int(count.read_text())
    for _ in range(5):
        scene.clear()
        fault = Fault(scene.root, at=dice.randint(1, acts), how=dice.choice(HOWS), full=True)
        process = with_fault(scene, fault)
        if process.wait(500) != 0:  # else what was left to do needed no room
            full += 1
            line = told(process)
            assert str(scene.root) in line, fault
            assert "run the same command again" in line, fault
        assert halves(scene.root) == [], fault
        assert with_fault(scene, Fault(scene.root)).wait(500) == 0, fault
        assert scene.done() == expected, fault
        assert leftovers(scene.root) == [], fault
    record_property("full", full)


def _mounted(place: Path, *options: str) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    place.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    return done.returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of a few blocks."""
    place = tmp_path / "disk"
    if not _mounted(place, "-t", "tmpfs", "-o", "size=96k", "tmpfs"):
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("name", ["anchor", "train"])
def test_a_real_disk_runs_full(
    name: str, small_disk: Path, llama_base: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    root = tmp_path / "inputs"
    root.mkdir()
    scene = SCENES[name](root, llama_base, llama_adapter)
    words = [word.replace(str(root / "an."), str(small_disk / "an.")) for word in scene.words]
    words += ["--set", f"output={small_disk / 'out'}"] if name == "train" else ["--rank", "full"]
    if name == "anchor":
        (small_disk / "ballast").write_bytes(bytes(23 * 4096))
    line = told(Warm(call_command, words, cwd=root))
    assert str(small_disk) in line
    assert "No space left on device; free some room" in line
    assert halves(small_disk) == []


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may be read and not be written to, by root neither."""
    place = tmp_path / "closed"
    place.mkdir()
    if os.geteuid() != 0:
        place.chmod(0o555)
        yield place
        place.chmod(0o755)
        return
    if not _mounted(place, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        pytest.skip("root may write everywhere, and no read-only disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("name", [*("train", "anchor", "run"), *SLOW])
def test_a_place_that_may_not_be_written_to_is_told_before_any_work(
    name: str, closed: Path, llama_base: Path, llama_adapter: Path, tmp_path: Path
) -> None:
    root = tmp_path / "inputs"
    root.mkdir()
    scene = SCENES[name](root, llama_base, llama_adapter)
    words = [word.replace(str(root / "an."), str(closed / "an.")) for word in scene.words]
    if name == "sweep":
        words += ["--set", f"work={closed / 'work'}"]
    elif name != "anchor":
        words += ["--set", f"output={closed / 'out'}"]
    line = told(Warm(call_command, words, cwd=root))
    assert str(closed) in line
    assert "may not be written to" in line or "Read-only" in line or "Permission" in line
