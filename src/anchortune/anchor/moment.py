"""A model's update at one moment: parameters are read once, and each result is computed once."""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor, nn

from anchortune.anchor.stacks import Pair, Stack, parameters_of
from anchortune.maths import operators
from anchortune.maths.operators import Gradients, Operator, Shares, Side


class Moment:
    """What the penalty needs of the parameters as they are now.

    Nothing in it leaves the device but ``sums``, which a step calls only where λ is steered.
    """

    def __init__(self, operator: Operator, stacks: list[Stack], pairs: list[Pair]) -> None:
        """Reads the update.

        Args:
            operator: what it is measured against.
            stacks: the bound modules.
            pairs: the parameters of every one of them, in the order of the binding.
        """
        self._operator = operator
        self._stacks = stacks
        self._pairs = [[pairs[place] for place in stack.places] for stack in stacks]
        self._found: dict[tuple[Side, float], list[Gradients]] = {}
        self._inner: list[Gradients] = []
        with self._no_autocast():
            self._updates = [
                stack.updates(mine) for stack, mine in zip(stacks, self._pairs, strict=True)
            ]
            self._total = self._total_along()

    def parameters(self) -> list[nn.Parameter]:
        """The parameters in the order of ``gradients``."""
        return [parameter for pairs in self._pairs for parameter in parameters_of(pairs)]

    def value(self, side: Side, free: float = 0.0) -> Tensor:
        """R with the modules' weights, a scalar on the first stack's device; see ``gradients``."""
        value = self._stacks[0].scale.new_zeros(())
        for stack, result in zip(self._stacks, self.results(side, free), strict=True):
            here = result.value if stack.weights is None else result.value * stack.weights
            value = value + here.sum().to(value.device, value.dtype)
        return value

    def gradients(self, side: Side, free: float = 0.0, times: float | Tensor = 1.0) -> list[Tensor]:
        """``times · ∇R`` of each of ``parameters()``, in its dtype.

        Args:
            side: the part that is penalised.
            free: on the off side, the weight of the part that is inside.
            times: a factor, applied before rounding.
        """
        return self.spread(self.results(side, free), times)

    def spread(self, results: list[Gradients], times: float | Tensor = 1.0) -> list[Tensor]:
        """``gradients`` from the ``results`` of each stack, which autograd may have held."""
        found: list[Tensor] = []
        with self._no_autocast():
            for stack, pairs, result in zip(self._stacks, self._pairs, results, strict=True):
                if stack.weights is not None:
                    result = operators.weighted(result, stack.weights)
                found.extend(stack.to_parameters(result, pairs, times))
        return found

    def sums(self, side: Side) -> list[list[float]]:
        """Of each stack: penalty, energy, and its parts inside, along +dW and along −dW.

        Without the modules' weights. One copy from the device for all.
        """
        rows = []
        with self._no_autocast():
            for result, part in zip(self.results(side), self._shares(), strict=True):
                along = part.along.sign() * part.along.square()
                forwards, backwards = along.clamp(min=0), (-along).clamp(min=0)
                numbers = (result.value, part.energy, part.inside, forwards, backwards)
                rows.append(torch.stack([number.sum() for number in numbers]))
        first = rows[0]
        found: list[list[float]] = torch.stack(
            [row.to(first.device, torch.float64) for row in rows]
        ).tolist()
        return found

    def results(self, side: Side, free: float = 0.0) -> list[Gradients]:
        """Value and gradients of each stack, without the modules' weights; see ``gradients``."""
        if (side, free) not in self._found:
            with self._no_autocast():
                self._found[side, free] = self._computed(side, free)
        return self._found[side, free]

    def let_go(self) -> None:
        """Forgets what was read and computed; ``parameters`` and ``spread`` work on."""
        self._updates, self._found, self._inner = [], {}, []

    def _computed(self, side: Side, free: float) -> list[Gradients]:
        return [
            operators.penalty(
                self._operator, side, b, a, stack.projection, self._total_on(b), free, inner
            )
            for stack, (b, a), inner in zip(
                self._stacks,
                self._updates,
                self._inner or repeat(None),
                strict=False,  # endless
            )
        ]

    def _shares(self) -> list[Shares]:
        return [
            operators.shares(b, a, stack.projection.left, stack.projection.right, stack.unit)
            for stack, (b, a) in zip(self._stacks, self._updates, strict=True)
        ]

    def _alongs(self) -> list[Gradients]:
        return [
            operators.along(b, a, stack.projection)
            for stack, (b, a) in zip(self._stacks, self._updates, strict=True)
        ]

    def _total_along(self) -> Tensor | None:
        if self._operator != "direction_global":
            return None
        total = self._stacks[0].scale.new_zeros(())
        self._inner = self._alongs()
        for found in self._inner:
            here = found.value.sum()
            total = total + here.to(total.device, total.dtype)
        return total

    def _total_on(self, like: Tensor) -> Tensor | None:
        return None if self._total is None else self._total.to(like.device, like.dtype)

    def _no_autocast(self) -> torch.autocast:
        return torch.autocast(self._stacks[0].scale.device.type, enabled=False)
