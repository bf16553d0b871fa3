"""The closed forms of ``operators`` where every process holds only its own rows and columns.

Formulas, shapes and names are those of ``anchortune.maths.operators``. Here ``B`` and ``left`` are
cut by the same rows of d_out, and ``A`` and ``right`` by the same columns of d_in, so nothing of
size d is ever needed whole: what the processes must add up are the small products ``UᵀB`` (k × r),
``A·V`` (r × k), ``BᵀB``, ``AAᵀ`` and ``EᵀE`` (r × r). A full-parameter update X (``a`` is None) is
cut by rows (``left`` with it, ``right`` whole) or by columns (``right`` with it, ``left`` whole).

Each function is a generator: it yields tensors that are to be summed over the processes, is sent
the sums, and returns gradients that are this process's part and values that are the whole. How the
sums are made is the caller's business, and ``together`` makes one round of many such functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor

from anchortune.maths.operators import (
    Gradients,
    Operator,
    Projection,
    Shares,
    Side,
    by_direction,
    dot,
)

T = TypeVar("T")
Rounds = Generator[list[Tensor], list[Tensor], T]
"""Yields this process's terms of sums, is sent the sums, returns a T."""
Reduce = Callable[[list[Tensor]], list[Tensor]]
"""Tensors to their sums over the processes, in the same order and shapes."""
Cut = Literal["rows", "columns"]
"""What a process holds of a full-parameter update."""


def bounds(total: int, world: int) -> list[tuple[int, int]]:
    """(start, length) of each process's part of ``total`` rows, as ``torch.chunk`` cuts them.

    All parts are of one length but for the last that has any; those after it are empty.
    """
    size = -(-total // world)
    starts = [min(index * size, total) for index in range(world)]
    return [(start, min(size, total - start)) for start in starts]


def together(rounds: Sequence[Rounds[T]], reduce: Reduce) -> list[T]:
    """Runs all in step, so that each round of sums of all of them is one call of ``reduce``."""
    results: dict[int, T] = {}
    sent: dict[int, list[Tensor] | None] = dict.fromkeys(range(len(rounds)))
    while sent:
        asked: dict[int, list[Tensor]] = {}
        for index, sums in sent.items():
            try:
                asked[index] = rounds[index].send(sums)  # type: ignore[arg-type]  # None starts it
            except StopIteration as done:
                results[index] = done.value
        found = iter(reduce([part for parts in asked.values() for part in parts]) if asked else [])
        sent = {index: [next(found) for _ in parts] for index, parts in asked.items()}
    return [results[index] for index in range(len(rounds))]


def _squares(matrix: Tensor) -> Tensor:
    return matrix.square().sum(dim=(-2, -1))


def energy(b: Tensor, a: Tensor | None) -> Rounds[Gradients]:
    """``‖X‖²_F``; see ``operators.energy``."""
    if a is None:
        [value] = yield [_squares(b)]
        return Gradients(value, 2 * b, None)
    gram_b, gram_a = yield [b.mT @ b, a @ a.mT]
    return Gradients(dot(gram_b, gram_a), 2 * b @ gram_a, 2 * gram_b @ a)


def one_sided(
    b: Tensor, a: Tensor | None, projection: Projection, side: Side, free: float, cut: Cut
) -> Rounds[Gradients]:
    """The penalty of ``gram`` and ``subspace``; see ``operators.one_sided``."""
    left, c = projection.left, projection.weight.unsqueeze(-1)
    inside, gram_a = left.mT @ b, None
    if a is not None:
        inside, gram_a = yield [inside, a @ a.mT]
    elif cut == "rows":
        [inside] = yield [inside]
    if side == "along":
        kept = c * inside
        if a is not None and gram_a is not None:
            gram = kept.mT @ kept
            lift = left @ (2 * c * kept @ gram_a)
            return Gradients(dot(gram, gram_a), lift, 2 * gram @ a)
        value = _squares(kept)
        if cut == "columns":
            [value] = yield [value]
        return Gradients(value, left @ (2 * c * kept), None)
    if free:
        c = c * (1 - math.sqrt(free))
    outside = b - left @ (c * inside)
    lift = 2 * (outside - left @ (c * (1 - c) * inside))
    if a is None or gram_a is None:
        [value] = yield [_squares(outside)]
        return Gradients(value, lift, None)
    [gram] = yield [outside.mT @ outside]
    return Gradients(dot(gram, gram_a), lift @ gram_a, 2 * gram @ a)


def two_sided(
    b: Tensor, a: Tensor | None, projection: Projection, side: Side, free: float, cut: Cut
) -> Rounds[Gradients]:
    """The penalty of ``subspace2``; see ``operators.two_sided``."""
    left, right = projection.left, projection.right
    inside = left.mT @ b
    if a is None:
        return (yield from _two_sided_whole(b, inside, projection, side, free, cut))
    inside, core_a, gram_a = yield [inside, a @ right, a @ a.mT]
    gram_inside, gram_core = inside.mT @ inside, core_a @ core_a.mT
    kept_a = core_a @ right.mT
    if side == "along":
        return Gradients(
            dot(gram_inside, gram_core),
            2 * left @ (inside @ gram_core),
            2 * gram_inside @ kept_a,
        )
    outside, leak_a = b - left @ inside, a - kept_a
    gram_outside, gram_leak = yield [outside.mT @ outside, leak_a @ leak_a.mT]
    if free:
        gram_leak, leak_a = gram_leak + free * gram_core, leak_a + free * kept_a
    return Gradients(
        dot(gram_outside, gram_a) + dot(gram_inside, gram_leak),
        2 * (outside @ gram_a + left @ (inside @ gram_leak)),
        2 * (gram_outside @ a + gram_inside @ leak_a),
    )


def _two_sided_whole(
    b: Tensor, inside: Tensor, projection: Projection, side: Side, free: float, cut: Cut
) -> Rounds[Gradients]:
    """The same for a full-parameter update, whose ``UᵀX`` (k × d_in) is summed or stays cut."""
    left, right = projection.left, projection.right
    if cut == "rows":
        [inside] = yield [inside]
        core = inside @ right
    else:
        [core] = yield [inside @ right]
    kept = core @ right.mT
    if side == "along":
        return Gradients(_squares(core), 2 * left @ kept, None)
    outside, leak = b - left @ inside, inside - kept
    value, apart = _squares(outside), _squares(leak)
    if cut == "rows":  # every process has the whole leak: it counts once
        [value] = yield [value]
    else:
        value, apart = yield [value, apart]
    value = value + apart
    if free:
        value, leak = value + free * _squares(core), leak + free * kept
    return Gradients(value, 2 * (outside + left @ leak), None)


def along(b: Tensor, a: Tensor | None, projection: Projection) -> Rounds[Gradients]:
    """``⟨X, D⟩``; see ``operators.along``."""
    left, right = projection.left, projection.right
    weighted = left * projection.weight.unsqueeze(-2)
    if a is None:
        [value] = yield [dot((weighted.mT @ b).mT, right)]
        return Gradients(value, weighted @ right.mT, None)
    inside, core_a = yield [weighted.mT @ b, a @ right]
    return Gradients(dot(inside.mT, core_a), weighted @ core_a.mT, inside.mT @ right.mT)


def directional(
    b: Tensor,
    a: Tensor | None,
    projection: Projection,
    side: Side,
    total: Tensor | None,
    free: float,
) -> Rounds[Gradients]:
    """The penalty of ``direction``; see ``operators.directional``."""
    inner = yield from along(b, a, projection)
    whole = None if side == "along" else (yield from energy(b, a))
    return by_direction(inner, whole, total, free)


def penalty(
    operator: Operator,
    side: Side,
    b: Tensor,
    a: Tensor | None,
    projection: Projection,
    total: Tensor | None = None,
    free: float = 0.0,
    cut: Cut = "rows",
) -> Rounds[Gradients]:
    """Value and gradients of the penalty that ``operator`` and ``side`` name.

    Args:
        operator: one of ``OPERATORS``.
        side: one of ``SIDES``; ``none`` has no along side (it is 0).
        b: this process's rows of ``s·B`` (n, d_out_i, r), or its part of the full updates X.
        a: its columns of ``A`` (n, r, d_in_i), or None for full updates.
        projection: the factors' rows that belong to them.
        total: see ``operators.directional``; summed over the processes already.
        free: see ``operators.penalty``.
        cut: what of a full update this process holds; of no meaning beside an ``a``.
    """
    if operator in ("gram", "subspace"):
        return one_sided(b, a, projection, side, free, cut)
    if operator == "subspace2":
        return two_sided(b, a, projection, side, free, cut)
    if operator in ("direction", "direction_global"):
        return directional(b, a, projection, side, total, free)
    return _nothing(b, a) if side == "along" else energy(b, a)


def _nothing(b: Tensor, a: Tensor | None) -> Rounds[Gradients]:
    """The along side of C = 0, without a round."""
    yield from ()
    zero = torch.zeros_like
    return Gradients(b.new_zeros(b.shape[0]), zero(b), None if a is None else zero(a))


def shares(
    b: Tensor, a: Tensor | None, left: Tensor, right: Tensor, unit: Tensor, cut: Cut = "rows"
) -> Rounds[Shares]:
    """Energy, its part inside the left subspace, and ``⟨X, D⟩``; see ``operators.shares``."""
    inside = left.mT @ b
    if a is not None:
        inside, core_a, gram_b, gram_a = yield [inside, a @ right, b.mT @ b, a @ a.mT]
        return Shares(
            dot(gram_b, gram_a),
            dot(inside.mT @ inside, gram_a),
            dot(inside.mT, core_a * unit.unsqueeze(-2)),
        )
    scaled = right * unit.unsqueeze(-2)
    if cut == "rows":
        inside, whole = yield [inside, _squares(b)]
        return Shares(whole, _squares(inside), dot(inside.mT, scaled))
    found = yield [_squares(b), _squares(inside), dot(inside.mT, scaled)]
    return Shares(*found)
