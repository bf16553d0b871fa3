"""The split against dense projections, and CSULoRA's closed form against a numerical minimiser."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from anchortune.maths.lowrank import LowRank
from anchortune.maths.split import Energies, Shrinkage, closest, relative_shrinkage, split

#: (d_out, d_in, rank of the update, rank of the subspaces)
SHAPES = [(7, 5, 2, 3), (5, 9, 4, 1), (6, 6, 1, 6), (12, 4, 3, 4), (8, 8, 5, 2), (3, 3, 2, 1)]


def case(d_out: int, d_in: int, r: int, k: int, seed: int = 0) -> tuple[LowRank, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, v = torch.linalg.qr(random(d_out, k))[0], torch.linalg.qr(random(d_in, k))[0]
    return LowRank(random(d_out, r), random(r, d_in)), u, v


def dense(part: LowRank) -> Tensor:
    return part.left.double() @ part.right.double()


def dense_parts(x: Tensor, u: Tensor, v: Tensor) -> list[Tensor]:
    pu, pv = u @ u.T, v @ v.T
    qu, qv = torch.eye(len(pu), dtype=x.dtype) - pu, torch.eye(len(pv), dtype=x.dtype) - pv
    return [pu @ x @ pv, pu @ x @ qv, qu @ x @ pv, qu @ x @ qv]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_the_parts_are_the_dense_projections(shape: tuple[int, ...], seed: int) -> None:
    update, u, v = case(*shape, seed=seed)
    parts = split(update, u, v)
    wanted = dense_parts(dense(update), u, v)
    found = [parts.aligned, parts.left_only, parts.right_only, parts.outside]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(dense(one), other, rtol=1e-10, atol=1e-10)
    for one, other in zip(parts.energies(), wanted, strict=True):
        assert one == pytest.approx(float(other.square().sum()), rel=1e-9, abs=1e-12)
    assert parts.energies().total == pytest.approx(update.norm() ** 2, rel=1e-10)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_closed_form_is_the_minimiser(shape: tuple[int, ...]) -> None:
    update, u, v = case(*shape, seed=7)
    x = dense(update)
    gamma = Shrinkage(0.7, 3.0)

    def objective(y: Tensor) -> Tensor:
        _, left_only, right_only, outside = (part.square().sum() for part in dense_parts(y, u, v))
        change = (y - x).square().sum()
        return change + gamma.one_sided * (left_only + right_only) + gamma.outside * outside

    y = torch.zeros_like(x, requires_grad=True)
    solver = torch.optim.LBFGS(
        [y], max_iter=200, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def step() -> Tensor:
        solver.zero_grad()
        value = objective(y)
        value.backward()
        return value

    solver.step(step)
    found = closest(split(update, u, v), gamma)
    torch.testing.assert_close(dense(found), y.detach(), rtol=1e-5, atol=1e-5)
    assert float(objective(dense(found))) <= float(objective(x)) + 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_rank_is_at_most_doubled(shape: tuple[int, ...]) -> None:
    d_out, d_in, r, _ = shape
    update, u, v = case(*shape)
    found = closest(split(update, u, v), Shrinkage(0.5, 2.0))
    assert found.rank <= min(2 * r, d_out, d_in)
    assert found.rank == int(torch.linalg.matrix_rank(dense(found), rtol=1e-5))


def test_no_shrinkage_changes_nothing_and_endless_one_projects() -> None:
    update, u, v = case(9, 7, 3, 4)
    parts = split(update, u, v)
    same = closest(parts, Shrinkage(0, 0))
    assert same.rank == 3
    torch.testing.assert_close(dense(same), dense(update), rtol=1e-5, atol=1e-5)
    projected = closest(parts, Shrinkage(1e12, 1e12))
    torch.testing.assert_close(dense(projected), dense(parts.aligned), rtol=1e-5, atol=1e-5)


def test_shrinkage_goes_by_the_share_of_the_energy() -> None:
    energies = Energies(aligned=1.0, left_only=2.0, right_only=3.0, outside=4.0)
    assert relative_shrinkage(energies) == pytest.approx((0.5, 0.4))
    assert relative_shrinkage(energies, 10.0) == pytest.approx((5.0, 4.0))
    assert relative_shrinkage(Energies(0, 0, 0, 0)) == (0, 0)


def test_an_update_of_zero_stays_zero() -> None:
    _, u, v = case(6, 5, 2, 2)
    nothing = LowRank(torch.zeros(6, 2), torch.ones(2, 5))
    parts = split(nothing, u, v)
    found = closest(parts, relative_shrinkage(parts.energies()))
    assert found.shape == (6, 5)
    assert found.norm() == 0


def test_subspaces_of_another_layer_are_refused() -> None:
    update, u, v = case(6, 5, 2, 2)
    with pytest.raises(ValueError, match="5 and 6 dimensions, and an update of 6 × 5"):
        split(update, v, u)
