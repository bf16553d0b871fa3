"""The file round-trips to the bit, and everything that is not a sound anchor is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import FORMAT_VERSION, KEY
from anchortune.errors import AnchorError
from anchortune.files import sha256_file
from anchortune.maths.factors import Factors, factorise_dense

Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def anchor(llama_aligned: Path, llama_base: Path) -> Anchor:
    return Anchor.from_checkpoints(llama_aligned, llama_base, rank=6)


def test_round_trip(tmp_path: Path, anchor: Anchor) -> None:
    path = tmp_path / "anchor.safetensors"
    anchor.save(path)
    loaded = Anchor.load(path)
    assert loaded.metadata == anchor.metadata
    assert list(loaded.modules) == list(anchor.modules)
    for name, factors in anchor.modules.items():
        other = loaded.modules[name]
        for part in ("left", "sigma", "right"):
            assert torch.equal(getattr(factors, part), getattr(other, part))
        assert (factors.norm, factors.tail) == (other.norm, other.tail)
    assert anchor.sha256 == loaded.sha256 == sha256_file(path)


def test_the_same_anchor_is_the_same_bytes(tmp_path: Path, anchor: Anchor) -> None:
    unsaved = anchor.sha256
    for name in ("one", "two"):
        anchor.save(tmp_path / name)
    Anchor.load(tmp_path / "one").save(tmp_path / "three")
    hashes = {sha256_file(tmp_path / name) for name in ("one", "two", "three")}
    assert hashes == {unsaved}


def test_metadata_says_what_it_was_made_from(
    anchor: Anchor, llama_aligned: Path, llama_base: Path
) -> None:
    data = anchor.metadata
    assert data.format_version == FORMAT_VERSION
    assert data.created_by.startswith("anchortune ")
    assert (data.aligned.id, data.base.id) == ("llama-aligned", "llama-base")
    assert data.aligned.sha256 != data.base.sha256
    assert (data.settings.target_modules, data.settings.rank) == (["q_proj", "v_proj"], 6)
    info = data.modules[Q0]
    assert (info.shape, info.rank, info.aligned_dtype) == ((32, 32), 6, "BF16")
    factors = anchor.modules[Q0]
    assert info.gram_error_bound == pytest.approx(factors.tail**2 / factors.norm)
    assert info.direction_cosine == pytest.approx(info.kept_energy_frac**0.5)
    assert 0 < info.kept_energy_frac < 1


def test_any_safetensors_reader_reads_it(tmp_path: Path, anchor: Anchor) -> None:
    anchor.save(tmp_path / "a.safetensors")
    tensors = load_file(tmp_path / "a.safetensors")
    assert set(tensors) == {f"{m}.{p}" for m in anchor.modules for p in ("left", "sigma", "right")}


def rewritten(
    source: Anchor,
    path: Path,
    change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None],
) -> Path:
    """``source`` saved with its tensors and metadata gone through ``change``."""
    source.save(path)
    with safe_open(path, framework="pt") as stream:
        metadata = json.loads(stream.metadata()[KEY])
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, {KEY: json.dumps(metadata)})
    return path


def edit_metadata(**values: Any) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    return lambda tensors, metadata: metadata.update(values)


def edit_tensor(
    part: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    def apply(tensors: dict[str, torch.Tensor], metadata: dict[str, Any]) -> None:
        tensors[f"{Q0}.{part}"] = change(tensors[f"{Q0}.{part}"]).contiguous()

    return apply


BROKEN = [
    ("future", edit_metadata(format_version=99), "format version 99, and this anchortune"),
    ("no version", edit_metadata(format_version=None), "format version None"),
    ("unknown key", edit_metadata(extra=1), "broken at extra"),
    ("no modules", edit_metadata(modules={}), "anchor of no modules"),
    ("left", edit_tensor("left", lambda x: 1.1 * x), "left is not orthonormal"),
    ("right", edit_tensor("right", lambda x: x.roll(1, 1) + x), "right is not orthonormal"),
    ("nan", edit_tensor("left", lambda x: x * float("nan")), "left' holds NaN or Inf"),
    ("inf", edit_tensor("sigma", lambda x: x / 0), "sigma' holds NaN or Inf"),
    ("order", edit_tensor("sigma", lambda x: x.flip(0)), "not positive and descending"),
    ("sign", edit_tensor("sigma", lambda x: -x), "not positive and descending"),
    ("energy", edit_tensor("sigma", lambda x: 10 * x), "more energy than the stated norm"),
    ("shape", edit_tensor("left", lambda x: x[:, :3]), r"is F32 \[32, 3\], expected F32 \[32, 6\]"),
    ("dtype", edit_tensor("sigma", lambda x: x.double()), "is F64"),
    ("missing", lambda t, m: t.pop(f"{Q0}.left"), "q_proj.left' is missing from"),
    ("extra", lambda t, m: t.update(x=torch.ones(1)), "tensor 'x' is not described in"),
]


@pytest.mark.parametrize(
    ("change", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_unsound_anchors_are_refused(
    tmp_path: Path, anchor: Anchor, change: Any, text: str
) -> None:
    path = rewritten(anchor, tmp_path / "a.safetensors", change)
    with pytest.raises(AnchorError, match=text) as caught:
        Anchor.load(path)
    assert str(path) in str(caught.value)


def test_other_files_are_refused(tmp_path: Path, anchor: Anchor) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(AnchorError, match="is no file: make one with"):
        Anchor.load(path)
    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(AnchorError, match="is a safetensors file but no anchor"):
        Anchor.load(path)
    save_file({"a": torch.ones(1)}, path, {KEY: "{"})
    with pytest.raises(AnchorError, match="metadata is no JSON object"):
        Anchor.load(path)
    anchor.save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(AnchorError, match="is not a whole safetensors file"):
        Anchor.load(path)


def test_a_failed_save_leaves_the_old_file(
    tmp_path: Path, anchor: Anchor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    anchor.save(path)
    before = path.read_bytes()

    def fail(self: Path, data: bytes) -> int:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        anchor.save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_anchors_from_memory_are_checked_too() -> None:
    factors = factorise_dense(torch.randn(6, 4), 2)
    anchor = Anchor({"layer": factors})
    assert anchor.metadata.aligned.kind == "memory"
    assert len(anchor) == 1
    assert repr(anchor) == "Anchor(1 modules, rank 2, memory - memory)"
    with pytest.raises(AnchorError, match="of no modules"):
        Anchor({})
    bent = Factors(2 * factors.left, factors.sigma, factors.right, factors.norm)
    with pytest.raises(AnchorError, match=r"layer.left is not orthonormal"):
        Anchor({"layer": bent})
    with pytest.raises(AnchorError, match="describes other modules"):
        Anchor({"other": factors}, anchor.metadata)
