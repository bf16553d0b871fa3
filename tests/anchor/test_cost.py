"""What a penalty step may cost, counted and not timed: operations, allocations, copies."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchortune.anchor.moment import Moment
from anchortune.anchor.penalty import Penalty, bind
from anchortune.maths import operators
from anchortune.maths.factors import Factors

ROWS, COLUMNS, LORA, KEPT = 96, 128, 3, 5
OFF = ["gram", "subspace", "subspace2", "direction", "direction_global", "none"]
CASES = [(operator, "off") for operator in OFF] + [(operator, "along") for operator in OFF[:-1]]
VIEWS = {"transpose", "expand", "view", "_unsafe_view", "unsqueeze", "alias", "unbind", "slice"}
LEAVE_THE_DEVICE = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal"}


class Watch(TorchDispatchMode):
    """Every operation inside the block: its name, what it made, and on which devices it worked."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.made: list[torch.Size] = []
        self.allocated = 0
        self.devices: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        found = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.names[func.overloadpacket.__name__] += 1
        self.devices |= {t.device.type for t in (*given, *found)}
        known = {id(t.untyped_storage()) for t in given}
        for tensor in found:
            if id(tensor.untyped_storage()) not in known:
                known.add(id(tensor.untyped_storage()))
                self.made.append(tensor.shape)
                self.allocated += tensor.untyped_storage().nbytes()
        return result


class Layers(nn.Module):
    """Linear layers of one shape, none of them ever run."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(COLUMNS, ROWS, bias=False) for _ in range(depth))


def bound(depth: int, dtype: torch.dtype = torch.float32, **options: Any) -> Penalty:
    """A penalty on ``depth`` adapted layers that have moved, with gradients in place."""
    torch.manual_seed(0)
    model = get_peft_model(
        Layers(depth), LoraConfig(r=LORA, lora_alpha=6, target_modules=r"layers\.\d+")
    )
    modules = {
        f"layers.{number}": Factors(
            torch.linalg.qr(torch.randn(ROWS, KEPT))[0],
            torch.rand(KEPT) + 1,
            torch.linalg.qr(torch.randn(COLUMNS, KEPT))[0],
            4.0,
            0.1,
        )
        for number in range(depth)
    }
    penalty = bind(SimpleNamespace(modules=modules), model.to(dtype), **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
            parameter.grad = torch.zeros_like(parameter)
    penalty.moment()  # the constants are made once, when they are first needed
    return penalty


def watched(work: Callable[[], object]) -> Watch:
    with Watch() as watch:
        work()
    return watch


@pytest.mark.parametrize(("operator", "side"), CASES)
def test_a_step_takes_as_many_operations_at_any_depth(operator: Any, side: Any) -> None:
    def counts(depth: int) -> tuple[Counter[str], Counter[str]]:
        penalty = bound(depth, operator=operator, side=side)
        step = watched(lambda: penalty.add_gradient_(0.5))
        return step.names, watched(penalty.movement).names

    shallow, deep = counts(2), counts(7)
    assert shallow == deep
    launched = [number for name, number in deep[0].items() if name not in VIEWS]
    assert sum(launched) <= 40


def test_bf16_weights_take_a_few_conversions_more_and_not_one_each() -> None:
    def names(depth: int) -> Counter[str]:
        penalty = bound(depth, torch.bfloat16)
        return watched(lambda: penalty.add_gradient_(0.5)).names

    assert names(2) == names(7)


@pytest.mark.parametrize(("operator", "side"), CASES)
def test_what_a_step_makes_is_a_few_copies_of_the_adapter_and_never_d_by_d(
    operator: Any, side: Any
) -> None:
    depth = 4
    penalty = bound(depth, operator=operator, side=side)
    for work in (lambda: penalty.add_gradient_(0.5), penalty.movement):
        watch = watched(work)
        widest = max(ROWS, COLUMNS) * max(LORA, KEPT)
        assert all(shape[-2:].numel() <= widest for shape in watch.made)
        adapter = depth * (ROWS + COLUMNS) * LORA * 4
        small = 30 * depth * (LORA + KEPT) ** 2 * 4  # r × r and k × r, whatever d is
        assert watch.allocated <= 6 * adapter + small


def test_the_default_step_writes_the_adapter_four_times() -> None:
    """B and A stacked, E, both gradients, both laid out as the parameters are."""
    depth = 4
    penalty = bound(depth)
    watch = watched(lambda: penalty.add_gradient_(0.5))
    of_b, of_a = depth * ROWS * LORA * 4, depth * COLUMNS * LORA * 4
    assert watch.allocated <= 4 * of_b + 3 * of_a + 8 * depth * (LORA + KEPT) ** 2 * 4


@pytest.mark.parametrize(("operator", "side"), CASES)
def test_nothing_leaves_the_device_in_a_step(
    operator: Any, side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the device ``meta`` a number that is read, or a copy to the host, is an error."""
    monkeypatch.setattr(Moment, "_no_autocast", lambda self: nullcontext())  # meta has none
    penalty = bound(3, operator=operator, side=side)
    for target in penalty.coverage.targets:
        target.module.to("meta")
        for parameter in target.parameters():
            assert parameter is not None
            parameter.grad = torch.zeros_like(parameter)
    penalty.moment()  # the constants follow the model, once
    inside = 0.25 if operator in operators.PROJECTORS and side == "off" else 0.0
    watch = watched(lambda: penalty.add_gradient_(0.5, lam_inside=inside, grad_scale=8.0))
    assert watch.devices == {"meta"}
    assert not LEAVE_THE_DEVICE & set(watch.names)


def test_the_movement_is_one_copy_from_the_device() -> None:
    penalty = bound(3)
    assert watched(penalty.movement).names["_local_scalar_dense"] == 0  # tolist() reads one tensor


def test_the_watch_sees_what_it_must_not_find() -> None:
    weights = torch.ones(3, 4)
    watch = watched(lambda: float((weights.T @ weights).sum()))
    assert watch.names["_local_scalar_dense"] == 1
    assert torch.Size((4, 4)) in watch.made
    assert watch.allocated >= 4 * 4 * 4


def test_a_step_and_its_movement_share_one_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return original(*args, **kwargs)

    original = operators.penalty
    monkeypatch.setattr(operators, "penalty", counted)
    penalty = bound(3)
    apart = penalty.movement()
    value = penalty.add_gradient_(0.5)
    before = [
        p.grad.clone()
        for t in penalty.coverage.targets
        for p in t.parameters()
        if p.grad is not None
    ]
    assert len(calls) == 2
    moment = penalty.moment()
    assert penalty.movement(moment) == apart
    assert penalty.add_gradient_(0.5, moment=moment) == value
    assert len(calls) == 3
    after = [p.grad for t in penalty.coverage.targets for p in t.parameters() if p.grad is not None]
    for twice, once in zip(after, before, strict=True):
        torch.testing.assert_close(twice, 2 * once)


@pytest.mark.parametrize(("operator", "side"), CASES)
def test_backward_frees_what_the_scalar_held_and_the_update_is_gone_before(
    operator: Any, side: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop's ``loss`` lives until the next one is made: through another forward pass."""
    made: list[Any] = []

    def penalised(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        made.append([weakref.ref(args[2]), *map(weakref.ref, found[1:])])
        return found

    original = operators.penalty
    monkeypatch.setattr(operators, "penalty", penalised)
    value = bound(2, operator=operator, side=side)()
    [(update, *gradients)] = made
    assert update() is None
    value.backward(retain_graph=True)
    value.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        value.backward()
    assert all(gradient() is None for gradient in gradients)
