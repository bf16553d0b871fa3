"""The one line in other trainers, and on more than one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from anchortune.anchor.penalty import bind
from anchortune.training.seam import attach
from tests.tiny import tiny_llama
from tests.training.test_seam import (
    InOrder,
    Rows,
    adapted,
    anchor_for,
    arguments,
    same,
    weights,
)
from tests.warm import together

COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "bf16": False,
    "logging_steps": 1,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("doors") / "llama", dtype=torch.float32, tokenizer=True
    )


def trainer_of(kind: str, folder: Path, out: Path, **options: Any) -> Any:
    common = COMMON | options
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if kind == "sft":
        from trl import SFTConfig, SFTTrainer

        rows = Dataset.from_list([{"prompt": "Hello", "completion": " you there"}] * 8)
        return SFTTrainer(
            adapted(folder),
            args=SFTConfig(str(out), **common),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    if kind == "dpo":
        from trl import DPOConfig, DPOTrainer

        rows = Dataset.from_list([{"prompt": "Hello", "chosen": " yes", "rejected": " no"}] * 8)
        return DPOTrainer(
            adapted(folder),
            args=DPOConfig(str(out), **common),
            train_dataset=rows,
            processing_class=tokenizer,
        )
    from trl import GRPOConfig, GRPOTrainer

    config = GRPOConfig(str(out), **common, num_generations=2, max_completion_length=4)
    return GRPOTrainer(
        adapted(folder),
        reward_funcs=lambda completions, **_: [float(len(set(text))) for text in completions],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "Hello"}] * 8),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("kind", ["sft", "dpo", "grpo"])
def test_trl_trainers_take_the_one_line(folder: Path, tmp_path: Path, kind: str) -> None:
    trainer = trainer_of(kind, folder, tmp_path)
    before = weights(trainer.model)
    attach(trainer, anchor_for(folder), lam=1e4)
    assert type(trainer).__name__.startswith("Asft")
    trainer.train()
    assert trainer._asft.fired == 2
    after = weights(trainer.model)
    assert any(not torch.equal(before[n], after[n]) for n in before if "default" in n)
    logged = [row for row in trainer.state.log_history if "asft/penalty" in row]
    assert len(logged) == 2
    assert logged[-1]["asft/penalty"] > 0


@pytest.mark.parametrize("kind", ["dpo", "grpo"])
def test_trl_trainers_take_the_steps_of_autograd_on_the_penalty(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    """Beside a trainer whose own step is followed by ``lam * penalty()`` through autograd.

    GRPO's completions are sampled from torch's global generator, which the trainer seeds, so equal
    seeds give equal samples as long as the weights are equal.
    """
    lam = 0.3
    found = []
    for way in ("attach", "autograd", "plain"):
        trainer = trainer_of(kind, folder, tmp_path / way, max_steps=3, seed=7)
        anchor = anchor_for(folder)
        if way == "attach":
            attach(trainer, anchor, lam=lam)
        elif way == "autograd":
            penalty = bind(anchor, trainer.model)
            step = trainer.training_step

            def own(*args: Any, step: Any = step, penalty: Any = penalty, **kwargs: Any) -> Any:
                loss = step(*args, **kwargs)
                (lam * penalty()).backward()
                return loss

            trainer.training_step = own
        trainer.train()
        assert trainer.state.global_step == 3
        found.append(weights(trainer.model))
    attached, autograd, plain = found
    assert same(attached, autograd)
    assert not same(attached, plain)


def test_a_step_that_somebody_set_on_the_object_is_followed_by_the_penalty(
    folder: Path, tmp_path: Path
) -> None:
    """As unsloth's token budget does it: two backward passes behind one training_step."""
    found = []
    for split in (False, True):
        trainer = InOrder(adapted(folder), arguments(tmp_path, max_steps=2), train_dataset=Rows())
        if split:
            step, calls = trainer.training_step, []

            def halves(
                model: Any,
                inputs: Any,
                items: Any = None,
                step: Any = step,
                calls: list[int] = calls,
            ) -> Any:
                calls.append(1)
                parts = [{k: v[i : i + 2] for k, v in inputs.items()} for i in (0, 2)]
                return sum(step(model, part, items) for part in parts)

            trainer.training_step = halves
        attach(trainer, anchor_for(folder), lam=0.3)
        trainer.train()
        assert trainer._asft.fired == 2
        found.append(weights(trainer.model))
    assert len(calls) == 2
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-4, atol=1e-5)


def train(folder: Path, out: Path, batch: int) -> None:
    """What one process does, or each of several; the first leaves what came out."""
    out.mkdir(exist_ok=True)
    args = arguments(out, per_device_train_batch_size=batch, ddp_find_unused_parameters=False)
    trainer = InOrder(adapted(folder), args, train_dataset=Rows())
    attach(trainer, anchor_for(folder), operator="subspace", lam=0.3)
    trainer.train()
    if trainer.is_world_process_zero():
        kept = {n: p.contiguous() for n, p in weights(trainer.model).items()}
        norm = torch.tensor([trainer.state.log_history[0]["grad_norm"]])
        world = torch.tensor([trainer.args.world_size])
        save_file(kept | {"grad_norm": norm, "world": world}, out / "w.safetensors")


def test_two_processes_give_the_weights_of_one(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "1", 8)
    together(train, folder, tmp_path / "2", 4, processes=2)
    one, two = (load_file(tmp_path / name / "w.safetensors") for name in ("1", "2"))
    assert int(one.pop("world")) == 1
    assert int(two.pop("world")) == 2
    torch.testing.assert_close(one.pop("grad_norm"), two.pop("grad_norm"), rtol=1e-5, atol=0)
    drift = torch.cat([(one[n] - two[n]).abs().flatten() for n in one])
    assert float(drift.max()) < 2e-3
    assert float(drift.mean()) < 2e-5
