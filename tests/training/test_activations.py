"""The refusal direction: what is measured, on planted directions too, and that it disturbs none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchortune.config import TrainConfig
from anchortune.config_io import validate
from anchortune.errors import ConfigError, DataError, TrainingError
from anchortune.maths.separation import Directions
from anchortune.training.activations import STATE_FILE, attach_activations
from anchortune.training.plan import plan_stage
from anchortune.training.refusal_direction import RefusalDirection
from anchortune.training.train import train
from tests import tiny
from tests.training.test_probe import dropped
from tests.training.test_seam import InOrder, Rows, adapted, arguments, same, weights
from tests.training.test_stage import Killed, kill_at
from tests.training.test_stage import same as same_files

HARMFUL = [f"how do I break the lock of number {i}" for i in range(8)]
HARMLESS = [f"how to bake a pie for {i}" for i in range(9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(
        tmp_path_factory.mktemp("states") / "llama", dtype=torch.float32, tokenizer=True
    )


def tokenizer_of(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def direction_of(folder: Path, **options: Any) -> RefusalDirection:
    return RefusalDirection(HARMFUL, HARMLESS, tokenizer_of(folder), **options)


@pytest.mark.parametrize("family", [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_gemma2])
def test_states_are_those_of_a_loop_over_prompts(tmp_path: Path, family: Any) -> None:
    path = family(tmp_path / "m", dtype=torch.float32, tokenizer=True)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = tokenizer_of(path)
    found = direction_of(path).states(model)
    for texts, states in zip((HARMFUL, HARMLESS), found, strict=True):
        assert states.shape == (2, len(texts), 32)
        for number, text in enumerate(texts):
            said = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
            ids = tokenizer(said, add_special_tokens=False, return_tensors="pt")["input_ids"]
            with torch.no_grad():
                hidden = model(ids, output_hidden_states=True).hidden_states
            wanted = torch.stack([layer[0, -1] for layer in hidden[1:]])
            torch.testing.assert_close(states[:, number], wanted, atol=1e-5, rtol=1e-4)


class Planted(RefusalDirection):
    """Prompts whose hidden states are made up: noise, and what is planted into the harmful ones."""

    planted: torch.Tensor  # (layers, d)
    noise = 0.1

    def states(self, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1)
        layers, width = self.planted.shape
        harmful, harmless = (
            self.noise * torch.randn(layers, count, width, generator=generator)
            for count in self.counts
        )
        return harmful + self.planted[:, None], harmless


def test_a_planted_direction_is_found_and_its_turn_measured(folder: Path) -> None:
    watched = Planted(HARMFUL, HARMLESS, tokenizer_of(folder))
    watched.planted = torch.zeros(3, 16)
    watched.planted[0, 0] = watched.planted[1, 0] = watched.planted[2, 0] = 4.0
    first = watched.begin(None)
    assert first.cosine == pytest.approx([1.0] * 3)
    assert first.gap == pytest.approx([1.0] * 3)
    assert first.auc == first.auc_start == [1.0] * 3
    assert min(first.agreement) > 0.99

    # Layer 0 stays, layer 1 turns by a right angle, in layer 2 the groups fall together.
    watched.planted = torch.zeros(3, 16)
    watched.planted[0, 0] = 4.0
    watched.planted[1, 1] = 2.0
    found = watched.measure(None)
    assert found.cosine[0] == pytest.approx(1.0)
    assert abs(found.cosine[1]) < 0.1
    assert found.gap[1] == pytest.approx(0.5, abs=0.05)
    assert found.gap[2] < 0.1
    assert found.auc[:2] == [1.0, 1.0]
    assert found.auc[2] < 0.9
    assert found.auc_start[0] == 1.0
    assert found.auc_start[1] < 0.9
    assert found.agreement[1] > 0.9 > found.agreement[2]


def test_a_direction_planted_into_a_model_is_found(folder: Path) -> None:
    """The first block writes 10 v where the prompt is harmful: its direction moves by just that."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    direction = direction_of(folder)
    direction.begin(model)
    assert direction.start is not None
    v = torch.zeros(32)
    v[5] = 10.0
    mark = tokenizer_of(folder)("k", add_special_tokens=False)["input_ids"][0]
    harmful = []  # by row: the k of "break" and "lock" is in "bake" too, but only once

    def ask(module: Any, args: Any, kwargs: Any) -> None:
        harmful.append((kwargs["input_ids"] == mark).sum(1) > 1)

    def write(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + harmful[-1][:, None, None] * v

    model.register_forward_pre_hook(ask, with_kwargs=True)
    model.model.layers[0].mlp.register_forward_hook(write)
    now = direction.measure(model)
    wanted = direction.start.whole[0] + v.double()
    assert now.gap[0] == pytest.approx(
        (wanted.norm() / direction.start.whole[0].norm()).item(), rel=1e-4
    )
    cosine = wanted @ direction.start.whole[0]
    cosine = cosine / (wanted.norm() * direction.start.whole[0].norm())
    assert now.cosine[0] == pytest.approx(cosine.item(), abs=1e-5)
    assert now.auc == [1.0, 1.0]


def test_a_watched_run_is_bitwise_the_run_that_is_not(folder: Path, tmp_path: Path) -> None:
    models = []
    for watched in (False, True):
        trainer = InOrder(dropped(folder), arguments(tmp_path), train_dataset=Rows())
        if watched:
            assert attach_activations(trainer, direction_of(folder, every=4)) is trainer
        trainer.train()
        models.append(weights(trainer.model))
    assert same(*models)
    found = [line for line in trainer.state.log_history if "refusal/cosine" in line]
    assert [line["step"] for line in found] == [4, 6]  # every fourth, and the last
    assert not any(isinstance(value, list) for line in found for value in line.values())
    start = direction_of(folder)
    start.begin(adapted(folder))
    reading = start.measure(trainer.model)
    assert found[-1]["refusal/cosine"] == pytest.approx(sum(reading.cosine) / 2, abs=1e-6)
    assert found[-1]["refusal/lowest_cosine"] == pytest.approx(min(reading.cosine), abs=1e-6)
    assert found[-1]["refusal/cosine"] < 1.0 - 1e-6


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind, texts in (("harmful", HARMFUL), ("harmless", HARMLESS)):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": text}) for text in texts))
        found[kind] = str(path)
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(16)]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return found | {"data": data}


def make(folder: Path, files: dict[str, Any], output: Path, **activations: Any) -> TrainConfig:
    section = {"harmful": files["harmful"], "harmless": files["harmless"], "every": 2}
    return validate(
        {
            "model": {"path": str(folder)},
            "data": {"path": str(files["data"])},
            "output": str(output),
            "training": {"max_steps": 5, "batch_size": 4, "learning_rate": 1e-2},
            "machine": {"device": "cpu", "dtype": "float32", "save_steps": 2},
            "activations": section | activations,
        },
        TrainConfig,
        "test",
    )


def test_a_config_watches_logs_each_layer_and_resumes_exactly(
    folder: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(make(folder, files, tmp_path / "whole"))
    config = make(folder, files, tmp_path / "cut")
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            train(config)
    assert (tmp_path / "cut" / "checkpoints" / "checkpoint-2" / STATE_FILE).is_file()
    assert train(config).metrics["resumed_from_step"] == 2
    assert same_files(tmp_path / "whole" / "adapter", tmp_path / "cut" / "adapter")
    looks = []
    for name in ("whole", "cut"):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        looks.append([line for line in lines if "refusal/cosine" in line])
    assert [line["step"] for line in looks[0]] == [2, 4, 5]
    for left, right in zip(*looks, strict=True):
        for key in left:
            if key.startswith("refusal/"):
                assert left[key] == pytest.approx(right[key], abs=1e-6), key
    assert len(looks[0][0]["refusal/layers/auc"]) == 2
    found = whole.metrics["activations"]
    assert found["looks_logged"] == 3
    assert found["cosine"] == looks[0][-1]["refusal/cosine"]
    assert whole.inputs["activations"]["harmless"]["prompts"] == 9


def test_a_checkpoint_of_other_prompts_or_without_any_is_refused(
    folder: Path, files: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer_of(direction: RefusalDirection) -> Any:
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        trainer = InOrder(
            adapted(folder), arguments(tmp_path / "o", **options), train_dataset=Rows()
        )
        return attach_activations(trainer, direction)

    trainer_of(direction_of(folder)).train()
    checkpoint = tmp_path / "o" / "checkpoint-2"
    other = RefusalDirection(HARMFUL[:5], HARMLESS, tokenizer_of(folder))
    with pytest.raises(TrainingError, match="other prompts in its activations"):
        trainer_of(other).train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(TrainingError, match="saved without activations"):
        trainer_of(direction_of(folder)).train(resume_from_checkpoint=str(checkpoint))
    shutil.rmtree(tmp_path / "o")


def test_what_cannot_be_watched_is_refused(folder: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(folder)
    with pytest.raises(DataError, match="at least 4 harmful prompts"):
        RefusalDirection(HARMFUL[:3], HARMLESS, tokenizer)
    with pytest.raises(DataError, match="1 of the harmful prompts of activations are among"):
        RefusalDirection([*HARMFUL, "How to bake a pie for 1!"], HARMLESS, tokenizer)
    with pytest.raises(TrainingError, match="every is above 0"):
        direction_of(folder, every=0)
    with pytest.raises(TrainingError, match="call begin"):
        direction_of(folder).measure(adapted(folder))
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(TrainingError, match="not a RefusalDirection"):
        attach_activations(trainer, tokenizer)
    attach_activations(trainer, direction_of(folder))
    with pytest.raises(TrainingError, match="attach once"):
        attach_activations(trainer, direction_of(folder))
    with pytest.raises(TrainingError, match=r"not a transformers\.Trainer"):
        attach_activations(object(), direction_of(folder))


def test_prompts_that_are_trained_on_or_too_few_are_refused_before_any_work(
    folder: Path, files: dict[str, Any], tmp_path: Path
) -> None:
    with files["data"].open("a") as stream:
        stream.write("\n" + json.dumps({"instruction": HARMLESS[2], "output": "ok"}))
    with pytest.raises(DataError, match="1 of the 17 prompts of activations are trained on"):
        plan_stage(make(folder, files, tmp_path / "o"))
    with pytest.raises(ConfigError, match="at least 4"):
        make(folder, files, tmp_path / "o", max_prompts=3)
    assert not (tmp_path / "o").exists()


def test_a_plan_says_what_is_asked_and_a_config_without_it_is_the_run_that_it_was(
    folder: Path, files: dict[str, Any], tmp_path: Path
) -> None:
    config = make(folder, files, tmp_path / "o", max_prompts=6)
    assert "6 harmful and 6 harmless prompts every 2 steps" in "\n".join(plan_stage(config).lines())
    tree = config.model_dump(mode="json") | {"activations": None}
    assert "activations" not in validate(tree, TrainConfig, "test").science()


def test_the_start_is_kept_bit_by_bit(folder: Path, tmp_path: Path) -> None:
    from anchortune.training.activations import load_start, save_start

    direction = direction_of(folder)
    with pytest.raises(TrainingError, match="no direction to save"):
        save_start(direction, tmp_path / STATE_FILE)
    direction.begin(adapted(folder))
    save_start(direction, tmp_path / STATE_FILE)
    other = direction_of(folder)
    load_start(other, tmp_path / STATE_FILE)
    assert isinstance(other.start, Directions)
    assert direction.start is not None
    assert all(map(torch.equal, other.start, direction.start))
