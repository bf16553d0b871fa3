"""On live models: what the operator leaves free bounded too, and modules weighed apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from anchortune.anchor.penalty import bind
from anchortune.errors import AnchorError
from tests.anchor.test_penalty import anchor_of, lora, moved, weights_of
from tests.tiny import tiny_gpt2, tiny_llama

LAM, INSIDE = 0.4, 0.07


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    path = tiny_llama(tmp_path / "llama", dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)


def uneven(shapes: dict[str, tuple[int, int]]) -> Any:
    """An anchor whose modules differ much in size."""
    anchor = anchor_of(shapes)
    for at, (name, factors) in enumerate(anchor.modules.items()):
        size = 1.0 + at
        anchor.modules[name] = type(factors)(
            factors.left,
            factors.sigma * size,
            factors.right,
            factors.norm * size,
            factors.tail * size,
        )
    return anchor


def dense(model: Any, anchor: Any, operator: str, weights: dict[str, float]) -> torch.Tensor:
    """``Σ w·(λ·off + λ_inside·inside)``, every matrix formed."""
    total = torch.zeros((), dtype=torch.float64)
    for name, module in model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        key = name.removeprefix("base_model.model.")
        kept = anchor.modules[key]
        update = (
            module.scaling["default"]
            * module.lora_B["default"].weight
            @ module.lora_A["default"].weight
        )
        left, right = kept.left, kept.right
        if operator == "subspace":
            inside = left @ left.T @ update
        elif operator == "subspace2":
            inside = left @ left.T @ update @ right @ right.T
        else:
            unit = (left * (kept.sigma / kept.sigma.norm())) @ right.T
            inside = (update * unit).sum() * unit
        off = (update - inside).square().sum()
        total = total + weights[key] * (LAM * off + INSIDE * inside.square().sum())
    return total


def weights_by_hand(anchor: Any, kind: str) -> dict[str, float]:
    power = {"none": 0, "norm": 1, "energy": 2}[kind]
    raw = {name: factors.norm**power for name, factors in anchor.modules.items()}
    mean = sum(raw.values()) / len(raw)
    return {name: value / mean for name, value in raw.items()}


@pytest.mark.parametrize("layer_weights", ["none", "norm", "energy"])
@pytest.mark.parametrize("operator", ["subspace", "subspace2", "direction"])
def test_gradients_equal_the_dense_formula(llama: Any, operator: Any, layer_weights: Any) -> None:
    anchor = uneven(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    penalty = bind(anchor, model, operator=operator, layer_weights=layer_weights)
    moved(model)
    expected = dense(model, anchor, operator, weights_by_hand(anchor, layer_weights))
    expected.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    def found() -> Any:
        model.zero_grad()
        value = penalty.add_gradient_(LAM, lam_inside=INSIDE, grad_scale=2.0)
        torch.testing.assert_close(LAM * value, expected.detach(), rtol=1e-10, atol=0)
        return 2.0

    def by_autograd() -> Any:
        model.zero_grad()
        loss = LAM * penalty() + INSIDE * penalty.inside()
        torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
        loss.backward()
        return 1.0

    for way in (found, by_autograd):
        scale = way()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(
                    parameter.grad, scale * grads[name], rtol=1e-8, atol=1e-9
                )


def test_the_inside_part_alone_can_be_penalised(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    penalty = bind(anchor, model, operator="subspace")
    moved(model)
    value = penalty.add_gradient_(0.0, lam_inside=INSIDE)
    added = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    loss = INSIDE * penalty.inside()
    loss.backward()
    torch.testing.assert_close(INSIDE * value, loss.detach())
    for left, right in zip(
        added, (p.grad for p in model.parameters() if p.requires_grad), strict=True
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("layer_weights", ["none", "energy"])
def test_equal_weights_on_both_parts_are_norm_decay(llama: Any, layer_weights: Any) -> None:
    anchor = uneven(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    found = []
    for operator, inside in (("subspace", LAM), ("none", 0.0)):
        penalty = bind(anchor, model, operator=operator, layer_weights=layer_weights)
        moved(model)
        model.zero_grad()
        penalty.add_gradient_(LAM, lam_inside=inside)
        found.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        for name, parameter in model.named_parameters():  # as it was bound: nothing has moved
            if "lora_B" in name:
                parameter.data.zero_()
    for left, right in zip(*found, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_weights_reach_transposed_and_fully_trained_matrices(tmp_path: Path) -> None:
    path = tiny_gpt2(tmp_path / "gpt2", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    anchor = uneven(weights_of(model, ("c_attn", "mlp.c_proj")))
    penalty = bind(anchor, model, operator="subspace", layer_weights="energy")
    weights = weights_by_hand(anchor, "energy")
    torch.manual_seed(0)
    expected = 0.0
    slopes = []
    for target in penalty.coverage.targets:
        step = torch.randn(target.factors.shape).double()
        weight = target.parameters()[0]
        weight.data += step
        kept = target.factors.right.double()  # of the output side of a Conv1D
        inside = step @ kept @ kept.T
        whole = LAM * (step - inside) + INSIDE * inside
        slopes.append((weight, 2 * weights[target.name] * whole))
        off, rest = (step - inside).square().sum(), inside.square().sum()
        expected += weights[target.name] * float(LAM * off + INSIDE * rest)
    value = penalty.add_gradient_(LAM, lam_inside=INSIDE)
    assert LAM * float(value) == pytest.approx(expected, rel=1e-9)
    for weight, slope in slopes:
        torch.testing.assert_close(weight.grad, slope, rtol=1e-7, atol=1e-8)


def test_movement_tells_of_the_update_alone(llama: Any) -> None:
    anchor = uneven(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    plain = bind(anchor, model, operator="subspace")
    weighed = bind(anchor, model, operator="subspace", layer_weights="energy")
    moved(model)
    assert plain.movement() == weighed.movement()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"operator": "gram"}, "operator 'gram' is no projection, so lam_inside has no part"),
        ({"operator": "none"}, r"operator 'none' has no inside \(its C is 0\)"),
        ({"side": "along"}, "lam_inside bounds what side 'off' leaves free"),
    ],
)
def test_what_has_no_free_part_is_refused(llama: Any, options: Any, text: str) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    penalty = bind(anchor, lora(llama), **options)
    with pytest.raises(AnchorError, match=text):
        penalty.add_gradient_(1.0, lam_inside=0.1)
    with pytest.raises(AnchorError, match=text):
        penalty.inside()
    assert all(p.grad is None for p in llama.parameters())


@pytest.mark.parametrize("lam_inside", [-0.1, float("nan"), "0.1", True])
def test_a_lam_inside_that_means_nothing_is_refused(llama: Any, lam_inside: Any) -> None:
    penalty = bind(anchor_of(weights_of(llama, ("q_proj", "v_proj"))), lora(llama))
    with pytest.raises(AnchorError, match="lam_inside is a number"):
        penalty.add_gradient_(1.0, lam_inside=lam_inside)


def test_weights_that_mean_nothing_are_refused(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    with pytest.raises(AnchorError, match="layer_weights 'size' is unknown: choose one of none"):
        bind(anchor, lora(llama), layer_weights="size")  # type: ignore[arg-type]
    with pytest.raises(AnchorError, match="is one vector over all modules"):
        bind(anchor, lora(llama), operator="direction_global", layer_weights="norm")
