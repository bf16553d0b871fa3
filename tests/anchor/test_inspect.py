"""Figures and warnings against hand-made anchors whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.inspect import inspect_anchor, median_along, plot_anchor
from anchortune.errors import AnchorError
from anchortune.maths.factors import factorise_dense
from tests import tiny


def anchored(*scales: float, shape: tuple[int, int] = (12, 10), rank: int = 2) -> Anchor:
    """An anchor whose layer i is a rank-1 dW of norm ``scales[i]``, so that c = scales[i]."""
    modules = {}
    for layer, scale in enumerate(scales):
        u = torch.nn.functional.normalize(torch.randn(shape[0], dtype=torch.float64), dim=0)
        v = torch.nn.functional.normalize(torch.randn(shape[1], dtype=torch.float64), dim=0)
        delta = scale * torch.outer(u, v)
        modules[f"layers.{layer}.q_proj"] = factorise_dense(delta, rank)
    return Anchor(modules)


def test_figures_of_a_rank_one_difference() -> None:
    report = inspect_anchor(anchored(0.5)).modules[0]
    assert report.norm == pytest.approx(0.5)
    assert report.stable_rank == pytest.approx(1.0)
    assert report.eigenvalue_max == pytest.approx(0.5)
    assert report.eigenvalue_min == pytest.approx(0.5)
    gram = report.selectivity["gram"]
    assert gram.along == pytest.approx(0.25, abs=1e-6)
    assert gram.random == pytest.approx(1 - (2 * 0.5 - 0.25) / 12)
    assert gram.ratio == pytest.approx(gram.random / gram.along)
    subspace = report.selectivity["subspace"]
    assert subspace.along == pytest.approx(0.0, abs=1e-6)
    assert subspace.random == pytest.approx(11 / 12)
    assert subspace.ratio is None
    assert report.selectivity["direction"].random == pytest.approx(1 - 1 / 120)


def test_a_small_difference_makes_gram_nearly_norm_decay() -> None:
    warnings = inspect_anchor(anchored(0.001, 0.001, 1.0)).warnings
    assert len(warnings) == 1
    assert "gram is nearly plain norm decay in 2 of 3 modules (layers.0.q_proj" in warnings[0]
    assert "eigenvalue there is 0.001" in warnings[0]


def test_a_large_difference_punishes_alignment_more() -> None:
    warnings = inspect_anchor(anchored(3.0, 1.0)).warnings
    assert len(warnings) == 1
    assert "punishes the aligned direction MORE than an orthogonal one in 1 of 2" in warnings[0]
    assert "an eigenvalue there reaches 3" in warnings[0]
    assert "costs (1 - c)² = 4 instead of 1" in warnings[0]


def test_an_anchor_at_one_has_nothing_to_warn_of() -> None:
    assert inspect_anchor(anchored(1.0, 0.8)).warnings == []


def test_square_full_rank_factors_make_the_subspaces_vanish() -> None:
    square = Anchor({"a": factorise_dense(torch.randn(6, 6, dtype=torch.float64))})
    text = " ".join(inspect_anchor(square).warnings)
    assert "subspace would vanish in 1 of 1 modules (a)" in text
    assert "subspace2 would vanish" in text
    wide = Anchor({"a": factorise_dense(torch.randn(6, 9, dtype=torch.float64))})
    text = " ".join(inspect_anchor(wide).warnings)
    assert "subspace would vanish" in text
    assert "subspace2" not in text
    tall = Anchor({"a": factorise_dense(torch.randn(9, 6, dtype=torch.float64))})
    assert "vanish" not in " ".join(inspect_anchor(tall).warnings)


def test_conv1d_counts_its_outputs_not_its_inputs(tmp_path: Path) -> None:
    folders = [tiny.tiny_gpt2(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    anchor = Anchor.from_checkpoints(*folders, target_modules=["c_attn"], rank="full")
    report = inspect_anchor(anchor)
    module = report.modules[0]
    assert module.shape == (96, 32)  # stored (32, 96)
    assert module.selectivity["subspace"].random == pytest.approx(1 - 32 / 96)
    assert "subspace would vanish" not in " ".join(report.warnings)


def test_notes_of_the_build_are_among_the_warnings(
    llama_aligned: Path, llama_adapter: Path
) -> None:
    anchor = Anchor.from_checkpoints(llama_adapter, llama_aligned)
    assert any("as its base, not" in text for text in inspect_anchor(anchor).warnings)


def test_layers_are_in_the_order_of_the_model_from_a_file_too(tmp_path: Path) -> None:
    anchored(*[0.5] * 12).save(tmp_path / "a.safetensors")
    report = inspect_anchor(Anchor.load(tmp_path / "a.safetensors"))
    assert [m.module for m in report.modules] == [f"layers.{i}.q_proj" for i in range(12)]


def test_the_report_is_plain_json() -> None:
    report = inspect_anchor(anchored(0.5, 3.0))
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["modules"][1]["selectivity"]["subspace"]["ratio"] is None
    assert data["sha256"] == report.sha256
    assert median_along(report.modules, "gram")[0] == pytest.approx((0.25 + 4.0) / 2, abs=1e-5)


@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plots_are_written_by_ending(tmp_path: Path, ending: str, magic: bytes) -> None:
    path = tmp_path / f"plot.{ending}"
    plot_anchor(inspect_anchor(anchored(0.5, 3.0)), path)
    data = path.read_bytes()
    assert data.startswith(magic)
    plot_anchor(inspect_anchor(anchored(0.5, 3.0)), path)
    assert path.stat().st_size > 5000


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AnchorError, match=r"a plot ends in .png, .svg or .pdf"):
        plot_anchor(inspect_anchor(anchored(0.5)), tmp_path / "plot.gif")
