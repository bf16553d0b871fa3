"""Checkpoints of which a killed trainer, or somebody, left only a part."""

from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anchortune.errors import TrainingError
from anchortune.training.folder import RunFolder
from anchortune.training.loop import Journal
from tests.resilience.scenes import SCENES
from tests.warm import Warm, run_command

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Of a training with whole checkpoints after steps 2, 10 and 12."""
    found = RunFolder(tmp_path, {"a": 1})
    for step in (2, 10, 12):
        place = found.checkpoints / f"checkpoint-{step}"
        place.mkdir(parents=True)
        save_file({"a": torch.zeros(4)}, place / FILES[0])
        for name in FILES[1:]:
            torch.save({"step": step}, place / name)
        (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    return found


def last(folder: RunFolder) -> str | None:
    found = folder.last_checkpoint()
    return None if found is None else found.name


@pytest.mark.parametrize("name", FILES)
def test_one_that_lacks_a_file_is_passed_over_and_told(
    folder: RunFolder, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert last(folder) == "checkpoint-12"
    (folder.checkpoints / "checkpoint-12" / name).unlink()
    with caplog.at_level(logging.WARNING):
        assert last(folder) == "checkpoint-10"
    what = "weights" if "model" in name else name
    assert f"checkpoint-12 is passed over: it has no {what}" in caplog.text


@pytest.mark.parametrize("state", ["", '{"global_step": 1', "[]", "{}", '{"global_step": 11}'])
def test_one_whose_state_is_not_whole_is_passed_over(folder: RunFolder, state: str) -> None:
    (folder.checkpoints / "checkpoint-12" / "trainer_state.json").write_text(state)
    assert last(folder) == "checkpoint-10"


def test_what_is_no_checkpoint_is_none(folder: RunFolder) -> None:
    for step in (2, 10, 12):
        (folder.checkpoints / f"checkpoint-{step}" / "trainer_state.json").unlink()
    (folder.checkpoints / "checkpoint-x").mkdir()
    assert last(folder) is None


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_cut_short_is_named(folder: RunFolder, name: str) -> None:
    whole = folder.checkpoints / "checkpoint-12"
    folder.check_checkpoint(whole)
    (whole / ".terms_state.safetensors.k3y.part.safetensors").write_bytes(b"half")  # a killed one's
    folder.check_checkpoint(whole)
    data = (whole / name).read_bytes()
    (whole / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(TrainingError, match=f"{name} is cut short; delete .*checkpoint-12 to go"):
        folder.check_checkpoint(whole)


def test_the_log_is_trimmed_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {})
    lines = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 5)]
    folder.log.write_text("\n".join(lines) + '\n{"step": 5, "lo')
    folder.trim_log(3)
    assert folder.log.read_text() == "\n".join(lines[:3]) + "\n"


@pytest.mark.parametrize(("evaluated", "kept"), [(True, 1), (False, 0)])
def test_the_evaluation_at_the_end_is_not_logged_twice(
    tmp_path: Path, evaluated: bool, kept: int
) -> None:
    """Killed after it and before the record: it is made again."""
    folder = RunFolder(tmp_path, {})
    lines = [{"step": 3, "eval_loss": 1.0}, {"step": 4, "loss": 1.0}]
    lines += [{"step": 4, "eval_loss": 1.0}] * (1 + evaluated)
    folder.log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder.trim_log(4, evaluated=evaluated)
    found = [json.loads(line) for line in folder.log.read_text().splitlines()]
    assert found == lines[: 2 + kept]


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_training_goes_on_from_the_checkpoint_before(
    name: str, tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    scene = SCENES["train"](tmp_path, llama_base, llama_adapter)
    assert run_command(*scene.words, cwd=tmp_path).returncode == 0
    expected = scene.done()
    scene.clear()
    process = Warm(train_and_die, list(scene.words), 6, cwd=tmp_path)
    process.communicate(500)
    assert process.returncode == -signal.SIGKILL
    (tmp_path / "out" / "checkpoints" / "checkpoint-4" / name).unlink()
    done = run_command(*scene.words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "checkpoint-4 is passed over" in done.stderr
    assert "from step 2" in done.stderr
    assert scene.done() == expected


def train_and_die(words: list[str], logs: int) -> None:
    """Ends by SIGKILL once so many lines were logged."""
    import os

    from tests.warm import call_command

    whole, done = Journal.on_log, 0

    def counted(*given: object, **named: object) -> None:
        nonlocal done
        whole(*given, **named)  # type: ignore[arg-type]
        done += 1
        if done == logs:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.on_log = counted  # type: ignore[assignment, method-assign]
    call_command(words)
