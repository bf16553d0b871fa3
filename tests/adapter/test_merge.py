"""An adapter merged into its base: a model that can go on being trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

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
def test_adapters_of_embeddings_and_of_experts_fit(lora: LoraConfig, tmp_path: Path) -> None:
    sides = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    config = Qwen3MoeConfig(vocab_size=32, num_hidden_layers=1, num_experts=2, **sides, **heads)
    get_peft_model(Qwen3MoeForCausalLM(config), lora).save_pretrained(tmp_path)
    model = Qwen3MoeForCausalLM(config)
    check_fit(model, tmp_path)
    merge_adapter(model, tmp_path)
