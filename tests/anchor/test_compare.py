"""Two anchors compared: against dense computations, an anchor with itself, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.compare import compare_anchors, plot_comparison
from anchortune.errors import AnchorError
from anchortune.maths.factors import factorise_dense
from tests import tiny

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"


def made(seed: int, rank: int, names: tuple[str, ...] = (Q, V)) -> Anchor:
    generator = torch.Generator().manual_seed(seed)
    shapes = {Q: (24, 16), V: (8, 16)}
    return Anchor(
        {
            name: factorise_dense(torch.randn(shapes[name], generator=generator), rank)
            for name in names
        }
    )


def test_the_figures_are_those_of_the_dense_differences() -> None:
    a, b = made(1, 4), made(2, 3)
    found = compare_anchors(a, b)
    dense = [
        {n: f.left @ torch.diag(f.sigma) @ f.right.T for n, f in x.modules.items()} for x in (a, b)
    ]
    flat = [torch.cat([m.flatten().double() for m in side.values()]) for side in dense]
    wanted = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert found.cosine == pytest.approx(float(wanted), rel=1e-5)
    assert found.entries == 24 * 16 + 8 * 16
    caught = total = 0.0
    for name in (Q, V):
        left = a.modules[name].left
        caught += float((left.T @ dense[1][name]).square().sum())
        total += float(dense[1][name].square().sum())
    assert found.left == pytest.approx(caught / total, rel=1e-5)
    assert found.modules[0].left.chance == 4 / 24
    assert found.modules[0].right.chance == 4 / 16
    assert found.modules[1].ranks == (4, 3)


def test_an_anchor_is_all_along_itself() -> None:
    a = made(1, 4)
    found = compare_anchors(a, a)
    assert found.cosine == pytest.approx(1.0)
    assert found.left == pytest.approx(1.0)
    assert found.modules[0].left.angle_mean == pytest.approx(0.0, abs=1e-4)
    assert found.modules[0].left.random_min > 20


def test_random_anchors_lie_as_chance_says() -> None:
    found = [compare_anchors(made(2 * i, 4), made(2 * i + 1, 4)) for i in range(40)]
    modules = [one.modules[0] for one in found]
    for measured, chance in (
        ([abs(m.cosine) for m in modules], modules[0].chance),
        ([m.left.share for m in modules], modules[0].left.chance),
        ([m.left.angle_mean for m in modules], modules[0].left.random_mean),
    ):
        assert sum(measured) / len(measured) == pytest.approx(chance, rel=0.25)


def test_the_reading_names_chance_and_goes_into_json() -> None:
    found = compare_anchors(made(1, 4), made(2, 3))
    assert f"a |cosine| of {found.chance:.1e} on average" in found.reading()
    assert "alone proves nothing" in json.loads(json.dumps(found.to_json()))["reading"]


def test_only_shared_modules_are_compared() -> None:
    found = compare_anchors(made(1, 4), made(2, 3, (V,)))
    assert [m.module for m in found.modules] == [V]
    assert (found.only_a, found.only_b) == ([Q], [])
    with pytest.raises(AnchorError, match="share no module"):
        compare_anchors(made(1, 4, (Q,)), made(2, 3, (V,)))


def test_other_shapes_are_refused() -> None:
    other = Anchor({V: factorise_dense(torch.randn(16, 16), 2)})
    with pytest.raises(AnchorError, match="8 × 16 in one anchor and 16 × 16 in the other"):
        compare_anchors(made(1, 4), other)


def test_conv1d_modules_are_turned_to_output_first(tmp_path: Path) -> None:
    folders = [tiny.tiny_gpt2(tmp_path / name, seed=i) for i, name in enumerate("abc")]
    a, b = (
        Anchor.from_checkpoints(folders[i], folders[2], target_modules=["c_attn"], rank=4)
        for i in (0, 1)
    )
    module = compare_anchors(a, b).modules[0]
    assert module.shape == (96, 32)
    assert module.left.chance == 4 / 96


def test_the_plot_is_drawn_by_the_paths_ending(tmp_path: Path) -> None:
    found = compare_anchors(made(1, 4), made(2, 3))
    plot_comparison(found, tmp_path / "c.svg")
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    with pytest.raises(AnchorError, match="a plot ends in"):
        plot_comparison(found, tmp_path / "c.txt")
