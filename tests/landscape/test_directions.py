"""Directions by name, their pieces against an anchor, and the plane of two of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import AnchorMetadata, Identity, ModuleInfo, Settings
from anchortune.errors import AnchorError, ConfigError
from anchortune.landscape.directions import (
    Direction,
    Noise,
    Piece,
    Projector,
    Sources,
    of_anchor,
    of_update,
    piece_of,
    random_direction,
)
from anchortune.landscape.perturb import moved
from anchortune.landscape.plane import Plane, inner, plane_of
from anchortune.maths.factors import factorise_dense
from anchortune.maths.lowrank import LowRank

SHAPES = {"model.layers.0.q_proj": (9, 7), "model.layers.1.q_proj": (9, 7)}


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> LowRank:
    return LowRank(draw(shape[0], rank, seed=seed), draw(rank, shape[1], seed=seed + 1000))


def update(seed: int, rank: int = 2, prefix: str = "") -> dict[str, LowRank]:
    return {prefix + n: low_rank(s, rank, seed + i) for i, (n, s) in enumerate(SHAPES.items())}


def anchor(seed: int = 50, rank: int = 3) -> Anchor:
    deltas = {name: draw(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}
    return Anchor({name: factorise_dense(delta, rank) for name, delta in deltas.items()})


def dense(part: LowRank | Noise) -> Tensor:
    if isinstance(part, Noise):
        return part.dense().double()
    return part.left.double() @ part.right.double()


def kept(held: Anchor, name: str) -> Tensor:
    factors = held.modules[name]
    return (factors.left * factors.sigma).double() @ factors.right.T.double()


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    found = nn.Module()
    found.model = nn.Module()
    found.model.layers = nn.ModuleList([nn.Module(), nn.Module()])
    for place, layer in enumerate(found.model.layers):
        layer.q_proj = nn.Linear(7, 9, bias=False)
        layer.q_proj.weight.data = draw(9, 7, seed=90 + place).to(dtype)
    return found


def test_names_find_what_they_say() -> None:
    held, harmful = anchor(), anchor(seed=70)
    sources = Sources(held, harmful, {"sft": update(1)}, seed=5)
    for name in SHAPES:
        torch.testing.assert_close(
            dense(sources.direction("aligned").modules[name]), kept(held, name)
        )
        torch.testing.assert_close(
            dense(sources.direction("harmful").modules[name]), kept(harmful, name)
        )
        assert sources.direction("sft").modules[name] is sources.updates["sft"][name]
    random = sources.direction("random", draw=2)
    assert (random.name, random.draw, random.label) == ("random", 2, "random 2")
    assert random.entries == 2 * 63
    assert {name: part.shape for name, part in random.modules.items()} == SHAPES


def test_draws_are_the_same_each_time_and_differ_by_draw_seed_and_module() -> None:
    first, second = SHAPES
    found = random_direction(SHAPES, 0).modules
    assert torch.equal(dense(found[first]), dense(random_direction(SHAPES, 0).modules[first]))
    others = [
        found[second],
        random_direction(SHAPES, 1).modules[first],
        random_direction(SHAPES, 0, seed=1).modules[first],
    ]
    for other in others:
        assert (
            abs(torch.corrcoef(torch.stack([dense(found[first]), dense(other)]).flatten(1))[0, 1])
            < 0.5
        )
    big = Noise(3, (400, 300))
    assert abs(big.norm() / math.sqrt(120_000) - 1) < 0.01


@pytest.mark.parametrize("operator", ["subspace", "subspace2", "direction"])
@pytest.mark.parametrize("random", [False, True])
def test_pieces_are_the_projections_and_add_up(operator: Projector, random: bool) -> None:
    held = anchor()
    whole = random_direction(SHAPES, 0) if random else of_update("sft", update(1))
    pieces = {p: piece_of(whole, held, p, operator=operator) for p in ("inside", "off")}
    for name, factors in held.modules.items():
        x = dense(whole.modules[name])
        u, v = factors.left.double(), factors.right.double()
        unit = kept(held, name) / kept(held, name).norm()
        wanted = {
            "subspace": u @ u.T @ x,
            "subspace2": u @ u.T @ x @ v @ v.T,
            "direction": (x * unit).sum() * unit,
        }[operator]
        inside, off = (dense(pieces[p].modules[name]) for p in ("inside", "off"))
        torch.testing.assert_close(inside, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(inside + off, x, atol=1e-5, rtol=1e-5)
        assert abs(float((inside * off).sum())) < 1e-4
    assert pieces["off"].name == f"{whole.name}:off"
    assert pieces["off"].draw == whole.draw


def test_names_of_adapter_and_anchor_may_differ_in_front() -> None:
    held = anchor()
    bare = {name.removeprefix("model."): part for name, part in update(1).items()}
    found = Sources(held, updates={"sft": bare}).direction("sft:inside")
    assert set(found.modules) == set(bare)


@pytest.mark.parametrize("name", ["aligned:off", "flat:inside"])
def test_a_piece_that_is_nothing_is_refused_not_blown_up(name: str) -> None:
    held = anchor()
    flat = piece_of(of_update("flat", update(1)), held, "off").modules
    sources = Sources(held, updates={"flat": dict(flat)})  # type: ignore[arg-type]
    with pytest.raises(AnchorError, match=f"nothing of '{name.partition(':')[0]}' lies"):
        sources.direction(name)
    piece: Piece = "inside"
    assert piece_of(of_anchor("aligned", held), held, piece).name == "aligned:inside"


def test_a_smaller_rank_leaves_more_off() -> None:
    held = anchor()
    narrow = Sources(held, updates={"sft": update(1)}, rank=1).direction("sft:off")
    wide = Sources(held, updates={"sft": update(1)}).direction("sft:off")
    for name in SHAPES:
        assert narrow.modules[name].norm() > wide.modules[name].norm()
    assert Sources(held, rank=1).direction("aligned:off").entries == 2 * 63


def test_a_conv1d_anchor_is_turned_round() -> None:
    factors = factorise_dense(draw(7, 9, seed=3), 2)  # as stored: (d_in, d_out)
    one = Identity(id="x", kind="memory")
    metadata = AnchorMetadata(
        aligned=one,
        base=one,
        settings=Settings(target_modules=["c_attn"], rank=2),
        modules={"h.0.c_attn": ModuleInfo.of(factors, transposed=True)},
    )
    sources = Sources(Anchor({"h.0.c_attn": factors}, metadata))
    assert sources.direction("aligned").modules["h.0.c_attn"].shape == (9, 7)
    assert sources.direction("random:inside", 0).modules["h.0.c_attn"].shape == (9, 7)


def test_mistakes_are_told_before_anything_is_made() -> None:
    sources = Sources(updates={"sft": update(1)})
    with pytest.raises(ConfigError, match="no direction is called 'sff': known are aligned"):
        sources.check("sff")
    with pytest.raises(ConfigError, match="no direction is called 'sft:out'"):
        sources.check("sft:out")
    for name in ("aligned", "sft:off", "random:inside"):
        with pytest.raises(AnchorError, match="needs an anchor and was given none"):
            sources.check(name)
    with pytest.raises(AnchorError, match="needs a harmful anchor"):
        sources.check("harmful")
    with pytest.raises(AnchorError, match="which weights to move"):
        Sources().check("random")
    with pytest.raises(ConfigError, match="cannot be called 'random'"):
        Sources(updates={"random": update(1)})
    with pytest.raises(ConfigError, match="cannot be called 'a:b'"):
        Sources(updates={"a:b": update(1)})
    with pytest.raises(AnchorError, match="changes no weight"):
        of_update("x", {"a": LowRank(torch.zeros(3, 1), torch.ones(1, 3))})
    with pytest.raises(ValueError, match="has a draw"):
        sources.direction("sft", draw=0)
    sources.check("random")


@pytest.mark.parametrize(
    "kinds", ["low low", "low noise", "noise noise", "low dense", "dense noise"]
)
def test_inner_products_agree_with_dense_ones(kinds: str) -> None:
    made = {"low": low_rank((9, 7), 2, 4), "noise": Noise(8, (9, 7)), "dense": draw(9, 7, seed=2)}
    a, b = (made[kind] for kind in kinds.split())
    whole = [x.double() if isinstance(x, Tensor) else dense(x) for x in (a, b)]
    wanted = float((whole[0] * whole[1]).sum())
    assert inner(a, b) == pytest.approx(wanted, rel=1e-6)
    assert inner(b, a) == pytest.approx(wanted, rel=1e-6)
    with pytest.raises(ValueError, match="shapes differ"):
        inner(a, draw(7, 9, seed=2))


@pytest.mark.parametrize("scale", ["layer", "whole"])
@pytest.mark.parametrize("second", ["harmful", "random"])
def test_a_point_of_the_plane_is_found_again(scale: str, second: str) -> None:
    live = model()
    start = {name: live.get_submodule(name).weight.detach().clone() for name in SHAPES}
    # Far from right angles: the harmful one leans on the aligned one.
    leaning = {
        name: LowRank(
            torch.cat([part.left, other.left], 1), torch.cat([3 * part.right, other.right])
        )
        for (name, part), other in zip(update(1).items(), update(30).values(), strict=True)
    }
    x = of_update("a", update(1))
    y = of_update("b", leaning) if second == "harmful" else random_direction(SHAPES, 0)
    found: Plane = plane_of(live, x, y, scale)  # type: ignore[arg-type]
    if second == "harmful":
        assert found.cosine > 0.5
    with moved(live, [(x, 0.3), (y, -0.2)], scale):  # type: ignore[arg-type]
        gone = {n: live.get_submodule(n).weight.detach() - start[n] for n in SHAPES}
    spot = found.project(gone)
    assert (spot.x, spot.y) == (pytest.approx(0.3), pytest.approx(-0.2))
    assert spot.off_plane < 1e-9
    assert found.project(iter(gone.items())) == spot


def test_the_projection_is_the_nearest_point_and_what_is_off_is_counted() -> None:
    live = model()
    x, y = of_update("a", update(1)), of_update("b", update(5))
    found = plane_of(live, x, y)
    # With a prefix of its own, and a module that the plane does not know.
    there = update(9, prefix="base.") | {"model.layers.2.q_proj": low_rank((9, 7), 1, 3)}
    spot = found.project(there)
    axes = []
    for direction, held in ((x, found.x_lengths), (y, found.y_lengths)):
        parts = [held[name] * dense(direction.modules[name]) for name in SHAPES]
        axes.append(torch.cat([torch.stack(parts).flatten(), torch.zeros(63)]))
    target = torch.stack([dense(part) for part in there.values()]).flatten()
    basis = torch.stack(axes, 1)
    solved = torch.linalg.lstsq(basis, target[:, None]).solution
    rest = target - (basis @ solved).flatten()
    assert (spot.x, spot.y) == tuple(pytest.approx(float(v)) for v in solved)
    assert spot.off_plane == pytest.approx(float((rest.norm() / target.norm()) ** 2))
    cosine = float(axes[0] @ axes[1] / axes[0].norm() / axes[1].norm())
    assert found.cosine == pytest.approx(cosine)


def test_no_plane_through_one_line() -> None:
    x = of_update("a", update(1))
    doubled = {name: part.scaled(-2.0) for name, part in update(1).items()}
    with pytest.raises(AnchorError, match="are one line"):
        plane_of(model(), x, of_update("b", doubled))
    found = plane_of(model(), x, of_update("b", update(2)))
    with pytest.raises(AnchorError, match="no module of the update"):
        found.project({"other": low_rank((9, 7), 1, 0)})
    with pytest.raises(AnchorError, match="7 × 9 in the update but 9 × 7"):
        found.project({"model.layers.0.q_proj": low_rank((7, 9), 1, 0)})


def test_no_change_lies_at_the_origin() -> None:
    found = plane_of(model(), of_update("a", update(1)), of_update("b", update(2)))
    zero = {name: LowRank(torch.zeros(9, 1), torch.zeros(1, 7)) for name in SHAPES}
    assert found.project(zero) == (0.0, 0.0, 0.0)


def test_a_direction_shows_its_name_alone() -> None:
    assert repr(Direction("a", update(1))) == "Direction(name='a', draw=None)"
