"""Factors against the dense SVD, and what truncation costs against the stated bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths import factors as module
from anchortune.maths.factors import (
    Factors,
    direction_cosine,
    factorise_dense,
    factorise_product,
    frobenius_norm,
    gram_eigenvalues,
    gram_error_bound,
    kept_energy_frac,
    punishment_along,
    punishment_random,
    stable_rank,
)

SIZES = st.integers(1, 24)
SEEDS = st.integers(0, 2**31)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(f: Factors) -> torch.Tensor:
    return f.left.double() @ torch.diag(f.sigma.double()) @ f.right.double().T


def assert_orthonormal(f: Factors) -> None:
    eye = torch.eye(f.rank, dtype=torch.float64)
    for side in (f.left, f.right):
        torch.testing.assert_close(side.double().T @ side.double(), eye, atol=2e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, SEEDS)
def test_full_rank_factors_give_the_matrix_back(d_out: int, d_in: int, seed: int) -> None:
    delta = normal(d_out, d_in, seed=seed)
    f = factorise_dense(delta)
    assert f.shape == (d_out, d_in)
    torch.testing.assert_close(dense(f), delta, atol=1e-5, rtol=1e-5)
    assert f.norm == pytest.approx(float(delta.norm()), rel=1e-12)
    assert f.tail == 0.0
    assert_orthonormal(f)
    assert bool((f.sigma.diff() <= 0).all())


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 30), SEEDS)
def test_rank_k_is_the_best_and_tail_is_the_next_singular_value(
    d_out: int, d_in: int, rank: int, seed: int
) -> None:
    delta = normal(d_out, d_in, seed=seed)
    sigma = torch.linalg.svdvals(delta)
    f = factorise_dense(delta, rank)
    assert f.rank <= rank
    torch.testing.assert_close(f.sigma.double(), sigma[: f.rank], rtol=1e-5, atol=1e-6)
    left_out = sigma[f.rank :]
    expected = float(left_out[0]) if left_out.numel() and left_out[0] > 1e-6 * sigma[0] else 0.0
    assert f.tail == pytest.approx(expected, rel=1e-6)
    residual = float((delta - dense(f)).norm()) ** 2
    assert residual == pytest.approx(float(left_out.square().sum()), rel=1e-3, abs=1e-8)


@settings(max_examples=30, deadline=None)
@given(SIZES, SIZES, st.floats(0.05, 1.0), SEEDS)
def test_energy_keeps_the_fewest_triplets_that_reach_it(
    d_out: int, d_in: int, energy: float, seed: int
) -> None:
    f = factorise_dense(normal(d_out, d_in, seed=seed), energy=energy)
    assert kept_energy_frac(f) >= energy - 1e-6
    without_last = float(f.sigma[:-1].double().square().sum()) / f.norm**2
    assert without_last < energy


@settings(max_examples=40, deadline=None)
@given(SIZES, SIZES, st.integers(1, 8), st.floats(0.01, 100.0), SEEDS)
def test_product_factors_equal_those_of_the_dense_product(
    d_out: int, d_in: int, inner: int, scale: float, seed: int
) -> None:
    b, a = normal(d_out, inner, seed=seed), normal(inner, d_in, seed=seed + 1)
    f = factorise_product(b, a, scale)
    product = scale * b @ a
    torch.testing.assert_close(dense(f), product, rtol=1e-5, atol=1e-6 * float(product.norm()))
    assert f.norm == pytest.approx(float(product.norm()), rel=1e-9)
    assert f.rank <= min(d_out, d_in, inner)
    assert_orthonormal(f)


def test_product_rank_is_cut_and_its_tail_stated() -> None:
    b, a = normal(12, 5, seed=1), normal(5, 9, seed=2)
    f = factorise_product(b, a, 2.0, rank=3)
    sigma = torch.linalg.svdvals(2.0 * b @ a)
    assert f.rank == 3
    assert f.tail == pytest.approx(float(sigma[3]), rel=1e-9)


def test_zero_singular_values_are_dropped() -> None:
    delta = normal(10, 3, seed=1) @ normal(3, 8, seed=2)
    f = factorise_dense(delta, "full")
    assert f.rank == 3
    assert f.tail == 0.0
    nothing = factorise_dense(torch.zeros(4, 5))
    assert (nothing.rank, nothing.norm, nothing.tail) == (0, 0.0, 0.0)


@pytest.mark.parametrize("options", [{"rank": 0}, {"energy": 0.0}, {"energy": 1.5}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"rank is at least 1|energy is a share"):
        factorise_dense(torch.ones(3, 3), **options)  # type: ignore[arg-type]


def test_products_that_do_not_chain_are_refused() -> None:
    with pytest.raises(ValueError, match="inner sizes differ"):
        factorise_product(torch.ones(3, 2), torch.ones(4, 3))


def decaying(d_out: int, d_in: int, power: float, seed: int) -> torch.Tensor:
    """A matrix with singular values 1, 2^-power, 3^-power, … and random singular vectors."""
    k = min(d_out, d_in)
    u, _ = torch.linalg.qr(normal(d_out, k, seed=seed))
    v, _ = torch.linalg.qr(normal(d_in, k, seed=seed + 1))
    return (u * torch.arange(1, k + 1, dtype=torch.float64) ** -power) @ v.T


@pytest.mark.parametrize("power", [0.3, 1.0])
@pytest.mark.parametrize("options", [{"rank": 8}, {"rank": 20}, {"energy": 0.4}])
def test_randomised_factors_stay_within_their_measured_error(
    monkeypatch: pytest.MonkeyPatch, power: float, options: dict[str, float]
) -> None:
    monkeypatch.setattr(module, "EXACT_MIN_DIM", 32)
    delta = decaying(260, 220, power, seed=3)
    sigma = torch.linalg.svdvals(delta)
    f = factorise_dense(delta.float(), **options)  # type: ignore[arg-type]
    assert_orthonormal(f)
    best = float(sigma[: f.rank].square().sum()) / f.norm**2
    assert best - 1e-3 <= kept_energy_frac(f) <= best + 1e-6
    if "rank" in options:
        assert f.rank == options["rank"]
    else:
        assert kept_energy_frac(f) >= options["energy"] - 1e-6
    assert f.tail >= float(sigma[f.rank]) * (1 - 1e-4)
    assert operator_error(delta, f) <= gram_error_bound(f) * (1 + 1e-4)


def test_randomised_factors_grow_until_the_energy_is_met_or_go_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EXACT_MIN_DIM", 32)
    delta = decaying(700, 640, 0.3, seed=5)
    exact = torch.linalg.svdvals(delta).square().cumsum(0) / delta.square().sum()
    for energy in (0.3, 0.95):
        f = factorise_dense(delta.float(), energy=energy)
        fewest = int((exact < energy).sum()) + 1
        assert kept_energy_frac(f) >= energy - 1e-6
        assert fewest <= f.rank <= fewest + 2


def test_the_same_seed_gives_the_same_randomised_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT_MIN_DIM", 32)
    delta = decaying(260, 220, 0.5, seed=3).float()
    first, second = factorise_dense(delta, 8), factorise_dense(delta, 8)
    assert torch.equal(first.left, second.left)
    assert torch.equal(first.right, second.right)


def operator_error(delta: torch.Tensor, f: Factors) -> float:
    """‖C − C_k‖ of gram, dense."""
    whole = delta @ delta.T / f.norm
    kept = (f.left.double() * gram_eigenvalues(f)) @ f.left.double().T
    return float(torch.linalg.matrix_norm(whole - kept, ord=2))


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 16), st.integers(2, 16), st.integers(1, 6), SEEDS)
def test_truncation_bounds_hold(d_out: int, d_in: int, rank: int, seed: int) -> None:
    delta = normal(d_out, d_in, seed=seed)
    f = factorise_dense(delta, rank)
    assert operator_error(delta, f) <= gram_error_bound(f) + 1e-5
    x = normal(d_out, d_in, seed=seed + 1)
    whole = x - delta @ (delta.T @ x) / f.norm
    kept = x - (f.left.double() * gram_eigenvalues(f)) @ (f.left.double().T @ x)
    gap = abs(float(whole.norm()) - float(kept.norm()))
    assert gap <= (gram_error_bound(f) + 1e-5) * float(x.norm())
    cut = dense(f)
    cosine = float((cut * delta).sum() / (cut.norm() * delta.norm()))
    assert direction_cosine(f) == pytest.approx(cosine, abs=1e-6)


def penalty(delta: torch.Tensor, f: Factors, operator: str, x: torch.Tensor) -> float:
    """‖(I − C)X‖² with the truncated factors, written out densely."""
    left, right = f.left.double(), f.right.double()
    if operator == "gram":
        x = x - (left * gram_eigenvalues(f)) @ (left.T @ x)
    elif operator == "subspace":
        x = x - left @ (left.T @ x)
    elif operator == "subspace2":
        x = x - left @ (left.T @ x @ right) @ right.T
    elif operator == "direction":
        d = dense(f) / dense(f).norm()
        x = x - (x * d).sum() * d
    return float(x.square().sum())


@pytest.mark.parametrize("operator", ["gram", "subspace", "subspace2", "direction", "none"])
@pytest.mark.parametrize("rank", [2, None])
def test_punishments_equal_the_dense_ones(operator: str, rank: int | None) -> None:
    d_out, d_in = 7, 5
    delta = 2.0 * normal(d_out, d_in, seed=4)
    f = factorise_dense(delta, rank)
    along = penalty(delta, f, operator, delta / delta.norm())
    assert punishment_along(f, operator) == pytest.approx(along, abs=1e-6)
    # An isotropic X has E‖(I−C)X‖² = mean over the basis matrices E_ij, which is exact.
    total = 0.0
    for i in range(d_out):
        for j in range(d_in):
            unit = torch.zeros(d_out, d_in, dtype=torch.float64)
            unit[i, j] = 1.0
            total += penalty(delta, f, operator, unit)
    assert punishment_random(f, operator) == pytest.approx(total / (d_out * d_in), abs=1e-6)


def test_unknown_operators_are_refused() -> None:
    f = factorise_dense(normal(3, 3))
    for ask in (punishment_along, punishment_random):
        with pytest.raises(ValueError, match="no operator 'gramm'"):
            ask(f, "gramm")


def test_stable_rank_counts_equal_directions() -> None:
    assert stable_rank(factorise_dense(torch.eye(5))) == pytest.approx(5.0)
    assert stable_rank(factorise_dense(torch.diag(torch.tensor([3.0, 0, 0])))) == pytest.approx(1.0)


def test_frobenius_norm_of_a_matrix_taller_than_a_block() -> None:
    matrix = normal(3000, 700).float()
    assert frobenius_norm(matrix) == pytest.approx(math.sqrt(float(matrix.double().pow(2).sum())))
