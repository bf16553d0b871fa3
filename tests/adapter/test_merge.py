"""An adapter merged into its base: a model that can go on being trained."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from anchortune.adapter.merge import merge_adapter


def test_a_merged_model_can_be_trained_as_before(llama_base: Path, llama_adapter: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_base)
    model.lm_head.requires_grad_(False)
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    merged = merge_adapter(model, llama_adapter)
    assert not torch.equal(merged.model.layers[0].self_attn.q_proj.weight, before)
    frozen = [name for name, p in merged.named_parameters() if not p.requires_grad]
    assert frozen == ["lm_head.weight"]
    assert merged.model.layers[0].self_attn.q_proj.weight.requires_grad
