"""Every operator on cut rows and columns against the same on the whole, in float64.

The processes of a group are generators run in step here: their terms are summed as an all-reduce
would. ``tests/anchor/test_sharded.py`` has real processes.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths import operators, sharded
from anchortune.maths.operators import PROJECTORS, Projection
from tests.maths.test_operators import CASES, factors

settings_of_all = settings(max_examples=30, deadline=None, derandomize=True)
shapes = given(
    world=st.integers(1, 4),
    n=st.integers(1, 3),
    d_out=st.integers(2, 9),
    d_in=st.integers(2, 9),
    r=st.integers(1, 4),
    k=st.integers(1, 9),
    kind=st.sampled_from(["lora", "rows", "columns"]),
    free=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)


class Case:
    """A random stack, whole and as each process of a group holds it."""

    def __init__(
        self, world: int, n: int, d_out: int, d_in: int, r: int, k: int, kind: str, seed: int
    ) -> None:
        torch.manual_seed(seed)
        self.full, self.kind, self.world = kind != "lora", kind, world
        self.left, self.sigma, self.right, self.norm = factors(n, d_out, d_in, min(k, d_out, d_in))
        self.b = torch.randn(n, d_out, d_in if self.full else r, dtype=torch.float64)
        self.a = None if self.full else torch.randn(n, r, d_in, dtype=torch.float64)
        self.rows = sharded.bounds(d_out, world)
        self.columns = sharded.bounds(d_in, world)

    def parts(
        self, rank: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, ...]]:
        """(B, A, (left, right)) of one process."""
        left, right = self.left, self.right
        if self.kind != "columns":
            left = left.narrow(1, *self.rows[rank])
        if self.kind != "rows":
            right = right.narrow(1, *self.columns[rank])
        if self.kind == "columns":
            return self.b.narrow(2, *self.columns[rank]), None, (left, right)
        a = None if self.a is None else self.a.narrow(2, *self.columns[rank])
        return self.b.narrow(1, *self.rows[rank]), a, (left, right)

    @property
    def cut(self) -> sharded.Cut:
        return "columns" if self.kind == "columns" else "rows"

    def summed(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """What every process gets of the terms of all, which come process by process."""
        each = len(parts) // self.world
        sums = [torch.stack(parts[i::each]).sum(0) for i in range(each)]
        return sums * self.world


@settings_of_all
@shapes
def test_value_and_gradients_of_the_parts_are_those_of_the_whole(
    world: int, n: int, d_out: int, d_in: int, r: int, k: int, kind: str, free: float, seed: int
) -> None:
    case = Case(world, n, d_out, d_in, r, k, kind, seed)
    size = float(case.b.norm()) * (1.0 if case.a is None else float(case.a.norm()))
    for operator, side in CASES:
        weight = operators.eigenvalues(operator, case.sigma, case.norm)
        whole = Projection(case.left, case.right, weight)
        bounded = free if side == "off" and operator in PROJECTORS else 0.0
        total = None
        if operator == "direction_global":
            total = operators.along(case.b, case.a, whole).value.sum()
        expected = operators.penalty(operator, side, case.b, case.a, whole, total, bounded)
        rounds = []
        for rank in range(world):
            b, a, (left, right) = case.parts(rank)
            projection = Projection(left, right, weight)
            rounds.append(
                sharded.penalty(operator, side, b, a, projection, total, bounded, case.cut)
            )
        found = sharded.together(rounds, case.summed)
        # Both sum the same numbers in another order: see test_operators for the bound.
        bound = 1e-13 * (1 + max(1.0, float(weight.max()))) ** 2 * max(size, 1.0) ** 2
        for part in found:
            torch.testing.assert_close(part.value, expected.value, rtol=0, atol=bound)
        joined = torch.cat([part.b for part in found], dim=2 if kind == "columns" else 1)
        torch.testing.assert_close(joined, expected.b, rtol=0, atol=bound)
        if expected.a is not None:
            joined = torch.cat([part.a for part in found if part.a is not None], dim=2)
            torch.testing.assert_close(joined, expected.a, rtol=0, atol=bound)


@settings_of_all
@shapes
def test_shares_of_the_parts_are_those_of_the_whole(
    world: int, n: int, d_out: int, d_in: int, r: int, k: int, kind: str, free: float, seed: int
) -> None:
    case = Case(world, n, d_out, d_in, r, k, kind, seed)
    unit = operators.eigenvalues("direction", case.sigma, case.norm)
    expected = operators.shares(case.b, case.a, case.left, case.right, unit)
    parts = [case.parts(rank) for rank in range(world)]
    found = sharded.together(
        [sharded.shares(b, a, left, right, unit, case.cut) for b, a, (left, right) in parts],
        case.summed,
    )
    for part in found:
        for mine, theirs in zip(part, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_stacks_share_one_round_of_sums() -> None:
    """Whatever the number of stacks, and also where one of them needs fewer rounds."""
    calls: list[int] = []

    def reduce(parts: list[torch.Tensor]) -> list[torch.Tensor]:
        calls.append(len(parts))
        return parts

    def rounds(seed: int, operator: operators.Operator, side: operators.Side) -> object:
        case = Case(1, 2, 5, 4, 2, 2, "lora", seed)
        weight = operators.eigenvalues(operator, case.sigma, case.norm)
        b, a, (left, right) = case.parts(0)
        return sharded.penalty(operator, side, b, a, Projection(left, right, weight))

    sharded.together([rounds(0, "subspace", "off"), rounds(1, "subspace", "along")], reduce)  # type: ignore[list-item]
    assert calls == [4, 1]
    calls.clear()
    assert sharded.together([], reduce) == []
    assert not calls


def test_bounds_are_those_of_chunk() -> None:
    for total in range(9):
        for world in range(1, 6):
            chunks = [c.tolist() for c in torch.arange(total).chunk(world)] if total else []
            chunks += [[]] * (world - len(chunks))
            found = [
                list(range(start, start + size)) for start, size in sharded.bounds(total, world)
            ]
            assert found == chunks
