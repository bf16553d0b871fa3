"""Adapters' configs that PEFT and others write are read; patterns without end are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.checkpoints.adapter_config import read_adapter_config
from anchortune.errors import CheckpointError

UNSLOTH = (
    r"(?:.*?(?:vision|image|visual|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward)"
    r".*?(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward)\.(?:(?:k_proj|v_proj|q_proj|out_proj)))"
)


def written(folder: Path, **config: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
    return folder


@pytest.mark.parametrize(
    "pattern",
    [
        UNSLOTH,
        r"^(?!.*(?:visual|lm_head)).*\.(q_proj|v_proj)$",
        r"model\.layers\.(\d+)\.(mlp|self_attn)\.[qk*+(]_proj",
        r"a\\.*|b.*.*|c\*\*\*\*\*",
    ],
)
def test_patterns_that_end_are_let_through(tmp_path: Path, pattern: str) -> None:
    found = read_adapter_config(written(tmp_path, target_modules=pattern), "a")
    assert found["target_modules"] == pattern


@pytest.mark.parametrize(
    "pattern",
    [
        r"(.*|a\\)*b",  # what is escaped is the backslash, not the bracket
        r"\\*.*.*.*.*b",
        ".*.*[|].*.*[|].*b",
        ".*.*(?:a|.*.*.*)b",
        "(?x) .*.*.* # [\n .*.*.* # ]",
        "(?#[).*.*.*.*.*.*b(?#])",
        "(?ix: .*)",
        "(a{1,9}){1,9}",
    ],
)
def test_patterns_that_may_not_end_are_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(CheckpointError, match="for ever"):
        read_adapter_config(written(tmp_path, target_modules=pattern), "a")


@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "OFT", "r": 0, "oft_block_size": 32},
        {"peft_type": "ADALORA", "rank_pattern": {"q_proj.lora_E": [True, False]}},
    ],
)
def test_ranks_of_other_kinds_are_not_ours_to_judge(tmp_path: Path, config: Any) -> None:
    assert read_adapter_config(written(tmp_path, **config), "a")
    with pytest.raises(CheckpointError, match="no number above 0"):
        read_adapter_config(written(tmp_path, **config | {"peft_type": "LORA"}), "a")
