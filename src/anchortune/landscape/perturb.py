"""A live model moved along directions in place, and put back bit by bit without a copy of it.

What floating-point subtraction gives back of ``W + αd̂`` is almost W. How far its bit pattern lies
from that of W is worked out while W is still at hand, and is nearly always a small whole number:
one byte a weight, and a short list of the exceptions.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import clean_name, match_name
from anchortune.defences.against import named
from anchortune.errors import AnchorError, EvaluationError
from anchortune.landscape.directions import Direction, Noise, Part
from anchortune.maths.factors import frobenius_norm
from anchortune.maths.lowrank import LowRank, add

Scale = Literal["layer", "whole"]
_BITS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_BLOCK = 1 << 22
"""Entries worked on at a time; a float32 block of them is 16 MiB."""


class Weight(NamedTuple):
    """A weight of a live model.

    Attributes:
        value: the tensor itself, as stored: (d_in, d_out) where ``transposed``.
        transposed: it is a ``Conv1D``'s.
    """

    value: Tensor
    transposed: bool

    @property
    def place(self) -> tuple[torch.device, int]:
        """What tied weights have in common."""
        return self.value.device, self.value.data_ptr()


class Moved(NamedTuple):
    """What was moved.

    Attributes:
        weights: tensors.
        entries: numbers in them.
        held_bytes: kept to put them back.
    """

    weights: int
    entries: int
    held_bytes: int


def weights_of(model: nn.Module, direction: Direction) -> dict[str, Weight]:
    """The model's weight for every module of a direction; of tied ones only the first.

    Raises:
        AnchorError: the model lacks one, it has another shape, or cannot be moved (quantised, on no
            device).
    """
    there = {
        clean_name(name): module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor)
    }
    pairs = {key: match_name(key, there) for key in direction.modules}
    missing = [key for key, name in pairs.items() if name is None]
    if missing:
        raise AnchorError(
            f"{len(missing)} of {len(pairs)} modules of direction {direction.name!r} are not in "
            f"the model ({named(missing)}): it is of another model, or this one still has an "
            "adapter, which has to be merged first."
        )
    found: dict[str, Weight] = {}
    places = set()
    for key, name in pairs.items():
        if name is None:
            continue
        weight = _weight(there[name], name, direction.modules[key].shape, direction.name)
        if weight.place not in places:
            places.add(weight.place)
            found[key] = weight
    return found


def _weight(module: nn.Module, name: str, shape: tuple[int, int], direction: str) -> Weight:
    value: Tensor = module.weight.detach()  # type: ignore[operator]
    if value.dtype not in _BITS or value.is_meta:
        kind = "on no device" if value.is_meta else f"stored as {value.dtype}"
        raise AnchorError(
            f"weight {name!r} is {kind} and cannot be moved: load the model unquantised, in "
            "float32, bfloat16 or float16."
        )
    transposed = type(module).__name__ == "Conv1D"
    if tuple(value.shape) != (shape[::-1] if transposed else shape):
        held = " × ".join(map(str, value.shape))
        raise AnchorError(
            f"weight {name!r} is {held} in the model but {shape[0]} × {shape[1]} in direction "
            f"{direction!r}: they are not of one family"
            "; give one of this model's."
        )
    return Weight(value, transposed)


def lengths(
    direction: Direction, weights: Mapping[str, Weight], scale: Scale = "layer"
) -> dict[str, float]:
    """What each matrix of a direction is multiplied by to make d̂, by module.

    Args:
        direction: D.
        weights: of the model where it is not moved, from ``weights_of``.
        scale: ``layer``: ``‖W‖_F / ‖D‖_F`` in each module (Peng et al., arXiv 2405.17374);
            ``whole``: ``1 / ‖D‖`` with D one vector over all modules.
    """
    norms = {key: direction.modules[key].norm() for key in weights}
    if scale == "whole":
        whole = math.hypot(*norms.values())
        return dict.fromkeys(weights, 1 / whole)
    return {key: frobenius_norm(weights[key].value) / norm for key, norm in norms.items()}


@contextlib.contextmanager
def moved(
    model: nn.Module, directions: Sequence[tuple[Direction, float]], scale: Scale = "layer"
) -> Iterator[Moved]:
    """Within the block ``W`` is ``W + Σ α d̂``; after it, whatever happened, W again bit by bit.

    The sum is worked out in float32 (float64 for float64 weights), a few rows at a time, and
    rounded once. Weights must not be changed otherwise within the block.

    Args:
        model: on its device, adapters merged.
        directions: each with its α; the lengths of all are those of the model as it is now.
        scale: of d̂, see ``lengths``.

    Yields:
        How much was moved.

    Raises:
        AnchorError: a direction does not fit the model.
        EvaluationError: at the end, a weight could not be put back, for it was changed within.
        ValueError: an α is not finite.
    """
    shifts: dict[tuple[torch.device, int], _Shift] = {}
    for direction, alpha in directions:
        if not math.isfinite(alpha):
            raise ValueError(f"α is a finite number, not {alpha}")
        weights = weights_of(model, direction)
        if alpha == 0:
            continue
        for key, length in lengths(direction, weights, scale).items():
            shift = shifts.setdefault(weights[key].place, _Shift(key, weights[key], [], []))
            shift.parts.append((direction.modules[key], alpha * length))
    done: list[_Shift] = []
    try:
        with torch.no_grad():
            for shift in shifts.values():
                done.append(shift)
                shift.apply()
        yield Moved(
            len(done),
            sum(shift.weight.value.numel() for shift in done),
            sum(block.held_bytes for shift in done for block in shift.blocks),
        )
    finally:
        with torch.no_grad():
            changed = [shift.name for shift in reversed(done) if not shift.undo()]
        if changed:
            raise EvaluationError(
                f"{len(changed)} weights did not come back as they were ({named(changed)}): "
                "something changed them while they were moved; load the model again."
            )


@dataclass
class _Block:
    """Some rows of a moved weight, and what leads back from them to the rows as they were.

    Attributes:
        rows: of the weight as stored, a view.
        small: bits of the original minus bits of the guess, int8, 0 for exceptions; None where
            ``kept`` is cheaper.
        places: of the exceptions.
        large: their differences.
        kept: the original's bits.
        total: sum of the original's bits, to tell that they came back.
        written: the rows are moved.
    """

    rows: Tensor
    small: Tensor | None
    places: Tensor
    large: Tensor
    kept: Tensor | None
    total: Tensor
    written: bool = False

    @property
    def held_bytes(self) -> int:
        held = (self.small, self.places, self.large, self.kept)
        return sum(part.numel() * part.element_size() for part in held if part is not None)


@dataclass
class _Shift:
    """All that one weight is moved by."""

    name: str
    weight: Weight
    parts: list[tuple[Part, float]]
    blocks: list[_Block]

    def apply(self) -> None:
        bits = _BITS[self.weight.value.dtype]
        step = self._step()
        for rows, first in self._rows():
            new = step(rows, first, 1.0)
            guess = step(new, first, -1.0)
            old = rows.view(bits)
            apart = old - guess.view(bits)  # it may wrap around, and so does the sum that undoes it
            fits = (apart >= -128) & (apart <= 127)
            places = (~fits).flatten().nonzero().flatten().to(torch.int32)
            large = apart.flatten()[places.long()]
            total = old.sum(dtype=torch.int64)
            per = places.element_size() + large.element_size()
            if old.numel() + places.numel() * per < old.numel() * old.element_size():
                block = _Block(rows, (apart * fits).to(torch.int8), places, large, None, total)
            else:
                block = _Block(rows, None, places[:0], large[:0], old.clone(), total)
            self.blocks.append(block)
            # Were it cut off between these lines, the copy would tell whether it took place.
            block.kept, kept = old.clone(), block.kept
            block.written = True
            rows.copy_(new)
            block.kept = kept

    def undo(self) -> bool:
        """Whether every row came back."""
        bits = _BITS[self.weight.value.dtype]
        step = self._step()
        whole = True
        for place, (_, first) in enumerate(self._rows()):
            if place >= len(self.blocks):
                break
            block = self.blocks[place]
            now = block.rows.view(bits)
            if not block.written:
                continue
            if block.kept is not None:
                now.copy_(block.kept)
            elif block.small is not None:
                old = step(block.rows, first, -1.0).view(bits) + block.small.to(bits)
                old.view(-1)[block.places.long()] += block.large
                now.copy_(old)
            block.written = False
            whole = whole and bool(now.sum(dtype=torch.int64) == block.total)
        self.blocks.clear()
        return whole

    def _rows(self) -> Iterator[tuple[Tensor, int]]:
        """A few rows at a time, and the number of the first."""
        value = self.weight.value
        count = max(1, _BLOCK // max(1, value.shape[1]))
        for first in range(0, value.shape[0], count):
            yield value[first : first + count], first

    def _step(self) -> _Step:
        """What adds the shift, times a sign, to some rows; in the weight's dtype, a new tensor."""
        value, transposed = self.weight
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        low: list[LowRank] = []
        noise = None
        for part, factor in self.parts:
            if isinstance(part, Noise):
                dense = part.dense(value.device).to(wide) * factor
                dense = dense.T if transposed else dense
                noise = dense if noise is None else noise + dense
            else:
                left, right = (side.to(value.device, wide) for side in (part.left, part.right))
                low.append(
                    LowRank(right.T * factor, left.T)
                    if transposed
                    else LowRank(left * factor, right)
                )
        return _Step(add(low) if low else None, noise, wide)


class _Step(NamedTuple):
    low: LowRank | None
    noise: Tensor | None
    wide: torch.dtype

    def __call__(self, rows: Tensor, first: int, sign: float) -> Tensor:
        with torch.autocast(rows.device.type, enabled=False):
            # Laid out alike each time, or the products might differ in their last bits.
            found = rows.to(self.wide, copy=True, memory_format=torch.contiguous_format)
            there = slice(first, first + rows.shape[0])
            if self.noise is not None:
                found.add_(self.noise[there], alpha=sign)
            if self.low is not None:
                found.addmm_(self.low.left[there], self.low.right, alpha=sign)
            return found.to(rows.dtype)
