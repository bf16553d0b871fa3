"""dW streamed by name equals dW in memory; what does not belong together is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchortune.checkpoints.names import Targets
from anchortune.checkpoints.pairs import Pairing, pair_checkpoints
from anchortune.checkpoints.source import open_checkpoint
from anchortune.errors import AnchortuneError, CheckpointError, PairError
from tests import tiny


def pair(aligned: Path, base: Path, targets: Targets) -> Pairing:
    return pair_checkpoints(open_checkpoint(aligned), open_checkpoint(base), targets)


def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder at once, by safetensors itself."""
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def edited(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a folder as a single file whose tensors went through ``change``."""
    tensors = whole(source)
    change(tensors)
    target.mkdir()
    shutil.copy(source / "config.json", target)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


FAMILIES = [
    ("llama", ["q_proj", "v_proj"], 4),
    ("llama", "all-linear", 14),
    ("qwen2", ["q_proj", "k_proj", "v_proj"], 6),
    ("gemma2", r".*layers\.1\.mlp\..*", 3),
    ("phi3", ["qkv_proj", "gate_up_proj"], 4),
    ("gpt2", ["c_attn", "c_proj"], 6),
]


@pytest.mark.parametrize(("family", "targets", "count"), FAMILIES)
def test_streaming_equals_in_memory(
    tmp_path: Path, family: str, targets: Targets, count: int
) -> None:
    make = getattr(tiny, f"tiny_{family}")
    aligned, base = make(tmp_path / "a", seed=1), make(tmp_path / "b", seed=2)
    assert len(list(aligned.glob("*.safetensors"))) >= 2
    pairing = pair(aligned, base, targets)
    assert len(pairing.modules) == count
    mine, theirs = whole(aligned), whole(base)
    for delta in pairing.deltas():
        name = f"{delta.pair.name}.weight"
        assert delta.dense is not None
        assert delta.dense.dtype == torch.float32
        assert torch.equal(delta.dense, mine[name].float() - theirs[name].float())
        assert delta.size == pytest.approx(float(theirs[name].double().norm()), rel=1e-6)
        assert delta.pair.transposed == (family == "gpt2")


def test_float64_stays_float64(tmp_path: Path) -> None:
    aligned = tiny.tiny_llama(tmp_path / "a", seed=1, dtype=torch.float64)
    base = tiny.tiny_llama(tmp_path / "b", seed=2, dtype=torch.float64)
    delta = next(pair(aligned, base, ["q_proj"]).deltas())
    assert delta.dense is not None
    assert delta.dense.dtype == torch.float64


def test_sharded_equals_single_and_hashes_alike(
    tmp_path: Path, llama_aligned: Path, llama_base: Path
) -> None:
    single = edited(llama_aligned, tmp_path / "single", lambda tensors: None)
    sharded = pair(llama_aligned, llama_base, ["q_proj", "v_proj"])
    other = pair(single, llama_base, ["q_proj", "v_proj"])
    for first, second in zip(sharded.deltas(), other.deltas(), strict=True):
        assert first.pair.name == second.pair.name
        assert first.dense is not None
        assert second.dense is not None
        assert torch.equal(first.dense, second.dense)
    assert sharded.aligned.content_sha256() == other.aligned.content_sha256()
    assert sharded.aligned.content_sha256() != sharded.base.content_sha256()


@pytest.mark.parametrize(("old", "new"), [("model.", ""), ("model.", "model.language_model.")])
def test_prefixed_names_give_the_same_differences(
    tmp_path: Path, llama_aligned: Path, llama_base: Path, old: str, new: str
) -> None:
    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    renamed = edited(llama_base, tmp_path / "renamed", rename)
    expected = list(pair(llama_aligned, llama_base, ["q_proj"]).deltas())
    for first, second in zip(
        expected, pair(llama_aligned, renamed, ["q_proj"]).deltas(), strict=True
    ):
        assert first.pair.name == second.pair.name
        assert first.dense is not None
        assert second.dense is not None
        assert torch.equal(first.dense, second.dense)


def refused(aligned: Path, base: Path, targets: Targets, text: str) -> None:
    with pytest.raises(AnchortuneError, match=text):
        pair(aligned, base, targets)


def test_other_families_are_refused(tmp_path: Path, llama_base: Path) -> None:
    other = tiny.tiny_qwen2(tmp_path / "q")
    refused(other, llama_base, ["q_proj"], "q is a qwen2 but .*llama-base is a llama")


def test_other_shapes_are_refused(tmp_path: Path, llama_base: Path) -> None:
    other = tiny.tiny_llama(tmp_path / "wide", hidden_size=64)
    refused(other, llama_base, ["q_proj"], "q_proj' is 64 × 64 in .*wide but 32 × 32 in")


def test_other_depths_are_refused(tmp_path: Path, llama_base: Path) -> None:
    deeper = tiny.tiny_llama(tmp_path / "deep", num_hidden_layers=3)
    refused(deeper, llama_base, ["q_proj"], "no counterpart .*'model.layers.2.self_attn.q_proj'")


def test_fused_against_apart_is_refused(tmp_path: Path, llama_base: Path) -> None:
    def fuse(tensors: dict[str, torch.Tensor]) -> None:
        for layer in range(2):
            stem = f"model.layers.{layer}.self_attn."
            parts = [tensors.pop(f"{stem}{part}_proj.weight") for part in "qkv"]
            tensors[f"{stem}qkv_proj.weight"] = torch.cat(parts)

    fused = edited(llama_base, tmp_path / "fused", fuse)
    refused(llama_base, fused, ["q_proj"], "fused in 'model.layers.0.self_attn.qkv_proj'")
    refused(fused, llama_base, ["qkv_proj"], "fused in 'model.layers.0.self_attn.qkv_proj'")
    refused(fused, llama_base, ["q_proj"], "so use 'qkv_proj'")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["aligned", "base"])
def test_nan_and_inf_are_refused_naming_tensor_and_side(
    tmp_path: Path, llama_aligned: Path, llama_base: Path, value: float, side: str
) -> None:
    def poison(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"][3, 4] = value

    source = llama_aligned if side == "aligned" else llama_base
    bad = edited(source, tmp_path / "bad", poison)
    both = (bad, llama_base) if side == "aligned" else (llama_aligned, bad)
    with pytest.raises(PairError, match=r"bad: 'model.layers.1.self_attn.q_proj' holds NaN or Inf"):
        list(pair(*both, ["q_proj"]).deltas())


def test_an_adapter_is_no_base(llama_aligned: Path, llama_adapter: Path) -> None:
    refused(llama_aligned, llama_adapter, ["q_proj"], "is a LoRA adapter, and the base must be")


def test_without_configs_names_and_shapes_decide(
    tmp_path: Path, llama_aligned: Path, llama_base: Path
) -> None:
    folders = []
    for source in (llama_aligned, llama_base):
        folder = edited(source, tmp_path / source.name, lambda tensors: None)
        (folder / "config.json").unlink()
        folders.append(folder)
    assert len(pair(*folders, ["q_proj"]).modules) == 2


def test_a_text_model_pairs_with_its_multimodal_wrapper(
    tmp_path: Path, llama_aligned: Path, llama_base: Path
) -> None:
    wrapped = edited(llama_base, tmp_path / "wrapped", lambda tensors: None)
    config = {"model_type": "llava", "text_config": {"model_type": "llama"}}
    (wrapped / "config.json").write_text(json.dumps(config))
    assert len(pair(llama_aligned, wrapped, ["q_proj"]).modules) == 2


def test_what_is_no_checkpoint_is_named(tmp_path: Path, llama_base: Path) -> None:
    for name, text in [
        (tmp_path / "gone", "is no folder or .gguf file here"),
        (tmp_path / "gone.gguf", "is no folder or .gguf file here"),
        (llama_base / "config.json", "is a file: give the folder"),
        ("no-slash", "is no folder or .gguf file here, nor a Hub id"),
    ]:
        with pytest.raises(CheckpointError, match=text):
            open_checkpoint(name)
    with pytest.raises(CheckpointError, match="is no Hub id, so it has no revision"):
        open_checkpoint(llama_base, revision="main")


def test_a_hub_id_offline_says_so() -> None:
    with pytest.raises(CheckpointError, match="org/absent is no folder here, and the Hub"):
        open_checkpoint("org/absent")


def test_the_licence_comes_from_the_card(tmp_path: Path, llama_base: Path) -> None:
    folder = edited(llama_base, tmp_path / "m", lambda tensors: None)
    assert open_checkpoint(folder).licence is None
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Model\n")
    assert open_checkpoint(folder).licence == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: other\nlicense_name: llama3\n---\n")
    assert open_checkpoint(folder).licence == "llama3"
    (folder / "README.md").write_text("---\n: [\n---\n")
    assert open_checkpoint(folder).licence is None
