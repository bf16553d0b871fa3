"""The one line in other trainers, and on more than one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer

from anchortune.anchor.penalty import bind
from anchortune.training.seam import attach
from tests.tiny import tiny_llama
from tests.training.test_seam import adapted, anchor_for, same, weights

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


RUN = """
import sys
from pathlib import Path
import torch
from tests.training.test_seam import InOrder, Rows, adapted, anchor_for, arguments
from anchortune.training.seam import attach
folder, out, batch = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
args = arguments(out, per_device_train_batch_size=batch, ddp_find_unused_parameters=False)
trainer = InOrder(adapted(folder), args, train_dataset=Rows())
attach(trainer, anchor_for(folder), operator="subspace", lam=0.3)
trainer.train()
if trainer.is_world_process_zero():
    from safetensors.torch import save_file
    kept = {n: p.detach().contiguous() for n, p in trainer.model.named_parameters() if p.requires_grad}
    norm = torch.tensor([trainer.state.log_history[0]["grad_norm"]])
    save_file(kept | {"grad_norm": norm, "world": torch.tensor([trainer.args.world_size])}, out / "w.safetensors")
"""  # noqa: E501


def test_two_processes_give_the_weights_of_one(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "run.py"
    script.write_text(RUN)
    root = Path(__file__).parents[2]
    found = []
    for processes, batch in ((1, 8), (2, 4)):
        out = tmp_path / str(processes)
        out.mkdir()
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command = [*launch, f"--nproc-per-node={processes}", str(script)]
        done = subprocess.run(
            [*command, str(folder), str(out), str(batch)],
            cwd=root,
            env={**_environment(), "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(load_file(out / "w.safetensors"))
    one, two = found
    assert int(one.pop("world")) == 1
    assert int(two.pop("world")) == 2
    torch.testing.assert_close(one.pop("grad_norm"), two.pop("grad_norm"), rtol=1e-5, atol=0)
    drift = torch.cat([(one[n] - two[n]).abs().flatten() for n in one])
    assert float(drift.max()) < 2e-3
    assert float(drift.mean()) < 2e-5


def _environment() -> dict[str, str]:
    import os

    return dict(os.environ)
