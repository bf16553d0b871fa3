"""A LoRA adapter's dW is exactly what PEFT merges, in the stored orientation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchortune.anchor.build import build_anchor
from anchortune.checkpoints.pairs import pair_checkpoints
from anchortune.checkpoints.source import open_checkpoint
from anchortune.errors import AnchortuneError
from tests import tiny


def merged_deltas(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What merging changes, by PEFT itself, in float64 and in the stored orientation."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    start = {name: value.clone() for name, value in before.state_dict().items()}
    model = PeftModel.from_pretrained(before, adapter).double().merge_and_unload()
    return {
        name.removesuffix(".weight"): value - start[name]
        for name, value in model.state_dict().items()
        if name in start and not torch.equal(value, start[name])
    }


CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"use_rslora": True, "lora_alpha": 3}),
    ("llama", {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 5}}),
    ("llama", {"target_modules": "all-linear"}),
    ("qwen2", {"target_modules": ["k_proj", "o_proj"]}),
    ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ("gpt2", {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
]


@pytest.mark.parametrize(("family", "lora"), CASES)
def test_factors_are_exactly_what_peft_merges(
    tmp_path: Path, family: str, lora: dict[str, Any]
) -> None:
    base = getattr(tiny, f"tiny_{family}")(tmp_path / "base", dtype=torch.float32)
    adapter = tiny.tiny_adapter(tmp_path / "adapter", base, seed=4, **lora)
    targets = lora.get("target_modules", ["q_proj", "v_proj"])
    modules, metadata = build_anchor(adapter, base, target_modules=targets, rank="full")
    expected = merged_deltas(base, adapter)
    assert set(modules) == set(expected)
    for name, f in modules.items():
        product = f.left.double() @ torch.diag(f.sigma.double()) @ f.right.double().T
        torch.testing.assert_close(product, expected[name], atol=2e-6, rtol=2e-6)
        assert f.norm == pytest.approx(float(expected[name].norm()), rel=1e-6)
        assert metadata.modules[name].transposed == (family == "gpt2")
    assert metadata.aligned.kind == "lora"
    assert metadata.aligned.adapter_base == "base"
    assert metadata.base.sha256 != metadata.aligned.sha256


def test_an_adapter_agrees_with_its_merged_folder(tmp_path: Path, llama_base: Path) -> None:
    base = tiny.tiny_llama(tmp_path / "base", dtype=torch.float32)
    adapter = tiny.tiny_adapter(tmp_path / "adapter", base)
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    from_adapter, _ = build_anchor(adapter, base, rank=4)
    from_merged, _ = build_anchor(tmp_path / "merged", base, rank=4)
    for name, f in from_adapter.items():
        other = from_merged[name]
        torch.testing.assert_close(f.sigma, other.sigma, rtol=1e-4, atol=1e-5)
        spans = f.left.T @ other.left
        torch.testing.assert_close(spans @ spans.T, torch.eye(4), atol=1e-4, rtol=0)


def changed(source: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "is IA3, not LORA"),
    ({"use_dora": True}, "is DoRA, so its update is not low-rank"),
    ({"init_lora_weights": "pissa_niter_4"}, "started from pissa_niter_4"),
    ({"init_lora_weights": "olora"}, "started from olora"),
    ({"target_parameters": ["experts.up"]}, r"adapts bare parameters \('experts.up'\)"),
    ({"alora_invocation_tokens": [1, 2]}, "is an activated LoRA"),
    ({"r": 8}, "has rank 4, adapter_config.json says 8"),
]


@pytest.mark.parametrize(("config", "text"), REFUSED, ids=[case[1] for case in REFUSED])
def test_adapters_that_are_not_s_b_a_are_refused(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, config: dict[str, Any], text: str
) -> None:
    adapter = changed(llama_adapter, tmp_path / "adapter", **config)
    with pytest.raises(AnchortuneError, match=text):
        build_anchor(adapter, llama_base)


def test_dora_saved_by_peft_is_refused(tmp_path: Path, llama_base: Path) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "dora", llama_base, use_dora=True)
    with pytest.raises(AnchortuneError, match="DoRA"):
        build_anchor(adapter, llama_base)
    changed(adapter, tmp_path / "hidden", use_dora=False)
    with pytest.raises(AnchortuneError, match="holds DoRA magnitudes"):
        build_anchor(tmp_path / "hidden", llama_base)


def test_modules_to_save_and_biases_are_named(
    tmp_path: Path, llama_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = tiny.tiny_adapter(
        tmp_path / "a", llama_base, modules_to_save=["lm_head"], bias="lora_only"
    )
    _, metadata = build_anchor(adapter, llama_base)
    assert "also replaces lm_head (modules_to_save)" in caplog.text
    assert any("also trains biases" in note for note in metadata.notes)


def test_another_base_is_refused_by_shape_and_noted_by_name(
    tmp_path: Path, llama_base: Path, llama_aligned: Path, llama_adapter: Path
) -> None:
    wide = tiny.tiny_llama(tmp_path / "wide", hidden_size=64)
    with pytest.raises(AnchortuneError, match=r"B·A of .*q_proj' is 32 × 32 but .* 64 × 64"):
        build_anchor(llama_adapter, wide)
    _, metadata = build_anchor(llama_adapter, llama_aligned)
    assert any("as its base, not" in note for note in metadata.notes)
    _, metadata = build_anchor(llama_adapter, llama_base)
    assert metadata.notes == []


def test_targets_that_the_adapter_lacks_are_refused(llama_base: Path, llama_adapter: Path) -> None:
    with pytest.raises(AnchortuneError, match=r"'o_proj' matches. It has q_proj, v_proj"):
        build_anchor(llama_adapter, llama_base, target_modules=["q_proj", "o_proj"])


def test_an_untrained_adapter_is_no_anchor(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    shutil.copytree(llama_adapter, tmp_path / "zero")
    path = tmp_path / "zero" / "adapter_model.safetensors"
    save_file({n: v * (0 if "lora_B" in n else 1) for n, v in load_file(path).items()}, path)
    with pytest.raises(AnchortuneError, match="identical weights in all 4"):
        build_anchor(tmp_path / "zero", llama_base)


def test_nan_in_an_adapter_is_refused(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    shutil.copytree(llama_adapter, tmp_path / "nan")
    path = tmp_path / "nan" / "adapter_model.safetensors"
    save_file({name: value / 0 for name, value in load_file(path).items()}, path)
    with pytest.raises(AnchortuneError, match=r"q_proj \(LoRA\)' holds NaN or Inf"):
        build_anchor(tmp_path / "nan", llama_base)


def test_a_pickled_adapter_is_refused(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    shutil.copytree(llama_adapter, tmp_path / "bin")
    (tmp_path / "bin" / "adapter_model.safetensors").rename(tmp_path / "bin" / "adapter_model.bin")
    with pytest.raises(AnchortuneError, match=r"only as pickle \(adapter_model.bin\)"):
        build_anchor(tmp_path / "bin", llama_base)


def test_the_scale_is_part_of_the_identity(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    doubled = changed(llama_adapter, tmp_path / "doubled", lora_alpha=16)
    hashes = []
    for adapter in (llama_adapter, doubled):
        pairing = pair_checkpoints(
            open_checkpoint(adapter), open_checkpoint(llama_base), ["q_proj"]
        )
        list(pairing.deltas())
        hashes.append(pairing.aligned.content_sha256())
    assert hashes[0] != hashes[1]


def test_a_packed_base_is_refused_under_an_adapter_too(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    tensors = {
        f"model.layers.{i}.self_attn.{part}_proj.weight": torch.zeros(512, 1, dtype=torch.uint8)
        for i in range(2)
        for part in "qv"
    }
    save_file(tensors, packed / "model.safetensors")
    with pytest.raises(AnchortuneError, match=r"integer or packed 4/8-bit weight.*unquantised"):
        build_anchor(llama_adapter, packed)
