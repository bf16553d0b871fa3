"""An adapter merged into its base: a model that can go on being trained."""

from __future__ import annotations

import logging
from itertools import count
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from anchortune import progress
from anchortune.adapter.merge import check_fit, merge_adapter


def test_a_merged_model_can_be_trained_as_before(llama_base: Path, llama_adapter: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base)
    model.lm_head.requires_grad_(False)
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    merged = merge_adapter(model, llama_adapter)
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, before)
    frozen = [name for name, p in merged.named_parameters() if not p.requires_grad]
    assert frozen == ["lm_head.weight"]
    assert merged.model.layers[0].self_attn.q_proj.weight.requires_grad


@pytest.mark.parametrize(
    "lora",
    [
        LoraConfig(target_modules=["embed_tokens"]),
        LoraConfig(
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        ),
    ],
    ids=["embeddings alone", "experts"],
)
def test_adapters_of_embeddings_and_of_experts_fit(
    lora: LoraConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sides = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(vocab_size=32, num_hidden_layers=1, num_experts=2, **sides, **heads)
    get_peft_model(Qwen3MoeForCausalLM(config), lora).save_pretrained(tmp_path)
    model = Qwen3MoeForCausalLM(config)
    check_fit(model, tmp_path)
    clock = count(step=20)  # whatever is told is told after 20 s
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(clock)))
    with caplog.at_level(logging.INFO, "anchortune"):
        merge_adapter(model, tmp_path)
    layers = 1 if lora.target_modules == {"embed_tokens"} else 3
    [*before, last] = [record.message for record in caplog.records]
    assert last.startswith(f"merging {tmp_path.name}: {layers} done in ")
    assert [line.split(", ")[0] for line in before] == [
        f"merging {tmp_path.name}: {done} of {layers}" for done in range(1, layers)
    ]
    assert not [name for name, module in model.named_modules() if "merge" in vars(module)]
