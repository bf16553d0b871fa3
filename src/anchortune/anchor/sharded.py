"""Bound modules whose weights are DTensors: each process computes with its own rows alone.

FSDP2 (``torch.distributed.fsdp.fully_shard``) cuts every parameter along its first dimension: B and
a full weight by the rows of d_out, A by its r rows. Nothing is gathered. A's rows are exchanged for
columns of d_in (an all-to-all, and back for its gradient), the anchor's factors are cut by the same
rows and columns, and what is summed over the processes are products of size k × r and r × r (see
``anchortune.maths.sharded``). Modules of all shapes share each exchange, so a step with LoRA takes
two exchanges and at most two sums (three for ``direction_global``), whatever the number of layers.

In full-parameter training the products are of size k × d_in, for there is no r.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from anchortune.anchor.binding import Loose, Target
from anchortune.anchor.group import Group
from anchortune.anchor.moment import Moment
from anchortune.anchor.stacks import Pair, Stack, build_stacks, parameters_of
from anchortune.errors import AnchorError
from anchortune.maths import sharded
from anchortune.maths.operators import Gradients, LayerWeights, Operator, Shares, Side
from anchortune.maths.sharded import Cut, Rounds, bounds

T = TypeVar("T")


class Shards:
    """The bound modules of a sharded model, as this process holds them.

    Attributes:
        group: the processes that share the model out.
        targets: those that were given, keeping of their starts this process's part alone.
        stacks: the targets grouped by shape, with this process's rows and columns of the factors
            and starts.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        operator: Operator,
        rank: int | None,
        scaled: bool,
        layer_weights: LayerWeights,
    ) -> None:
        """Cuts the anchor's factors, and where the update is measured from, as the weights are.

        Raises:
            AnchorError: the weights are sharded in a way that the penalty does not follow.
        """
        plain = [t.label for t in targets if any(not _is_cut(p) for p in t.parameters())]
        if plain:
            raise AnchorError(
                f"some adapted weights are sharded (DTensor) and those of {plain[0]} are not: "
                "shard all, and call the penalty before the forward pass or after backward"
            )
        self.group = Group(_dtensor(targets[0].parameters()[0]), targets[0].label)
        for target in targets:
            for parameter in target.parameters():
                if parameter is not None:
                    self._check(_dtensor(parameter), target.label)
        self.targets = [self._held(target) for target in targets]
        local = [self._local(target) for target in self.targets]
        self.stacks = build_stacks(local, operator, rank, scaled, layer_weights)

    def _check(self, parameter: DTensor, label: str) -> None:
        group = Group(parameter, label)
        length = bounds(parameter.shape[0], group.world)[group.rank][1]
        if group.members != self.group.members or parameter.to_local().shape[0] != length:
            raise AnchorError(
                f"{label} is sharded over other processes, or in other parts, than the first "
                "adapted module: shard all of them with one mesh"
            )

    def _held(self, target: Target) -> Target:
        b, a = target.start_b, target.start_a
        return replace(
            target,
            start_b=None if b is None else self.group.held(b, 0),
            start_a=None if a is None else self.group.held(a, 1),
        )

    def _local(self, target: Target) -> Target:
        group, factors = self.group, target.factors
        start_b, start_a = target.start_b, target.start_a
        # Of a full weight the rows alone are cut, and the anchor has it in the same orientation.
        full = target.adapter is None
        right = factors.right if full else group.part(factors.right, 0)
        return replace(
            target,
            factors=replace(factors, left=group.part(factors.left, 0), right=right),
            start_b=None if start_b is None else group.part(start_b, 0),
            start_a=None if start_a is None else group.part(start_a, 1),
        )

    def moment(self, operator: Operator, pairs: list[Pair]) -> ShardedMoment:
        """The update as it is now; see ``ShardedMoment``."""
        return ShardedMoment(operator, self, pairs)

    def moved(self, loose: Sequence[Loose]) -> float:
        """``Σ ‖Δ‖²`` of trained parameters that no penalty holds, of which some are sharded."""
        whole = 0.0
        parts: dict[tuple[int, ...], tuple[Group, list[Tensor]]] = {}
        for one in loose:
            now = cast(Tensor, getattr(one.module, one.attribute)).detach()
            if not isinstance(now, DTensor):
                whole += one.moved()
                continue
            group = Group(now, one.name)
            start = group.part(one.start, 0).to(now.device)
            apart = (now.to_local().float() - start.float()).square().sum()
            parts.setdefault(tuple(group.members), (group, []))[1].append(apart)
        for group, found in parts.values():
            [sums] = group.summed([torch.stack(found)])
            whole += float(sums.sum())
        return whole


class ShardedMoment(Moment):
    """The update at one moment, of which this process has its rows of B and columns of A.

    Gradients are DTensors, placed as the parameters are; values are those of the whole model.
    Every process of the group must ask for the same things in the same order.
    """

    def __init__(self, operator: Operator, shards: Shards, pairs: list[Pair]) -> None:
        """Reads the update, and exchanges A's rows for columns.

        Args:
            operator: what it is measured against.
            shards: the bound modules.
            pairs: the parameters of every one of them, in the order of the binding.
        """
        self._group = shards.group
        self._whole = [[pairs[place] for place in stack.places] for stack in shards.stacks]
        local = [(_local(b), None if a is None else _local(a)) for b, a in pairs]
        rows = [
            [a for _, a in (local[place] for place in stack.places) if a is not None]
            for stack in shards.stacks
        ]
        columns = self._exchanged(rows, split=2, join=1)
        for stack, found in zip(shards.stacks, columns, strict=True):
            for place, a in zip(stack.places, found, strict=False):  # none of full weights
                local[place] = (local[place][0], a)
        super().__init__(operator, shards.stacks, cast(list[Pair], local))

    def parameters(self) -> list[nn.Parameter]:
        """The sharded parameters in the order of ``gradients``."""
        return [parameter for pairs in self._whole for parameter in parameters_of(pairs)]

    def spread(self, results: list[Gradients], times: float | Tensor = 1.0) -> list[Tensor]:
        """As ``Moment.spread``, as DTensors in the placements of ``parameters()``."""
        flat = super().spread(results, times)
        outer: list[list[Tensor]] = []
        columns: list[list[Tensor]] = []
        for pairs in self._whole:
            count, flat_a = len(pairs), pairs[0][1] is not None
            outer.append(flat[:count])
            columns.append(flat[count : 2 * count] if flat_a else [])
            flat = flat[(2 if flat_a else 1) * count :]
        rows = self._exchanged(columns, split=1, join=2)
        found = [g for b, a in zip(outer, rows, strict=True) for g in (*b, *a)]
        return [like(p, g) for p, g in zip(self.parameters(), found, strict=True)]

    def _exchanged(self, stacks: list[list[Tensor]], split: int, join: int) -> list[list[Tensor]]:
        """A's rows for columns, or columns for rows, of all stacks at once; [] of full weights."""
        totals = [a.shape[join - 1] for pairs in self._whole for _, a in pairs[:1] if a is not None]
        found = iter(
            self._group.exchanged([torch.stack(a) for a in stacks if a], totals, split, join)
        )
        return [list(next(found).unbind()) if a else [] for a in stacks]

    def _computed(self, side: Side, free: float) -> list[Gradients]:
        return self._together(
            lambda stack, b, a: sharded.penalty(
                self._operator, side, b, a, stack.projection, self._total_on(b), free, _cut(stack)
            )
        )

    def _shares(self) -> list[Shares]:
        return self._together(
            lambda stack, b, a: sharded.shares(
                b, a, stack.projection.left, stack.projection.right, stack.unit, _cut(stack)
            )
        )

    def _alongs(self) -> list[Gradients]:
        return self._together(lambda stack, b, a: sharded.along(b, a, stack.projection))

    def _together(self, make: Callable[[Stack, Tensor, Tensor | None], Rounds[T]]) -> list[T]:
        """What ``make`` makes of every stack, with one sum over the processes a round for all."""
        rounds = [
            make(stack, b, a) for stack, (b, a) in zip(self._stacks, self._updates, strict=True)
        ]
        return sharded.together(rounds, self._group.summed)


def like(parameter: Tensor, local: Tensor) -> Tensor:
    """This process's part as a DTensor that is placed as ``parameter`` is."""
    placed = _dtensor(parameter)
    return DTensor.from_local(
        local,
        placed.device_mesh,
        placed.placements,
        run_check=False,
        shape=placed.shape,
        stride=placed.stride(),
    )


def _is_cut(parameter: nn.Parameter | None) -> bool:
    return parameter is None or isinstance(parameter.data, DTensor)


def _dtensor(tensor: Tensor) -> DTensor:
    return cast(DTensor, tensor)


def _local(parameter: nn.Parameter) -> Tensor:
    return _dtensor(parameter.detach()).to_local()


def _cut(stack: Stack) -> Cut:
    """Rows of the stored weight are columns of the update where it is stored transposed."""
    return "columns" if stack.targets[0].stored_transposed else "rows"
