"""A file that is there when a command is planned and gone when it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.resilience.scenes import SCENES, Scene
from tests.warm import Warm, call_command, run_command

Gone = Callable[[], None]


def _away(path: str) -> Gone:
    """Moves a file out of the way, once."""

    def move() -> None:
        if Path(path).exists():
            Path(path).rename(path + ".away")

    return move


def _before(place: Any, name: str, gone: Gone) -> None:
    """Has a file vanish before a function is called."""
    real = getattr(place, name)

    def first(*given: Any, **named: Any) -> Any:
        gone()
        return real(*given, **named)

    setattr(place, name, first)


def vanishing(words: list[str], when: str, path: str) -> None:
    """A command, under which a file vanishes at a moment."""
    from anchortune.jobs import sweep_run
    from anchortune.jobs.folder import JobFolder
    from anchortune.progress import Progress
    from anchortune.run_folder import RunFolder

    places: dict[str, tuple[Any, str]] = {
        "planned": (RunFolder, "claim"),
        "module": (Progress, "__call__"),
        "step": (JobFolder, "finish"),
        "run": (sweep_run, "execute"),
    }
    _before(*places[when], _away(path))
    call_command(words)


@pytest.fixture
def make(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> Callable[[str], Scene]:
    """Scenes on copies of the checkpoints, which may be broken."""
    import shutil

    base, adapter = tmp_path / "base", tmp_path / "lora"
    shutil.copytree(llama_base, base)
    shutil.copytree(llama_adapter, adapter)
    return lambda name: SCENES[name](tmp_path, base, adapter)


#: Command, when, what.
CASES = [
    ("anchor", "module", "lora/adapter_model.safetensors"),
    ("train", "planned", "base/*-00002-*.safetensors"),
    pytest.param("train", "planned", "lora/adapter_model.safetensors", marks=pytest.mark.slow),
    pytest.param("eval", "planned", "base/*-00002-*.safetensors", marks=pytest.mark.slow),
    pytest.param("eval", "planned", "lora/adapter_model.safetensors", marks=pytest.mark.slow),
    pytest.param("run", "step", "task.jsonl", marks=pytest.mark.slow),
    pytest.param("run", "step", "base/*-00002-*.safetensors", marks=pytest.mark.slow),
    pytest.param("run", "step", "job/anchor.safetensors", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "when", "pattern"), CASES)
def test_it_is_named_and_back_again_the_work_is_done(
    name: str, when: str, pattern: str, make: Callable[[str], Scene], tmp_path: Path
) -> None:
    scene = make(name)
    found = sorted(tmp_path.glob(pattern))
    path = found[0] if found else tmp_path / pattern
    process = Warm(vanishing, list(scene.words), when, str(path), cwd=tmp_path)
    _, err = process.communicate(300)
    text = err.decode()
    assert process.returncode == 2, text[-3000:]
    assert "Traceback" not in text
    said = text.splitlines()[-1]
    assert said.startswith("anchortune: ")
    assert path.name in said, said
    path.with_name(path.name + ".away").rename(path)
    done = run_command(*scene.words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    scene.done()


@pytest.mark.slow
def test_a_run_of_a_sweep_fails_alone_and_is_done_again(
    make: Callable[[str], Scene], tmp_path: Path
) -> None:
    scene = make("sweep")
    assert run_command(*scene.words, cwd=tmp_path).returncode == 0
    expected = scene.done()
    scene.clear()
    path = tmp_path / "task.jsonl"
    process = Warm(vanishing, list(scene.words), "run", str(path), cwd=tmp_path)
    _, err = process.communicate(300)
    assert process.returncode == 3, err.decode()[-3000:]
    assert "Traceback" not in err.decode()
    assert "task.jsonl" in err.decode()
    path.with_name(path.name + ".away").rename(path)
    done = run_command(*scene.words, "--retry-failed", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert scene.done() == expected
