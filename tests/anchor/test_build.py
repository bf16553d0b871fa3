"""Anchors from checkpoints: ranks and energies, families, and weights that do not differ."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchortune.anchor import build
from anchortune.anchor.anchor import Anchor
from anchortune.anchor.build import DEFAULT_RANK
from anchortune.anchor.format import serialise
from anchortune.checkpoints.pairs import Delta, ModulePair, Pairing
from anchortune.errors import AnchorError, PairError
from tests import tiny

FAMILIES = [
    ("llama", ["q_proj", "v_proj"]),
    ("qwen2", ["q_proj", "v_proj"]),
    ("gemma2", ["q_proj", "v_proj"]),
    ("phi3", ["qkv_proj"]),
    ("gpt2", ["c_attn"]),
]


@pytest.mark.parametrize(("family", "targets"), FAMILIES)
def test_full_rank_factors_are_the_difference_of_the_models(
    tmp_path: Path, family: str, targets: list[str]
) -> None:
    from transformers import AutoModelForCausalLM

    make = getattr(tiny, f"tiny_{family}")
    folders = [make(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    anchor = Anchor.from_checkpoints(*folders, target_modules=targets, rank="full")
    aligned, base = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in folders
    )
    assert len(anchor) == 2 * len(targets)
    for name, f in anchor.modules.items():
        delta = aligned[f"{name}.weight"] - base[f"{name}.weight"]
        product = f.left @ torch.diag(f.sigma) @ f.right.T
        torch.testing.assert_close(product, delta, atol=1e-5, rtol=1e-5)
        assert f.norm == pytest.approx(float(delta.double().norm()), rel=1e-6)


def test_rank_energy_and_defaults(llama_aligned: Path, llama_base: Path) -> None:
    def ranks(**options: object) -> list[int]:
        anchor = Anchor.from_checkpoints(llama_aligned, llama_base, **options)  # type: ignore[arg-type]
        return [factors.rank for factors in anchor.modules.values()]

    assert ranks(rank=5) == [5, 5, 5, 5]
    assert ranks(rank="full") == [32, 16, 32, 16]
    assert ranks() == [min(DEFAULT_RANK, 32), 16, min(DEFAULT_RANK, 32), 16]
    shares = ranks(energy=0.5)
    assert all(1 < rank < 16 for rank in shares)
    assert ranks(energy=0.5, rank=3) == [3, 3, 3, 3]
    assert ranks(energy=0.5, rank="full") == shares


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 0}, "rank 0 is below 1"),
        ({"energy": 0.0}, "energy 0.0 is no share"),
        ({"energy": 90}, "energy 90 is no share"),
    ],
)
def test_settings_out_of_range_are_refused(
    llama_aligned: Path, llama_base: Path, options: dict[str, int], text: str
) -> None:
    with pytest.raises(AnchorError, match=text):
        Anchor.from_checkpoints(llama_aligned, llama_base, **options)  # type: ignore[arg-type]


def test_identical_weights_are_refused(llama_base: Path) -> None:
    with pytest.raises(PairError, match="identical weights in all 4 chosen modules"):
        Anchor.from_checkpoints(llama_base, llama_base)


@pytest.mark.parametrize("shift", [0.0, 1e-12])
def test_single_modules_that_did_not_move_are_named(
    tmp_path: Path, llama_aligned: Path, shift: float
) -> None:
    aligned = tiny.tiny_llama(tmp_path / "a", seed=1, dtype=torch.float64, shard="1GB")
    base = tiny.tiny_llama(tmp_path / "b", seed=2, dtype=torch.float64, shard="1GB")
    frozen = "model.layers.1.self_attn.v_proj"
    tensors = load_file(base / "model.safetensors")
    tensors[f"{frozen}.weight"] = load_file(aligned / "model.safetensors")[f"{frozen}.weight"]
    tensors[f"{frozen}.weight"] = tensors[f"{frozen}.weight"] + shift
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(PairError, match=rf"in 1 of 4 chosen modules \({frozen}\): leave them out"):
        Anchor.from_checkpoints(aligned, base)


def test_progress_names_each_module_in_order(llama_aligned: Path, llama_base: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    anchor = Anchor.from_checkpoints(
        llama_aligned, llama_base, progress=lambda *step: seen.append(step)
    )
    assert seen == [(i, 4, name) for i, name in enumerate(anchor.modules)]


def test_the_number_of_threads_is_left_as_it_was(llama_aligned: Path, llama_base: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        Anchor.from_checkpoints(llama_aligned, llama_base)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_how_many_are_worked_on_at_once_changes_no_bit(
    llama_aligned: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for count in (1, 3):
        monkeypatch.setattr(build, "at_once", lambda *_, count=count: count)
        anchor = Anchor.from_checkpoints(llama_aligned, llama_base, target_modules="all-linear")
        files.append(serialise(anchor.modules, anchor.metadata))
    assert files[0] == files[1]


def test_what_is_worked_on_at_once_fits_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.os, "sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.setattr(build.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)

    def count(rows: int, columns: int, rank: int | str = 32, modules: int = 9) -> int:
        pair = ModulePair("a", "a", "a", (rows, columns), "BF16", "BF16", transposed=False)
        pairing = Pairing(None, None, [pair] * modules)  # type: ignore[arg-type]
        return build.at_once(pairing, rank)  # type: ignore[arg-type]

    assert count(4096, 4096) == build.AT_ONCE
    assert count(4096, 4096, modules=1) == 1
    assert count(8192, 8192) == 3
    assert count(4096, 4096, "full") == 3
    assert count(128256, 8192) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert count(4096, 4096) == 2
    assert count(128256, 512) == 1  # a small side has an exact SVD, in float64


def test_an_error_in_one_module_ends_the_build(
    llama_aligned: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def broken(pairing: Pairing, pair: ModulePair, *_: object) -> Delta:
        seen.append(pair.name)
        raise PairError(f"{pair.name!r} holds NaN or Inf")

    monkeypatch.setattr(Pairing, "delta", broken)
    with pytest.raises(PairError, match=r"layers.0.self_attn.q_proj' holds NaN"):
        Anchor.from_checkpoints(llama_aligned, llama_base)
    assert len(seen) <= 4


def test_a_difference_that_cannot_be_factorised_is_named(
    llama_aligned: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise torch.linalg.LinAlgError("failed to converge")

    monkeypatch.setattr(build, "factorise", failing)
    with pytest.raises(PairError, match=r"layers.0.self_attn.q_proj' is no weights' .* is broken"):
        Anchor.from_checkpoints(llama_aligned, llama_base)


@pytest.mark.parametrize(
    ("device", "text"),
    [
        ("cuda", "torch finds no CUDA"),
        ("cuda:0", "torch finds no CUDA"),
        *((name, "is not one that anchors") for name in ("mps", "x", "cudax", "cuda:-1")),
    ],
)
def test_other_devices_are_refused(
    llama_aligned: Path, llama_base: Path, device: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AnchorError, match=text):
        Anchor.from_checkpoints(llama_aligned, llama_base, device=device)


def test_a_gpu_that_is_one_too_many_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert build.pick_place("cuda:1") == torch.device("cuda:1")
    with pytest.raises(AnchorError, match="'cuda:2' is not there: torch numbers 2 of them from 0"):
        build.pick_place("cuda:2")


@pytest.mark.skipif(
    not hasattr(torch.backends.cuda.matmul, "fp32_precision"), reason="torch has the old name alone"
)
def test_the_precision_of_products_is_left_as_a_trainer_set_it(
    llama_aligned: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    products = torch.backends.cuda.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"  # as Transformers does; torch then refuses the old name
    try:
        Anchor.from_checkpoints(llama_aligned, llama_base)
        assert products.fp32_precision == "tf32"
    finally:
        products.fp32_precision = before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
def test_a_gpu_gives_the_same_anchor_up_to_rounding(tmp_path: Path) -> None:
    sides = [
        tiny.tiny_llama(tmp_path / s, seed=i, hidden_size=640, num_attention_heads=4)
        for i, s in enumerate("ab")
    ]
    here, there = (Anchor.from_checkpoints(*sides, rank=8, device=d) for d in ("cpu", "cuda"))
    for name, factors in here.modules.items():
        other = there.modules[name]
        torch.testing.assert_close(other.sigma, factors.sigma, rtol=1e-2, atol=0)
        assert other.norm == pytest.approx(factors.norm, rel=1e-5)


def test_the_parents_are_not_written_to(tmp_path: Path, llama_base: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(llama_base, copy)
    aligned = tiny.tiny_llama(tmp_path / "aligned", seed=9)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    Anchor.from_checkpoints(aligned, copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
