"""Block Lanczos against planted and dense answers, and what it costs: counted, not timed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from anchortune.maths import factors, lanczos
from anchortune.maths.factors import factorise_dense
from anchortune.maths.lanczos import leading_triplets


def with_values(sigma: torch.Tensor, d_out: int, d_in: int, seed: int = 0) -> torch.Tensor:
    """A float32 matrix with these singular values and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(d, len(sigma), generator=generator, dtype=torch.float64))[0]
        for d in (d_out, d_in)
    )
    return ((left * sigma.double()) @ right.T).float()


def steep(count: int) -> torch.Tensor:
    return torch.arange(1, count + 1, dtype=torch.float64) ** -1.0


@settings(max_examples=15, deadline=None)
@given(st.integers(120, 180), st.integers(120, 180), st.integers(1, 20), st.integers(0, 2**31))
def test_the_relation_holds_converged_or_not(d_out: int, d_in: int, limit: int, seed: int) -> None:
    """delta·V = U·Σ, orthonormal on both sides, and never more than the best has."""
    delta = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed))
    found = leading_triplets(delta, limit, most=min(d_out, d_in), seed=seed)
    assert found is not None
    assert found.sigma.shape == (limit,)
    torch.testing.assert_close(
        delta.double() @ found.right, found.left * found.sigma, atol=2e-5, rtol=0
    )
    eye = torch.eye(limit, dtype=torch.float64)
    for side in (found.left, found.right):
        torch.testing.assert_close(side.T @ side, eye, atol=1e-9, rtol=0)
    best = torch.linalg.svdvals(delta.double())[:limit]
    assert bool((found.sigma <= best * (1 + 1e-5)).all())
    assert float(found.sigma.square().sum()) > 0.9 * float(best.square().sum())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31))
def test_the_bound_is_one_even_where_nothing_has_converged(rank: int, seed: int) -> None:
    delta = torch.randn(150, 140, generator=torch.Generator().manual_seed(seed))
    found = leading_triplets(delta, rank, most=140, seed=seed)
    assert found is not None
    f = factors._truncated(found, float(delta.double().norm()), rank, None)
    whole = (delta.double() @ delta.double().T) / f.norm
    kept = (f.left.double() * factors.gram_eigenvalues(f)) @ f.left.double().T
    error = float(torch.linalg.matrix_norm(whole - kept, ord=2))
    assert error <= factors.gram_error_bound(f) * (1 + 1e-6)
    assert float(torch.linalg.svdvals(delta.double())[rank]) <= f.tail


def test_a_planted_spectrum_is_found() -> None:
    delta = with_values(steep(64), 600, 560)
    found = leading_triplets(delta, 32, most=280)
    assert found is not None
    torch.testing.assert_close(found.sigma[:16], steep(16), rtol=1e-3, atol=0)
    assert float(found.sigma.square().sum()) > 0.997 * float(steep(32).square().sum())


@pytest.mark.parametrize("equal", [7, 60, 90])
def test_equal_singular_values_do_not_stop_the_space_from_growing(equal: int) -> None:
    delta = with_values(torch.ones(equal), 300, 260)
    found = leading_triplets(delta, 32, most=130)
    assert found is not None
    expected = torch.zeros(32, dtype=torch.float64)
    expected[: min(32, equal)] = 1.0
    torch.testing.assert_close(found.sigma, expected, atol=1e-3, rtol=0)


def test_one_row_and_one_column_alone() -> None:
    for place in ((slice(None), 3), (5, slice(None))):
        delta = torch.zeros(200, 220)
        delta[place] = torch.randn(delta[place].shape)
        found = leading_triplets(delta, 4, most=100)
        assert found is not None
        assert float(found.sigma[0]) == pytest.approx(float(delta.norm()), rel=1e-5)


@pytest.mark.parametrize("limit", [1, 4])
def test_one_value_all_over_has_one_direction(limit: int) -> None:
    """Float32 sums of one value are off by 1e-5, and what they leave is no new direction."""
    found = leading_triplets(torch.full((700, 2048), 0.1), limit, most=350)
    assert found is not None
    assert float(found.sigma[0]) == pytest.approx(0.1 * (700 * 2048) ** 0.5, rel=1e-5)


def test_a_target_is_reached_or_none_is_returned() -> None:
    delta = with_values(torch.ones(100), 300, 260)
    found = leading_triplets(delta, 260, target=50.0, most=260)
    assert found is not None
    assert float(found.sigma.square().sum()) >= 50.0
    assert leading_triplets(delta, 260, target=90.0, most=80) is None


def test_the_same_seed_gives_the_same_bits() -> None:
    delta = with_values(steep(64), 300, 260)
    first, second = (leading_triplets(delta, 8, most=130, seed=4) for _ in range(2))
    assert first is not None
    assert second is not None
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


FREE = {"split", "slice", "alias", "detach", "t", "transpose", "new_empty", "new_zeros"}
"""Operations that look at no element."""


class Costs(TorchDispatchMode):
    """Columns multiplied with ``delta`` and its rows, elements of it added up, what is made new."""

    def __init__(self, delta: torch.Tensor) -> None:
        super().__init__()
        self.storage = delta.untyped_storage().data_ptr()
        self.whole = delta.numel()
        self.multiplied = self.other = 0
        self.largest = 0
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        mine = [a for a in tensors if a.untyped_storage().data_ptr() == self.storage]
        self.seen[name] += 1
        if mine and name in ("mm", "addmm_", "addmm"):
            columns = min(min(a.shape) for a in tensors if a.shape != mine[0].shape)
            self.multiplied += mine[0].numel() * columns
        elif mine and name not in FREE:
            self.other += mine[0].numel()
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.storage:
            self.largest = max(self.largest, out.numel())
        return out


def test_passes_over_the_difference_are_few_and_no_second_one_is_made() -> None:
    """At rank 32 on a planted spectrum: 48 columns there, back and there again; one sum."""
    d_out, d_in = 1200, 1100
    delta = with_values(steep(64), d_out, d_in)
    costs, norm = Costs(delta), float(delta.norm())
    with costs:
        f = factorise_dense(delta, 32, norm=norm)
    assert f.rank == 32
    assert costs.multiplied <= 3 * 48 * costs.whole
    assert costs.other <= costs.whole
    widest = max(2 * 48, lanczos._SKETCH_ROWS)
    assert costs.largest <= widest * max(d_out, d_in)
    assert costs.seen["_linalg_svd"] == 1  # of 32 columns
