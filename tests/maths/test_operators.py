"""Every operator and side against the dense formula and autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths import operators
from anchortune.maths.operators import OPERATORS, Operator, Projection, Side

CASES = [(o, s) for o in OPERATORS for s in ("off", "along") if (o, s) != ("none", "along")]
RELATIVE = {torch.float64: 4e-15, torch.float32: 2e-6}
"""About 17 units of rounding of each; see the property test for what they are relative to."""


def factors(n: int, d_out: int, d_in: int, k: int) -> tuple[torch.Tensor, ...]:
    delta = torch.randn(n, d_out, d_in, dtype=torch.float64)
    left, sigma, right = torch.linalg.svd(delta, full_matrices=False)
    return left[:, :, :k], sigma[:, :k], right.mT[:, :, :k], delta.flatten(1).norm(dim=1)


def dense_penalty(
    operator: Operator, side: Side, x: torch.Tensor, projection: Projection
) -> torch.Tensor:
    """The formulas of the method as they are written, every matrix formed."""
    left, right, weight = projection
    core = torch.diag_embed(weight)
    if operator in ("gram", "subspace"):
        kept = left @ core @ left.mT @ x
    elif operator == "subspace2":
        kept = left @ left.mT @ x @ right @ right.mT
    elif operator == "direction":
        unit = left @ core @ right.mT
        kept = (x * unit).sum(dim=(1, 2), keepdim=True) * unit
    elif operator == "direction_global":
        unit = left @ core @ right.mT
        kept = (x * unit).sum() * unit
    else:
        kept = torch.zeros_like(x)
    return (x - kept if side == "off" else kept).square().sum()


@pytest.mark.parametrize(("operator", "side"), CASES)
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    n=st.integers(1, 3),
    d_out=st.integers(2, 11),
    d_in=st.integers(2, 11),
    r=st.integers(1, 5),
    k=st.integers(1, 11),
    seed=st.integers(0, 2**31),
)
def test_value_and_gradients_equal_dense_formula_and_autograd(
    operator: Operator,
    side: Side,
    full: bool,
    dtype: torch.dtype,
    n: int,
    d_out: int,
    d_in: int,
    r: int,
    k: int,
    seed: int,
) -> None:
    """The dense formula is always in float64; ``dtype`` is that of the function's inputs.

    The relative bound is ``RELATIVE[dtype]`` of ``(1 + c)²·‖B‖²·‖A‖²`` (c the largest eigenvalue,
    at least 1), with one factor ``‖B‖`` or ``‖A‖`` less for the gradients: what the terms that are
    summed may be, for R itself may be a small difference of them.
    """
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

    found = operators.penalty(operator, side, given_b, given_a, given_projection, total)
    expected = dense_penalty(operator, side, b if a is None else b @ a, projection)
    expected.backward()

    size_b = float(b.detach().norm())
    size_a = 1.0 if a is None else float(a.detach().norm())
    factor = RELATIVE[dtype] * (1 + max(1.0, float(projection.weight.max()))) ** 2
    close(found.value.sum(), expected.detach(), dtype, factor * size_b**2 * size_a**2)
    close(found.b, b.grad, dtype, factor * size_b * size_a**2)
    if a is not None:
        assert found.a is not None
        close(found.a, a.grad, dtype, factor * size_b**2 * size_a)


def close(
    found: torch.Tensor, expected: torch.Tensor | None, dtype: torch.dtype, bound: float
) -> None:
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


def test_shares_equal_their_definitions() -> None:
    torch.manual_seed(0)
    left, sigma, right, norm = factors(2, 7, 5, 3)
    unit = operators.eigenvalues("direction", sigma, norm)
    b, a = torch.randn(2, 7, 2).double(), torch.randn(2, 2, 5).double()
    x = b @ a
    dense = left @ torch.diag_embed(unit) @ right.mT
    for given_b, given_a in ((b, a), (x, None)):
        found = operators.shares(given_b, given_a, left, right, unit)
        torch.testing.assert_close(found.energy, x.square().sum(dim=(1, 2)))
        torch.testing.assert_close(found.inside, (left.mT @ x).square().sum(dim=(1, 2)))
        torch.testing.assert_close(found.along, (x * dense).sum(dim=(1, 2)))


def test_gram_eigenvalues_by_hand() -> None:
    sigma, norm = torch.tensor([[3.0, 4.0]]), torch.tensor([5.0])
    torch.testing.assert_close(
        operators.eigenvalues("gram", sigma, norm), torch.tensor([[9 / 5, 16 / 5]])
    )


def test_an_update_along_the_anchor_is_free_and_one_across_it_is_not() -> None:
    torch.manual_seed(1)
    left, sigma, right, norm = factors(1, 8, 6, 2)
    inside = left @ torch.randn(1, 2, 2).double()
    other = torch.linalg.qr(torch.cat([left, torch.randn(1, 8, 2).double()], dim=2))[0][:, :, 2:]
    a = torch.randn(1, 2, 6).double()
    projection = Projection(left, right, operators.eigenvalues("subspace", sigma, norm))
    free = operators.penalty("subspace", "off", inside, a, projection)
    punished = operators.penalty("subspace", "off", other, a, projection)
    assert float(free.value.sum()) < 1e-24
    torch.testing.assert_close(punished.value.sum(), (other @ a).square().sum())


def test_float32_stays_near_float64_where_nearly_all_of_the_update_is_inside() -> None:
    """The off part is summed from the residual itself, so little of it is lost to cancelling."""
    torch.manual_seed(2)
    left, sigma, right, norm = factors(1, 64, 48, 8)
    b = left @ torch.randn(1, 8, 4).double() + 1e-4 * torch.randn(1, 64, 4).double()
    a = torch.randn(1, 4, 48).double()
    for operator in ("subspace", "subspace2"):
        weight = operators.eigenvalues(operator, sigma, norm)
        exact = operators.penalty(operator, "off", b, a, Projection(left, right, weight))
        single = operators.penalty(
            operator,
            "off",
            b.float(),
            a.float(),
            Projection(left.float(), right.float(), weight.float()),
        )
        torch.testing.assert_close(single.value.double(), exact.value, rtol=1e-2, atol=0)
