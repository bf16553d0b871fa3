"""Tensors by rows: the same values and digests as whole, each byte read once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anchortune.checkpoints import tensor_file
from anchortune.checkpoints.pairs import Pairing, pair_checkpoints
from anchortune.checkpoints.source import open_checkpoint
from anchortune.checkpoints.tensor_file import block_rows, read_blocks, read_header, read_tensor
from anchortune.errors import CheckpointError, PairError

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_BLOCK_ELEMENTS", 20)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 6), (9, 3), (1, 50), (23,), (4, 3, 2)])
def test_blocks_are_the_tensor_and_have_its_digest(
    tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    value = torch.randn(shape).to(dtype)
    save_file({"first": torch.ones(3), "a": value}, tmp_path / "x.safetensors")
    info = read_header(tmp_path / "x.safetensors")[0]["a"]
    digests: list[str] = []
    blocks = [block.clone() for block in read_blocks(info, digests.append)]
    assert {len(block) for block in blocks[:-1]} <= {block_rows(shape)}
    assert torch.equal(torch.cat(blocks), value)
    assert digests == [read_tensor(info).digest]


def test_a_file_cut_short_and_a_tensor_of_integers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(9, 4), "n": torch.ones(3, dtype=torch.int64)}, path)
    infos = read_header(path)[0]
    with pytest.raises(CheckpointError, match="'n' is I64, not a float"):
        next(read_blocks(infos["n"], print))
    with path.open("r+b") as stream:
        stream.truncate(infos["a"].begin + 100)
    with pytest.raises(CheckpointError, match="cut short while it was read"):
        list(read_blocks(infos["a"], print))


def test_a_digest_is_kept_only_of_what_was_read_to_its_end(
    llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(llama_base)
    name = "model.layers.0.self_attn.q_proj.weight"
    blocks = checkpoint.blocks(name)
    next(blocks)
    assert name not in checkpoint.digests
    assert len(list(blocks)) > 1
    assert checkpoint.digests[name] == open_checkpoint(llama_base).read(name).digest


def test_sides_of_different_dtypes_are_cut_at_the_same_rows(tmp_path: Path) -> None:
    values = {}
    for side, dtype in (("a", torch.float32), ("b", torch.bfloat16)):
        values[side] = torch.randn(11, 7).to(dtype)
        (tmp_path / side).mkdir()
        save_file({"x.q_proj.weight": values[side]}, tmp_path / side / "model.safetensors")
    pairing = pair_checkpoints(*(open_checkpoint(tmp_path / s) for s in "ab"), ["q_proj"])
    [delta] = pairing.deltas()
    assert delta.dense is not None
    difference = values["a"] - values["b"].float()
    assert torch.equal(delta.dense, difference)
    assert delta.norm == pytest.approx(float(difference.double().norm()), rel=1e-6)
    assert delta.size == pytest.approx(float(values["b"].double().norm()), rel=1e-6)


def constant_pair(folder: Path, aligned: float, base: float, shape: tuple[int, int]) -> Pairing:
    for side, value in (("a", aligned), ("b", base)):
        (folder / side).mkdir()
        tensor = torch.full(shape, value)
        save_file({"x.q_proj.weight": tensor}, folder / side / "model.safetensors")
    return pair_checkpoints(*(open_checkpoint(folder / s) for s in "ab"), ["q_proj"])


def test_weights_whose_squares_overflow_are_no_broken_ones(tmp_path: Path) -> None:
    [delta] = constant_pair(tmp_path, 3e25, 1e25, (4, 7)).deltas()
    assert delta.norm == pytest.approx(2e25 * 28**0.5, rel=1e-5)
    assert delta.size == pytest.approx(1e25 * 28**0.5, rel=1e-5)


def test_a_difference_that_overflows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PairError, match=r"'x.q_proj minus base' holds NaN or Inf"):
        list(constant_pair(tmp_path, 3e38, -3e38, (4, 7)).deltas())


def test_the_norm_of_long_rows_is_no_float32_sum(tmp_path: Path) -> None:
    """The bound of what an anchor leaves out is made of it; a sum of 4100 would be off by 2e-6."""
    [delta] = constant_pair(tmp_path, 0.1, 0.0, (3, 4100)).deltas()
    assert delta.dense is not None
    assert delta.norm == pytest.approx(float(delta.dense.double().norm()), rel=3e-7)


def test_only_the_difference_and_a_few_rows_are_held(
    llama_base: Path, llama_aligned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of both tensors is read once, in pieces; the whole is made once, where asked."""
    pairing = pair_checkpoints(
        open_checkpoint(llama_aligned), open_checkpoint(llama_base), ["q_proj"]
    )
    pair = pairing.modules[0]
    lent = torch.empty(pair.shape)
    made: list[int] = []
    real = torch.empty

    def empty(*args: object, **options: object) -> torch.Tensor:
        tensor: torch.Tensor = real(*args, **options)  # type: ignore[call-overload]
        made.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(torch, "empty", empty)
    delta = pairing.delta(pair, lambda shape, dtype: lent)
    assert delta.dense is lent
    few = block_rows(pair.shape) * pair.shape[1]
    assert made
    assert max(made) <= 8 * few < lent.nbytes
