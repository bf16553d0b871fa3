"""One adapter for two: the same function of the bare base, or a reason why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.adapter.compose import compose, read_adapter, write_adapter
from anchortune.adapter.merge import merge_adapter
from anchortune.errors import CheckpointError
from tests import tiny

PLAIN = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"}


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 23)[None]).logits


@pytest.mark.parametrize(
    ("family", "one", "two"),
    [
        ("llama", {}, {}),
        ("llama", {"use_rslora": True, "r": 3}, {"target_modules": ["v_proj", "down_proj"]}),
        (
            "llama",
            {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
            {"target_modules": "all-linear", "r": 2},
        ),
        (
            "gpt2",
            {"target_modules": ["c_attn"], "fan_in_fan_out": True},
            {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
        ),
    ],
    ids=["same-modules", "other-modules-rslora", "patterns", "conv1d"],
)
def test_one_adapter_does_what_both_do(tmp_path: Path, family: str, one: Any, two: Any) -> None:
    from peft import AutoPeftModelForCausalLM

    base = getattr(tiny, f"tiny_{family}")(tmp_path / "base", seed=1, dtype=torch.float32)
    first = tiny.tiny_adapter(tmp_path / "one", base, seed=2, **one)
    second = tiny.tiny_adapter(tmp_path / "two", base, seed=3, **two)
    wanted = logits(merge_adapter(merge_adapter(load(base), first), second))
    parts = read_adapter(first), read_adapter(second)
    composed = tmp_path / "both"
    composed.mkdir()
    state, config = compose(*parts, base=str(base))
    write_adapter(composed, state, config)
    # llama.cpp divides the one alpha by the rank of each tensor.
    assert {config["lora_alpha"] / b.shape[1] for n, b in state.items() if "lora_B" in n} == {1.0}
    found = logits(AutoPeftModelForCausalLM.from_pretrained(composed, dtype=torch.float32))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert (found - logits(merge_adapter(load(base), second))).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("change", "extra", "reason"),
    [
        ({"use_dora": True}, {}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
        ({"bias": "all"}, {}, "bias"),
        ({"peft_type": "IA3"}, {}, "IA3"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa"),
        ({}, {"base_model.model.m.lora_magnitude_vector": torch.ones(3)}, "lora_magnitude_vector"),
        ({"r": 3}, {}, "rank 2"),
    ],
)
def test_what_is_no_plain_lora_is_refused(change: Any, extra: Any, reason: str) -> None:
    state = {
        "base_model.model.m.lora_A.weight": torch.ones(2, 4),
        "base_model.model.m.lora_B.weight": torch.ones(3, 2),
    }
    assert compose((state, PLAIN), (state, PLAIN))[1]["r"] == 4
    with pytest.raises(CheckpointError, match=reason):
        compose((state, PLAIN), ({**state, **extra}, {**PLAIN, **change}))
