"""Adapters read as factors and written again: PEFT loads them, and merges the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from anchortune.adapter.update import read_update, write_update
from anchortune.errors import CheckpointError
from anchortune.maths.lowrank import LowRank, Update
from tests import tiny


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("llama"), dtype=torch.float32)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_gpt2(tmp_path_factory.mktemp("gpt2"), dtype=torch.float32)


def weights(model: Path) -> dict[str, torch.Tensor]:
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return {name: value.double() for name, value in loaded.state_dict().items()}


def merged(model: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """The weights that PEFT makes of both."""
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with_adapter = PeftModel.from_pretrained(loaded, str(adapter)).merge_and_unload()
    return {name: value.double() for name, value in with_adapter.state_dict().items()}


def dense_sum(model: Path, update: Update, transposed: bool = False) -> dict[str, torch.Tensor]:
    found = weights(model)
    for module, part in update.items():
        dense = part.left.double() @ part.right.double()
        found[f"{module}.weight"] = found[f"{module}.weight"] + (dense.T if transposed else dense)
    return found


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-5, atol=1e-6)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True, "r": 3, "lora_alpha": 7},
    {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {r"layers\.1\.self_attn\.q_proj": 5}},
    {"rank_pattern": {"q_proj": 6}, "use_rslora": True},
    {"target_modules": "all-linear", "r": 1},
]


@pytest.mark.parametrize("lora", VARIANTS, ids=str)
def test_what_is_read_is_what_peft_adds(llama: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "adapter", llama, **lora)
    update, config = read_update(adapter)
    assert config["peft_type"] == "LORA"
    same(merged(llama, adapter), dense_sum(llama, update))


@pytest.mark.parametrize("lora", VARIANTS, ids=str)
def test_written_and_read_again_it_is_the_same(
    llama: Path, tmp_path: Path, lora: dict[str, Any]
) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "adapter", llama, **lora)
    update, config = read_update(adapter)
    write_update(tmp_path / "new", update, base=str(llama), like=config)
    again, written = read_update(tmp_path / "new")
    assert again.keys() == update.keys()
    for module, part in update.items():
        assert torch.equal(again[module].left, part.left)
        assert torch.equal(again[module].right, part.right)
    assert written["base_model_name_or_path"] == str(llama)
    assert written["task_type"] == "CAUSAL_LM"
    same(merged(llama, adapter), merged(llama, tmp_path / "new"))
    assert not list(tmp_path.glob(".new*"))


def test_other_ranks_by_module_and_modules_that_no_pattern_names(
    llama: Path, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    names = [f"model.layers.{n}.self_attn.{p}_proj" for n in (0, 1) for p in "qo"]
    update = {
        name: LowRank(
            torch.randn(32, rank, generator=generator), torch.randn(rank, 32, generator=generator)
        )
        for name, rank in zip(names, (1, 5, 3, 0), strict=True)
    }
    write_update(tmp_path / "new", update, base=str(llama))
    same(merged(llama, tmp_path / "new"), dense_sum(llama, update))


def test_conv1d_weights_are_stored_the_other_way_round(gpt2: Path, tmp_path: Path) -> None:
    adapter = tiny.tiny_adapter(
        tmp_path / "adapter", gpt2, target_modules=["c_attn"], fan_in_fan_out=True
    )
    update, config = read_update(adapter)
    assert update["transformer.h.0.attn.c_attn"].shape == (96, 32)
    write_update(tmp_path / "new", update, base=str(gpt2), like=config)
    same(merged(gpt2, tmp_path / "new"), dense_sum(gpt2, update, transposed=True))


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, "no plain LoRA .use_dora."),
        ({"modules_to_save": ["lm_head"]}, "no plain LoRA .modules_to_save."),
        ({"lora_bias": True}, "no plain LoRA .lora_bias."),
        ({"target_modules": ["embed_tokens"]}, "which is no plain LoRA matrix"),
    ],
    ids=str,
)
def test_what_is_more_than_factors_is_refused(
    llama: Path, tmp_path: Path, lora: dict[str, Any], said: str
) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "adapter", llama, **lora)
    with pytest.raises(CheckpointError, match=f"adapter .*: it (is|holds) .*{said}"):
        read_update(adapter)


def test_trained_biases_are_refused(llama: Path, tmp_path: Path) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "adapter", llama)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"bias": "all"}))
    with pytest.raises(CheckpointError, match=r"no plain LoRA \(bias\)"):
        read_update(adapter)


def test_a_folder_that_holds_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_update(tmp_path)


def test_an_update_of_nothing_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no module"):
        write_update(tmp_path / "new", {}, base=None)
    assert not (tmp_path / "new").exists()
