"""The penalty on sharded models: processes with FSDP2 beside the same model in one piece.

Shapes are cut unevenly, and of a LoRA of rank 1 one process holds nothing. The models are in
float64, so that bounds are tight; ``tests/maths/test_sharded.py`` has the formulas themselves.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from anchortune.anchor.penalty import bind
from anchortune.errors import AnchorError
from anchortune.maths.operators import PROJECTORS
from tests.anchor.test_penalty import anchor_of
from tests.maths.test_operators import CASES
from tests.warm import shards_on_a_cpu, together

CLOSE = {"rtol": 1e-11, "atol": 1e-11}
KINDS = ("lora", "started", "full")


class Block(nn.Module):
    """Three matrices of different shapes, one of them stored (d_in, d_out)."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.v, self.c = nn.Linear(7, 8), nn.Linear(8, 5), Conv1D(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.v(torch.tanh(self.q(x))))


class Model(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block() for _ in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def made(kind: str, layers: int = 2) -> Any:
    """(a model, its anchor); the same in every process."""
    torch.manual_seed(0)
    model: Any = Model(layers).double()
    shapes = {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
    }
    if kind != "full":
        config = LoraConfig(
            r=3,
            rank_pattern={"v": 1},
            lora_alpha=8,
            target_modules=["q", "v", "c"],
            bias="lora_only",
        )
        model = get_peft_model(model, config).double()
    if kind == "started":
        step(model, 1)
    return model, anchor_of(shapes)


def step(model: nn.Module, seed: int) -> None:
    """Moves every trained parameter, of a sharded model each process's part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                change = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                if isinstance(parameter, DTensor):
                    change = distribute_tensor(change, parameter.device_mesh, parameter.placements)
                parameter.add_(change)


def shard(model: Any, **options: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    for module in model.modules():
        if isinstance(module, Block):
            fully_shard(module, **options)
    return fully_shard(model, **options)


def same(sharded: nn.Module, plain: nn.Module) -> None:
    """Each process has its part of the gradient, placed as the parameter is."""
    from torch.distributed.tensor import distribute_tensor

    assert any(parameter.grad is not None for parameter in plain.parameters())
    for mine, theirs in zip(sharded.parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            assert mine.grad.placements == mine.placements
            expected = distribute_tensor(theirs.grad, mine.device_mesh, mine.placements)
            torch.testing.assert_close(mine.grad.to_local(), expected.to_local(), **CLOSE)
            mine.grad = theirs.grad = None
        else:
            assert mine.grad is None


def compare(kind: str) -> None:
    """Every operator and side, bound before the model is sharded; one with more options after."""
    plain, anchor = made(kind)
    sharded = copy.deepcopy(plain)
    pairs = [
        [bind(anchor, model, operator=o, side=s) for model in (sharded, plain)] for o, s in CASES
    ]
    shard(sharded)
    options: Any = {"operator": "gram", "layer_weights": "norm", "scaled": False, "rank": 2}
    pairs.append([bind(anchor, model, **options) for model in (sharded, plain)])
    step(plain, 2)
    step(sharded, 2)
    assert all(type(p).__name__ == "DTensor" for p in sharded.parameters())
    for mine, theirs in pairs:
        inside = 0.2 if mine.side == "off" and mine.operator in PROJECTORS else 0.0
        found = mine.add_gradient_(0.7, lam_inside=inside, grad_scale=2.0)
        expected = theirs.add_gradient_(0.7, lam_inside=inside, grad_scale=2.0)
        torch.testing.assert_close(found, expected, **CLOSE)
        same(sharded, plain)
        *shares, loose = mine.movement()
        *wanted, theirs_loose = theirs.movement()
        torch.testing.assert_close(shares, wanted, **CLOSE)
        assert loose == pytest.approx(theirs_loose, rel=1e-6)  # in float32
    for mine, theirs in (pairs[0], pairs[-1]):
        assert mine.start_fingerprint() == theirs.start_fingerprint()
        (3 * mine()).backward()
        (3 * theirs()).backward()
        same(sharded, plain)


def counted(operator: str, layers: int) -> dict[str, int]:
    """What a step of the penalty sends, by kind of collective."""
    from torch.distributed.tensor.debug import CommDebugMode

    model, anchor = made("lora", layers)
    penalty = bind(anchor, shard(model), operator=operator)
    step(model, 2)
    penalty.add_gradient_(1.0)
    with CommDebugMode() as counts:
        penalty.add_gradient_(1.0)
    return {op.__name__: n for op, n in counts.get_comm_counts().items() if n}


def count() -> None:
    """Two exchanges and two sums (three for one direction over all), at any depth: no gather."""
    for operator, sums in (("subspace", 2), ("none", 1), ("subspace2", 2), ("direction_global", 3)):
        for layers in (1, 3):
            assert counted(operator, layers) == {"alltoall_base_": 2, "allreduce_": sums}


def hold_little() -> None:
    """Factors and starts are this process's part, also where the model was whole at the binding."""
    for kind in KINDS:
        model, anchor = made(kind)
        penalty = bind(anchor, model)
        shard(model)
        stacks = penalty.moment()._stacks
        held = sum(
            stack.projection.left.numel() + stack.projection.right.numel() for stack in stacks
        )
        factors = [target.factors for target in penalty.coverage.targets]
        all_of_it = sum(f.left.numel() + f.right.numel() for f in factors)
        # Of a full weight the rows alone are cut. No part is more than 3 of 5 rows here.
        assert held <= (0.8 if kind == "full" else 0.6) * all_of_it
        for target in penalty.coverage.targets:
            for start in (target.start_b, target.start_a):
                if start is not None:
                    bytes_held = start.to_local().untyped_storage().nbytes()
                    assert bytes_held <= 0.7 * start.numel() * start.element_size()


def move_while_gathered() -> None:
    """After a forward pass without backward, as in an evaluation, the root's weights are whole."""
    model, anchor = made("lora")
    model.head = nn.Linear(7, 3).double()  # trained without a penalty, in the root's group
    torch.manual_seed(1)
    model.head.reset_parameters()
    plain = copy.deepcopy(model)
    first = bind(anchor, model)
    shard(model)
    penalties = first, bind(anchor, model), bind(anchor, plain)
    step(model, 2)
    step(plain, 2)
    for gathered in (False, True):
        assert (type(model.head.weight).__name__ == "DTensor") is not gathered
        *found, expected = (penalty.movement().unpenalised for penalty in penalties)
        assert found == pytest.approx([expected] * 2, rel=1e-6)  # in float32
        with torch.no_grad():
            model(torch.ones(1, 7, dtype=torch.float64))


def refuse() -> None:
    """What is sharded otherwise, or gathered at the moment."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    from anchortune.anchor.group import Group

    away: Any = SimpleNamespace(
        placements=[Shard(0)],
        device=torch.device("cpu"),
        device_mesh=SimpleNamespace(device_type="cuda"),
    )
    with pytest.raises(AnchorError, match=r"q lies on cpu .* belong on cuda \(CPU offload\)"):
        Group(away, "q")
    model, anchor = made("lora")
    mesh = init_device_mesh("cpu", (2,))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            placed = distribute_tensor(module.weight.detach(), mesh, [Shard(1)])
            module.weight = nn.Parameter(placed)
    with pytest.raises(AnchorError, match=r"layers\.0\.q is sharded as \(Shard\(dim=1\),\)"):
        bind(anchor, model)()
    model, anchor = made("full")
    penalty = bind(anchor, fully_shard(model))
    model(torch.ones(1, 7, dtype=torch.float64))  # the root keeps its weights gathered
    with pytest.raises(AnchorError, match="before the forward pass or after backward"):
        penalty()
    model, anchor = made("full")
    fully_shard(model.layers[0])
    with pytest.raises(AnchorError, match=r"layers\.1\.q are not: shard all"):
        bind(anchor, model)()


def copies_of_shards() -> None:
    """HSDP: what is summed over the parts is the same in every copy."""
    from torch.distributed.device_mesh import init_device_mesh

    model, anchor = made("lora")
    plain = copy.deepcopy(model)
    shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copies", "parts")))
    pair = bind(anchor, model), bind(anchor, plain)
    step(model, 2)
    step(plain, 2)
    for penalty in pair:
        penalty.add_gradient_(1.0)
    same(model, plain)


def in_a_loop() -> None:
    """``loss + lam * penalty()`` with one group, whose weights are gathered when it is called."""
    from torch.distributed.fsdp import fully_shard

    model, anchor = made("lora")
    plain = copy.deepcopy(model)
    fully_shard(model)
    for one in (model, plain):
        penalty = bind(anchor, one)
        x = torch.ones(3, 7, dtype=torch.float64)
        loss = one(x).square().mean()
        (loss + 0.3 * penalty()).backward()
    same(model, plain)


def work() -> None:
    torch.set_num_threads(1)
    for kind in KINDS:
        compare(kind)
    count()
    hold_little()
    in_a_loop()
    move_while_gathered()
    refuse()


@shards_on_a_cpu
def test_shards_give_what_the_whole_gives() -> None:
    together(work, processes=2, timeout=500)


@pytest.mark.slow
@shards_on_a_cpu
def test_copies_of_shards_give_what_the_whole_gives() -> None:
    together(copies_of_shards, processes=4, timeout=500)
