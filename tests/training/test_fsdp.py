"""A trainer on shards (FSDP2) takes the steps of one on one device, and its checkpoints resume.

accelerate turns FSDP on for GPUs only. Its state is set here as it would be there, so that what
shards, clips, saves and loads is accelerate's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import pytest
import torch
from safetensors.torch import load_file, save_file

from anchortune.errors import TrainingError
from anchortune.training.mixins import reads_shards, refuse_forgetful
from anchortune.training.seam import STATE_FILE, attach
from tests.tiny import tiny_llama
from tests.training.test_seam import InOrder, Rows, adapted, anchor_for, arguments
from tests.warm import shards_on_a_cpu, together

STEPS = 4
READS_SHARDS = reads_shards()
OPTIONS: dict[str, Any] = {"lam": "auto", "off_budget": 0.3, "lam_inside": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("fsdp") / "llama", dtype=torch.float32, tokenizer=True
    )


def sharding(trainer: Any, version: int = 2, **options: Any) -> Any:
    """The trainer, as if it had been launched with FSDP on GPUs."""
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    state = trainer.accelerator.state
    state.distributed_type = DistributedType.FSDP
    state.fsdp_plugin = FullyShardedDataParallelPlugin(
        **{
            "fsdp_version": version,
            "auto_wrap_policy": "transformer_based_wrap",
            "transformer_cls_names_to_wrap": ["LlamaDecoderLayer"],
            "cpu_ram_efficient_loading": False,
            **options,
        }
    )
    trainer.is_fsdp_enabled = True
    return trainer


def train(folder: Path, out: Path, batch: int, way: str) -> None:
    """What one process does, or each of several; the first leaves what came out."""
    torch.set_num_threads(1)
    args = arguments(
        out,
        per_device_train_batch_size=batch,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=2,
        max_grad_norm=0.5,
    )
    trainer: Any = InOrder(adapted(folder), args, train_dataset=Rows())
    if way != "one":
        sharding(trainer, cpu_ram_efficient_loading=way == "resumed")
    attach(trainer, anchor_for(folder), **OPTIONS)
    trainer.train(resume_from_checkpoint=str(out / "checkpoint-2") if way == "resumed" else None)
    kept = {}
    for name, parameter in trainer.model.named_parameters():
        if way != "one":
            assert type(parameter).__name__ == "DTensor"
        if parameter.requires_grad:
            whole = parameter.full_tensor() if way != "one" else parameter
            kept[name] = whole.detach().contiguous()
    if trainer.is_world_process_zero():
        logs = [row for row in trainer.state.log_history if "loss" in row]
        (out / f"{way}.json").write_text(json.dumps(logs))
        trainer.model.save_pretrained(
            out / "adapter", state_dict=kept
        )  # as docs/trainers.md has it
        save_file(kept, out / f"{way}.safetensors")


@shards_on_a_cpu
def test_shards_take_the_steps_of_one_process_and_resume(folder: Path, tmp_path: Path) -> None:
    train(folder, tmp_path / "one", 4, "one")
    together(both, folder, tmp_path / "two", 2, processes=2, timeout=500)
    one = json.loads((tmp_path / "one" / "one.json").read_text())
    ways = ("shards", "resumed") if READS_SHARDS else ("shards",)
    for way in ways:
        rows = json.loads((tmp_path / "two" / f"{way}.json").read_text())
        assert len(rows) == STEPS
        for found, expected in zip(rows, one, strict=True):
            for key, value in expected.items():
                assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-5), (way, key)
        mine = load_file(tmp_path / "two" / f"{way}.safetensors")
        theirs = load_file(tmp_path / "one" / "one.safetensors")
        # As in test_doors: AdamW divides by the size of gradients that are rounding noise.
        drift = torch.cat([(mine[name] - theirs[name]).abs().flatten() for name in theirs])
        assert float(drift.max()) < 2e-3
        assert float(drift.mean()) < 2e-5
    adapter = load_file(tmp_path / "two" / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(adapter[n.replace(".default", "")], mine[n]) for n in mine)
    assert one[-1]["asft/lam"] != one[0]["asft/lam"]
    saved = json.loads((tmp_path / "two" / "checkpoint-2" / STATE_FILE).read_text())
    assert (
        saved["penalty"]
        == json.loads((tmp_path / "one" / "checkpoint-2" / STATE_FILE).read_text())["penalty"]
    )


def both(folder: Path, out: Path, batch: int) -> None:
    from accelerate.state import AcceleratorState

    train(folder, out, batch, "shards")
    AcceleratorState._reset_state()
    if READS_SHARDS:
        train(folder, out, batch, "resumed")
        return
    with pytest.raises(
        TrainingError, match=r"does not read the sharded .* install accelerate 1.13"
    ):
        train(folder, out, batch, "resumed")


def test_what_cannot_be_honoured_is_refused(folder: Path, tmp_path: Path) -> None:
    from accelerate.state import AcceleratorState
    from torch.distributed.fsdp import CPUOffloadPolicy

    def trainer(model: Any, **options: Any) -> Any:
        made = InOrder(model, arguments(tmp_path), train_dataset=Rows())
        plugin = {"fsdp_version": 2, "cpu_ram_efficient_loading": True} | options
        made.accelerator.state.fsdp_plugin = SimpleNamespace(**plugin)
        made.is_fsdp_enabled = True
        return made

    try:
        with pytest.raises(TrainingError, match=r"FSDP 1 flattens .* set fsdp_version to 2"):
            attach(trainer(adapted(folder), fsdp_version=1), anchor_for(folder))
        with pytest.raises(TrainingError, match="fsdp_offload_params keeps"):
            attach(trainer(adapted(folder), cpu_offload=CPUOffloadPolicy()), anchor_for(folder))
        moved = adapted(folder)
        for name, parameter in moved.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.1)
        with pytest.raises(TrainingError, match="cpu_ram_efficient_loading only the first process"):
            attach(trainer(moved), anchor_for(folder))
        attach(trainer(adapted(folder)), anchor_for(folder))
    finally:
        AcceleratorState._reset_state()


def test_a_resume_that_would_forget_the_optimizer_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accelerate, "__version__", "1.12.0")
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    refuse_forgetful(trainer, tmp_path)
    trainer.is_fsdp_enabled = True
    refuse_forgetful(trainer, tmp_path)  # the whole state in one file is read
    (tmp_path / "optimizer_0").mkdir()
    with pytest.raises(TrainingError, match=r"accelerate 1\.12\.0 .* optimizer .* 1\.13 or later"):
        refuse_forgetful(trainer, tmp_path)
    monkeypatch.setattr(accelerate, "__version__", "1.13.0.dev0")
    refuse_forgetful(trainer, tmp_path)
