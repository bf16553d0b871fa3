"""The processes that share a model out in shards, and the few exchanges between them.

Meshes may have replicated dimensions (HSDP), and DTensors may be replicated altogether: then there
is nothing to exchange. What else shards (tensor parallelism, FSDP1) is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from anchortune.errors import AnchorError
from anchortune.maths.sharded import bounds


class Group:
    """The processes that hold a model's shards, and this one's place among them.

    Attributes:
        rank: this process's number in the group.
        world: how many there are; 1 where nothing is cut.
    """

    def __init__(self, parameter: DTensor, label: str) -> None:
        """The group of the mesh dimension that ``parameter`` is cut over.

        Raises:
            AnchorError: it is cut otherwise than along its first dimension over one of them, or
                lies off the mesh's devices.
        """
        mesh = parameter.device_mesh
        placed = parameter.placements
        cut = [i for i, place in enumerate(placed) if not place.is_replicate()]
        # Not a subclass of Shard either: a strided one is tensor parallelism's.
        if len(cut) > 1 or any(
            type(placed[i]) is not Shard or not placed[i].is_shard(0) for i in cut
        ):
            raise AnchorError(
                f"{label} is sharded as {placed}, and the penalty follows rows cut over one mesh "
                "dimension only: shard with FSDP2 (fully_shard), without tensor parallelism"
            )
        if parameter.device.type != mesh.device_type:
            raise AnchorError(
                f"{label} lies on {parameter.device.type} and its shards belong on "
                f"{mesh.device_type} (CPU offload), which the penalty does not follow: turn "
                "offloading off"
            )
        self._mesh = mesh
        self._dim = cut[0] if cut else None
        self._group = None if self._dim is None else mesh.get_group(self._dim)
        self.rank = 0 if self._group is None else dist.get_rank(self._group)
        self.world = 1 if self._group is None else dist.get_world_size(self._group)
        self.members = [] if self._group is None else dist.get_process_group_ranks(self._group)

    def part(self, tensor: Tensor, dim: int) -> Tensor:
        """This process's part of a tensor that it has whole, or that is sharded already."""
        if not isinstance(tensor, DTensor):
            return tensor.narrow(dim, *bounds(tensor.shape[dim], self.world)[self.rank])
        if self._dim is not None:
            wanted = list(tensor.placements)
            wanted[self._dim] = Shard(dim)
            tensor = tensor.redistribute(placements=wanted)
        return tensor.to_local()

    def held(self, tensor: Tensor, dim: int) -> Tensor:
        """A tensor of which this process keeps no more than its part, for ``part``."""
        if isinstance(tensor, DTensor) or self._dim is None:
            return tensor
        placed: list[Placement] = [Replicate() for _ in range(self._mesh.ndim)]
        placed[self._dim] = Shard(dim)
        return DTensor.from_local(
            self.part(tensor, dim).clone(),
            self._mesh,
            placed,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.contiguous().stride(),
        )

    def summed(self, parts: list[Tensor]) -> list[Tensor]:
        """Tensors of one device to their sums over the group: one all-reduce for all of them."""
        if self.world == 1 or not parts:
            return parts
        packed = _packed(parts)
        dist.all_reduce(packed, group=self._group)
        pieces = torch.split(packed, [part.numel() for part in parts])
        return [
            piece.view(part.shape).to(part.dtype) for piece, part in zip(pieces, parts, strict=True)
        ]

    def exchanged(
        self, parts: list[Tensor], totals: list[int], split: int, join: int
    ) -> list[Tensor]:
        """Stacks cut along ``join`` to stacks cut along ``split``: one all-to-all for all of them.

        Args:
            parts: this process's; whole along ``split``.
            totals: the whole length along ``join`` of each.
            split: the dimension that is cut afterwards.
            join: the dimension that is cut before.
        """
        if self.world == 1 or not parts:
            return parts
        outward: list[list[Tensor]] = [[] for _ in range(self.world)]
        inward: list[list[torch.Size]] = [[] for _ in range(self.world)]
        for part, total in zip(parts, totals, strict=True):
            cuts = bounds(part.shape[split], self.world)
            for peer, (_, length) in enumerate(bounds(total, self.world)):
                outward[peer].append(part.narrow(split, *cuts[peer]))
                shape = list(part.shape)
                shape[split], shape[join] = cuts[self.rank][1], length
                inward[peer].append(torch.Size(shape))
        packed = _packed([part for of_peer in outward for part in of_peer])
        found = packed.new_empty(sum(shape.numel() for of_peer in inward for shape in of_peer))
        dist.all_to_all_single(
            found,
            packed,
            [sum(shape.numel() for shape in of_peer) for of_peer in inward],
            [sum(part.numel() for part in of_peer) for of_peer in outward],
            group=self._group,
        )
        shapes = [shape for of_peer in inward for shape in of_peer]
        pieces = torch.split(found, [shape.numel() for shape in shapes])
        shaped = [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return [
            torch.cat(shaped[index :: len(parts)], dim=join).to(part.dtype)
            for index, part in enumerate(parts)
        ]


def _packed(parts: Sequence[Tensor]) -> Tensor:
    """All of them in one row, in the widest of their dtypes."""
    dtype = parts[0].dtype
    for part in parts:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.cat([part.reshape(-1).to(dtype) for part in parts])
