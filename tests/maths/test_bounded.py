"""The free part bounded, and modules weighed apart: dense formula and autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths import operators
from anchortune.maths.operators import LAYER_WEIGHTS, PROJECTORS, Operator, Projection
from tests.maths.test_operators import RELATIVE, close, dense_penalty, factors


@pytest.mark.parametrize("operator", PROJECTORS)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    d_out=st.integers(2, 11),
    d_in=st.integers(2, 11),
    r=st.integers(1, 5),
    k=st.integers(1, 11),
    free=st.sampled_from([1e-6, 0.01, 0.3, 1.0, 2.5]),
    seed=st.integers(0, 2**31),
)
def test_the_free_part_is_weighed_by_the_dense_formula(
    operator: Operator,
    full: bool,
    dtype: torch.dtype,
    n: int,
    d_out: int,
    d_in: int,
    r: int,
    k: int,
    free: float,
    seed: int,
) -> None:
    """``off + free·inside``, each formed densely; bounds as in ``test_operators``."""
    torch.manual_seed(seed)
    left, sigma, right, norm = factors(n, d_out, d_in, min(k, d_out, d_in))
    projection = Projection(left, right, operators.eigenvalues(operator, sigma, norm))
    b = torch.randn(n, d_out, d_in if full else r, dtype=dtype).double().requires_grad_()
    a = None if full else torch.randn(n, r, d_in, dtype=dtype).double().requires_grad_()
    given_b, given_a = b.detach().to(dtype), None if a is None else a.detach().to(dtype)
    given_projection = Projection(
        left.to(dtype),
        right.to(dtype),
        operators.eigenvalues(operator, sigma.to(dtype), norm.to(dtype)),
    )
    total = None
    if operator == "direction_global":
        total = operators.along(given_b, given_a, given_projection).value.sum()

    found = operators.penalty(operator, "off", given_b, given_a, given_projection, total, free)
    x = b if a is None else b @ a
    expected = dense_penalty(operator, "off", x, projection)
    expected = expected + free * dense_penalty(operator, "along", x, projection)
    expected.backward()

    size_b = float(b.detach().norm())
    size_a = 1.0 if a is None else float(a.detach().norm())
    factor = RELATIVE[dtype] * 4 * max(1.0, free)
    close(found.value.sum(), expected.detach(), dtype, factor * size_b**2 * size_a**2)
    close(found.b, b.grad, dtype, factor * size_b * size_a**2)
    if a is not None:
        assert found.a is not None
        close(found.a, a.grad, dtype, factor * size_b**2 * size_a)


@pytest.mark.parametrize("operator", PROJECTORS)
def test_one_weight_on_both_parts_is_the_plain_norm(operator: Operator) -> None:
    torch.manual_seed(0)
    left, sigma, right, norm = factors(3, 9, 7, 2)
    projection = Projection(left, right, operators.eigenvalues(operator, sigma, norm))
    b, a = torch.randn(3, 9, 2).double(), torch.randn(3, 2, 7).double()
    total = operators.along(b, a, projection).value.sum()
    total = total if operator == "direction_global" else None
    found = operators.penalty(operator, "off", b, a, projection, total, 1.0)
    plain = operators.energy(b, a)
    torch.testing.assert_close(found.value.sum(), plain.value.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.b, plain.b, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found.a, plain.a, rtol=1e-10, atol=1e-10)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=8))
def test_weights_are_shares_of_mean_one(norms: list[float]) -> None:
    given_norms = torch.tensor(norms, dtype=torch.float64)
    for kind in LAYER_WEIGHTS:
        found = operators.module_weights(kind, given_norms)
        assert float(found.mean()) == pytest.approx(1)
        power = {"none": 0, "norm": 1, "energy": 2}[kind]
        expected = given_norms**power / (given_norms**power).mean()
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_weighted_multiplies_value_and_gradients_of_its_module_alone() -> None:
    torch.manual_seed(0)
    b, a = torch.randn(2, 5, 2).double(), torch.randn(2, 2, 4).double()
    plain = operators.energy(b, a)
    found = operators.weighted(plain, torch.tensor([3.0, 0.5]).double())
    assert found.a is not None
    assert plain.a is not None
    for at, weight in enumerate((3.0, 0.5)):
        torch.testing.assert_close(found.value[at], weight * plain.value[at])
        torch.testing.assert_close(found.b[at], weight * plain.b[at])
        torch.testing.assert_close(found.a[at], weight * plain.a[at])
    assert operators.weighted(operators.energy(b, None), torch.ones(2).double()).a is None
