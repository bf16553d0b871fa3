"""Cosines, angles and shares of factors against the dense matrices, and chance against draws."""

from __future__ import annotations

import math

import pytest
import torch

from anchortune.maths.angles import (
    chance_cosine,
    cosine,
    inner,
    principal_angles,
    random_angles,
    share_inside,
)
from anchortune.maths.factors import Factors, factorise_dense


def dense(f: Factors) -> torch.Tensor:
    return f.left.double() @ torch.diag(f.sigma.double()) @ f.right.double().T


def some(rows: int, columns: int, rank: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return factorise_dense(torch.randn(rows, columns, generator=generator), rank)


def basis(d: int, k: int, seed: int) -> torch.Tensor:
    probe = torch.randn(d, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(probe)[0]


def test_inner_and_cosine_are_those_of_the_products() -> None:
    a, b = some(20, 14, 5, 1), some(20, 14, 3, 2)
    wanted = (dense(a) * dense(b)).sum()
    assert inner(a, b) == pytest.approx(float(wanted), rel=1e-6)
    assert cosine(a, b) == pytest.approx(
        float(wanted / dense(a).norm() / dense(b).norm()), rel=1e-6
    )
    assert cosine(a, a) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="shapes differ"):
        inner(a, some(14, 20, 3, 2))


def test_the_share_is_the_dense_projections() -> None:
    a, b = some(20, 14, 5, 1), some(20, 14, 3, 2)
    p = a.left.double() @ a.left.double().T
    wanted = (p @ dense(b)).square().sum() / dense(b).square().sum()
    assert share_inside(a.left, b.left, b.sigma) == pytest.approx(float(wanted), rel=1e-6)
    assert share_inside(a.left, a.left, a.sigma) == pytest.approx(1.0)


@pytest.mark.parametrize(("k_a", "k_b"), [(4, 4), (3, 6), (6, 3), (1, 1)])
def test_principal_angles_by_the_dense_formula(k_a: int, k_b: int) -> None:
    a, b = basis(12, k_a, 1), basis(12, k_b, 2)
    found = principal_angles(a, b)
    assert found.shape == (min(k_a, k_b),)
    torch.testing.assert_close(found.cos(), torch.linalg.svdvals(a.T @ b))
    # The projectors' product has the squared cosines as its eigenvalues.
    values = torch.linalg.eigvals(a @ a.T @ b @ b.T).real.sort(descending=True).values
    torch.testing.assert_close(found.cos().square(), values[: len(found)])


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.5, math.pi / 2 - 1e-9, math.pi / 2])
def test_tiny_and_right_angles_keep_their_digits(angle: float) -> None:
    a = torch.eye(6, 2, dtype=torch.float64)
    b = a.clone()
    b[:, 1] = torch.tensor([0, math.cos(angle), math.sin(angle), 0, 0, 0], dtype=torch.float64)
    found = principal_angles(a, b)
    assert float(found[0]) == pytest.approx(0.0, abs=1e-12)
    assert float(found[1]) == pytest.approx(angle, rel=1e-6)


def test_chance_is_what_draws_give() -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(4000, 50, generator=generator, dtype=torch.float64) for _ in range(2))
    found = torch.nn.functional.cosine_similarity(a, b).abs().mean()
    # √(2/(πN)) is the limit of large N; at 50 it is half a per cent low.
    assert chance_cosine(50) == pytest.approx(float(found), rel=0.04)


@pytest.mark.parametrize(("d", "k_a", "k_b"), [(40, 5, 3), (40, 3, 5), (10, 8, 6), (6, 6, 2)])
def test_random_angles_are_those_of_two_random_subspaces(d: int, k_a: int, k_b: int) -> None:
    found = random_angles(d, k_a, k_b, draws=200)
    drawn = torch.stack(
        [principal_angles(basis(d, k_a, 2 * i), basis(d, k_b, 2 * i + 1)) for i in range(200)]
    )
    torch.testing.assert_close(found, drawn.mean(0), atol=0.05, rtol=0.05)
    assert torch.equal(found, random_angles(d, k_a, k_b, draws=200))
