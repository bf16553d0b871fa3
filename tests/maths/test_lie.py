"""How an update lies to a direction: against dense matrices in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths.factors import Factors, factorise_dense
from anchortune.maths.lie import lie
from anchortune.maths.lowrank import LowRank


def dense(factors: Factors) -> torch.Tensor:
    return (factors.left * factors.sigma) @ factors.right.T


@settings(max_examples=40, deadline=None)
@given(
    d_out=st.integers(3, 12),
    d_in=st.integers(3, 12),
    rank=st.integers(1, 3),
    kept=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_factors_and_dense_give_the_formula(
    d_out: int, d_in: int, rank: int, kept: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    direction = factorise_dense(torch.randn(d_out, d_in, generator=generator), kept)
    left = torch.randn(d_out, rank, generator=generator)
    right = torch.randn(rank, d_in, generator=generator)
    x, d = (left @ right).double(), dense(direction).double()
    u, v = direction.left.double(), direction.right.double()
    wanted = (
        float(x.square().sum()),
        float((x * d).sum() / torch.linalg.matrix_norm(d)),
        float((u @ u.T @ x).square().sum()),
        float((u @ u.T @ x @ v @ v.T).square().sum()),
    )
    assert lie(LowRank(left, right), direction) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
    assert lie(left @ right, direction) == pytest.approx(wanted, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_update_along_the_direction_is_all_along_it(sign: float) -> None:
    direction = factorise_dense(torch.randn(8, 6), 3)
    found = lie(0.5 * sign * dense(direction), direction)
    length = found.energy**0.5
    assert found.along == pytest.approx(sign * length, rel=1e-5)
    assert found.inside == pytest.approx(found.energy, rel=1e-5)
    assert found.both == pytest.approx(found.energy, rel=1e-5)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        lie(torch.zeros(3, 4), factorise_dense(torch.randn(4, 3), 1))
