"""The whole path through the command line, for the paper's model classes in miniature."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from anchortune.cli.app import app
from tests.tiny import tiny_gemma2, tiny_llama, tiny_qwen2

CLASSES: dict[str, Callable[..., Path]] = {
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "gemma2": tiny_gemma2,
}


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("name", CLASSES)
def test_build_train_and_reload(tmp_path: Path, name: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = CLASSES[name](tmp_path / "base", seed=0, tokenizer=True)
    aligned = CLASSES[name](tmp_path / "aligned", seed=1, tokenizer=True)
    assert len(list(base.glob("*.safetensors"))) > 1  # sharded, bf16
    anchor = tmp_path / "anchor.safetensors"
    invoke(
        "anchor", "build", "--aligned", str(aligned), "--base", str(base),
        "--target-modules", "q_proj,v_proj", "--rank", "4", "-o", str(anchor),
    )  # fmt: skip
    shown = json.loads(invoke("anchor", "inspect", str(anchor), "--json"))
    assert len(shown["modules"]) == 4

    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"Question {i}?", "completion": f"Answer {i}."} for i in range(16)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = tmp_path / "config.yaml"
    config.write_text(
        f"""
model: {{path: {aligned}}}
data: {{path: {data}}}
penalty: {{anchor: {anchor}, operator: subspace, lam: 1.0}}
lora: {{rank: 2, alpha: 8, target_modules: [q_proj, v_proj]}}
training: {{max_steps: 3, batch_size: 4, learning_rate: 1e-2}}
machine: {{device: cpu, dtype: float32}}
output: {tmp_path / "run"}
""",
        encoding="utf-8",
    )
    planned = json.loads(invoke("train", str(config), "--dry-run", "--json"))
    assert planned
    assert not (tmp_path / "run").exists()
    record = json.loads(invoke("train", str(config), "--json"))
    assert record["metrics"]["steps"] == 3

    adapter = tmp_path / "run" / "adapter"
    weights = load_file(adapter / "adapter_model.safetensors")
    moved = [n for n, w in weights.items() if "lora_B" in n and bool(w.ne(0).any())]
    assert len(moved) == 4
    model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32)
    plain = model(torch.tensor([[5, 6, 7]])).logits.detach()
    tuned = PeftModel.from_pretrained(model, adapter)(torch.tensor([[5, 6, 7]])).logits
    assert not torch.allclose(plain, tuned)
    last = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert last[-1]["asft/penalty"] > 0
