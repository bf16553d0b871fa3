"""The penalty on live models: every kind of adapter beside the dense formula and autograd."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from anchortune.anchor.binding import match_name
from anchortune.anchor.penalty import bind
from anchortune.errors import AnchorError
from anchortune.maths.factors import Factors
from tests.tiny import tiny_gpt2, tiny_llama


def anchor_of(
    shapes: dict[str, tuple[int, int]], rank: int = 3, seed: int = 0, size: float = 0.3
) -> Any:
    """An anchor of random differences, known whole: ``.deltas`` beside ``.modules``."""
    generator = torch.Generator().manual_seed(seed)
    modules, deltas = {}, {}
    for name, shape in shapes.items():
        delta = size * torch.randn(shape, generator=generator, dtype=torch.float64)
        left, sigma, right = torch.linalg.svd(delta, full_matrices=False)
        deltas[name] = delta
        modules[name] = Factors(
            left[:, :rank].contiguous(),
            sigma[:rank].contiguous(),
            right.mT[:, :rank].contiguous(),
            float(delta.norm()),
            float(sigma[rank]) if rank < sigma.numel() else 0.0,
        )
    return SimpleNamespace(modules=modules, deltas=deltas)


def weights_of(model: nn.Module, ends: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    return {
        name: tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.endswith(ends) and hasattr(module, "weight")
    }


def lora(model: Any, **options: Any) -> Any:
    config = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]} | options
    return get_peft_model(model, LoraConfig(**config))


def moved(model: Any, seed: int = 0) -> Any:
    """The model with every A and B at random, as if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def dense_gram(update: torch.Tensor, factors: Factors, rank: int | None = None) -> torch.Tensor:
    left, sigma = factors.left[:, :rank].double(), factors.sigma[:rank].double()
    c = left @ torch.diag(sigma**2 / factors.norm) @ left.T
    return (update - c @ update).square().sum()


def dense_of(model: Any, anchor: Any, scaled: bool = True) -> torch.Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            scale = module.scaling["default"] if scaled else 1.0
            update = scale * module.lora_B["default"].weight @ module.lora_A["default"].weight
            key = name.removeprefix("base_model.model.")
            total = total + dense_gram(update.double(), anchor.modules[key])
    return total


@pytest.fixture
def llama(tmp_path: Path) -> Any:
    path = tiny_llama(tmp_path / "llama", dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)


@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"rank_pattern": {"v_proj": 3}}])
def test_lora_equals_the_dense_formula(llama: Any, scaled: bool, options: dict[str, Any]) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama, **options).double()
    penalty = bind(anchor, model, operator="gram", scaled=scaled)
    moved(model)
    expected = dense_of(model, anchor, scaled)
    expected.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    found = penalty()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-9, atol=1e-9)
    model.zero_grad()
    value = penalty.add_gradient_(0.25, grad_scale=2.0)
    torch.testing.assert_close(value, expected.detach(), rtol=1e-10, atol=0)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, 0.5 * grads[name], rtol=1e-9, atol=1e-9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; torch sees none")
@pytest.mark.parametrize("operator", ["gram", "subspace", "subspace2", "direction_global"])
def test_cuda_gives_the_value_and_gradients_of_the_cpu(llama: Any, operator: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama.float())
    penalty = bind(anchor, model, operator=operator)
    moved(model)
    found = []
    for device in ("cpu", "cuda"):
        model.to(device)  # the binding follows the model
        model.zero_grad()
        value = penalty()
        value.backward()
        assert value.device.type == device
        grads = [p.grad.cpu() for p in model.parameters() if p.requires_grad]
        model.zero_grad()
        added = penalty.add_gradient_(1.0)
        torch.testing.assert_close(added, value.detach())
        again = [p.grad.cpu() for p in model.parameters() if p.requires_grad]
        for left, right in zip(again, grads, strict=True):
            torch.testing.assert_close(left, right)
        found.append((value.detach().cpu(), grads))
    (cpu, cpu_grads), (cuda, cuda_grads) = found
    torch.testing.assert_close(cuda, cpu, rtol=1e-5, atol=0)
    for left, right in zip(cuda_grads, cpu_grads, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


def test_direction_over_all_layers_is_one_vector(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    penalty = bind(anchor, model, operator="direction_global")
    moved(model)
    energy = along = whole = 0.0
    for target in penalty.coverage.targets:
        b, a = target.parameters()
        update, kept = target.scale * b @ a, target.factors
        direction = (kept.left * kept.sigma) @ kept.right.T
        energy += float(update.square().sum())
        along += float((update * direction).sum())
        whole += float(direction.square().sum())
    assert float(penalty()) == pytest.approx(energy - along**2 / whole, rel=1e-6)


def test_bf16_weights_are_computed_in_float32_and_get_bf16_gradients(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama.to(torch.bfloat16)).to(torch.bfloat16)
    penalty = bind(anchor, model, operator="gram")
    moved(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = penalty()
    found.backward()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), dense_of(model, anchor), rtol=2e-2, atol=0)
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None and g.dtype == torch.bfloat16 for g in grads)


def test_a_compiled_loss_has_the_penalty_of_the_weights_at_each_call(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("layers.0.self_attn.q_proj",)))
    model = lora(llama, target_modules=r".*layers\.0\.self_attn\.q_proj").double()
    penalty = bind(anchor, model, operator="subspace")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compiled = torch.compile(lambda: 2 * penalty(), backend="eager")
    for seed in (1, 2):
        moved(model, seed)
        model.zero_grad()
        expected = 2 * penalty()
        expected.backward()
        grads = [parameter.grad.clone() for parameter in trained]
        model.zero_grad()
        found = compiled()
        found.backward()
        torch.testing.assert_close(found, expected)
        for parameter, grad in zip(trained, grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad)


def test_in_inference_mode_there_is_a_value_and_training_goes_on(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    penalty = bind(anchor, model, operator="gram")
    moved(model)
    with torch.inference_mode():  # the constants are made here, and serve from then on
        value = penalty()
        assert penalty.movement().energy > 0
    found = penalty()
    found.backward()
    assert float(found.detach()) == float(value)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_start_away_from_zero_is_where_the_update_is_measured_from(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = moved(lora(llama)).double()
    penalty = bind(anchor, model, operator="subspace")
    assert float(penalty()) == pytest.approx(0, abs=1e-18)
    target = penalty.coverage.targets[0]
    b, a = target.parameters()
    start = (b @ a).detach()
    b.data += 0.1
    expected = torch.zeros((), dtype=torch.float64)
    left = target.factors.left.double()
    update = target.scale * (b @ a - start)
    expected = (update - left @ left.T @ update).square().sum()
    expected.backward()
    grads = b.grad.clone(), a.grad.clone()
    model.zero_grad()
    found = penalty()
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(b.grad, grads[0], rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(a.grad, grads[1], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_pissa_and_olora_begin_without_a_penalty(llama: Any, init: str) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    model = get_peft_model(llama.float(), config)
    penalty = bind(anchor, model, operator="subspace")
    assert all(target.start_b is not None for target in penalty.coverage.targets)
    assert float(penalty()) < 1e-8
    penalty.coverage.targets[0].parameters()[0].data += 1.0
    assert float(penalty()) > 1e-2


def test_dora_penalises_the_low_rank_part_and_says_so(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama, use_dora=True).double()
    penalty = bind(anchor, model, operator="gram")
    moved(model)
    torch.testing.assert_close(penalty(), dense_of(model, anchor), rtol=1e-9, atol=0)
    assert any("DoRA" in note for note in penalty.coverage.notes)
    assert any("magnitude" in name for name in penalty.coverage.unpenalised)
    assert penalty.movement().unpenalised == 0
    next(p for n, p in model.named_parameters() if "magnitude" in n).data[0] += 2.0
    assert penalty.movement().unpenalised == pytest.approx(4)


def test_several_adapters_are_penalised_each_by_itself(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama)
    model.add_adapter("second", LoraConfig(r=3, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    labels = {target.label for target in bind(anchor, model).coverage.targets}
    assert "model.layers.0.self_attn.q_proj (second)" in labels
    assert "model.layers.0.self_attn.q_proj" in labels
    model.set_adapter("second")
    only = bind(anchor, model).coverage.targets
    assert {target.adapter for target in only} == {"second"}


@pytest.mark.parametrize("frozen", ["lora_A", "lora_B"])
def test_a_frozen_factor_gets_no_gradient_and_its_layer_is_penalised(
    llama: Any, frozen: str
) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama).double()
    for name, parameter in model.named_parameters():
        if frozen in name:
            parameter.requires_grad_(False)
    penalty = bind(anchor, model, operator="gram")
    assert len(penalty.coverage.targets) == 4
    moved(model)
    expected = dense_of(model, anchor)
    expected.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert len(grads) == 4
    for add in (lambda: penalty().backward(), lambda: penalty.add_gradient_(1.0)):
        model.zero_grad()
        add()
        assert {n for n, p in model.named_parameters() if p.grad is not None} == set(grads)
        for name, parameter in model.named_parameters():
            if name in grads:
                torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-9, atol=1e-9)
    for _, parameter in model.named_parameters():  # frozen after the binding, all of them
        parameter.requires_grad_(False).grad = None
    torch.testing.assert_close(penalty.add_gradient_(1.0), expected.detach(), rtol=1e-10, atol=0)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("operator", ["gram", "subspace", "subspace2", "direction"])
def test_full_parameter_training_is_measured_from_the_weights_as_bound(
    llama: Any, operator: Any
) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    penalty = bind(anchor, llama, operator=operator)
    assert float(penalty()) == 0
    torch.manual_seed(0)
    weight = llama.model.layers[0].self_attn.q_proj.weight
    step = 0.1 * torch.randn_like(weight)
    weight.data += step
    if operator == "gram":
        expected = dense_gram(step, anchor.modules["model.layers.0.self_attn.q_proj"])
        torch.testing.assert_close(penalty().detach(), expected, rtol=1e-9, atol=0)
    before = penalty().detach()
    penalty().backward()
    probe = 1e-6 * torch.randn_like(weight)
    weight.data += probe
    slope = (penalty().detach() - before) / 1
    torch.testing.assert_close(slope, (weight.grad * probe).sum(), rtol=1e-3, atol=1e-12)
    assert "model.embed_tokens.weight" in penalty.coverage.unpenalised


@pytest.mark.parametrize("full", [False, True])
def test_conv1d_is_transposed_as_it_must_be(tmp_path: Path, full: bool) -> None:
    path = tiny_gpt2(tmp_path / "gpt2", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64)
    shapes = weights_of(model, ("c_attn", "mlp.c_proj"))
    anchor = anchor_of(shapes)  # in the checkpoint's orientation: (d_in, d_out)
    if not full:
        model = lora(model, target_modules=["c_attn", "mlp.c_proj"], fan_in_fan_out=True).double()
    penalty = bind(anchor, model, operator="subspace")
    target = penalty.coverage.targets[0]
    torch.manual_seed(0)
    if full:
        step = torch.randn(target.factors.shape).double()
        target.parameters()[0].data += step
        update = step.T
    else:
        b, a = target.parameters()
        b.data = torch.randn(b.shape).double()
        update = target.scale * b.detach() @ a.detach()
    left = target.factors.right.double()  # the output directions are the stored right factors
    expected = (update - left @ left.T @ update).square().sum()
    torch.testing.assert_close(penalty().detach(), expected, rtol=1e-6, atol=0)


def test_what_moves_without_a_penalty_is_named(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = lora(llama, modules_to_save=["lm_head"])
    penalty = bind(anchor, model)
    assert [name for name in penalty.coverage.unpenalised if "lm_head" in name]
    assert penalty.movement().unpenalised == 0
    saved = next(p for n, p in model.named_parameters() if "lm_head.modules_to_save" in n)
    saved.data[0, :2] += torch.tensor([3.0, 4.0])
    assert penalty.movement().unpenalised == pytest.approx(25)


def test_stacked_experts_are_refused(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = MixtralForCausalLM(config)
    anchor = anchor_of(weights_of(model, ("q_proj",)))
    stacked = [n for n, p in model.named_parameters() if p.dim() == 3]
    adapted = lora(model, target_modules=["q_proj"], target_parameters=stacked[:1])
    with pytest.raises(AnchorError, match="target_parameters"):
        bind(anchor, adapted)


def test_adapted_modules_beyond_the_anchor_are_refused_by_name(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj",)))
    with pytest.raises(AnchorError, match=r"2 of 4 adapted modules .*layers\.0\.self_attn\.v_proj"):
        bind(anchor, lora(llama))


def test_another_family_is_refused_by_shape(llama: Any) -> None:
    shapes = {name: (shape[0], 48) for name, shape in weights_of(llama, ("q_proj",)).items()}
    with pytest.raises(AnchorError, match=r"32 × 32 in the model but 32 × 48"):
        bind(anchor_of(shapes), lora(llama, target_modules=["q_proj"]))


def test_nothing_trained_is_refused(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj",)))
    llama.requires_grad_(False)
    with pytest.raises(AnchorError, match="no trained LoRA layer"):
        bind(anchor, llama)


def test_a_module_without_a_difference_is_refused(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    name = "model.layers.1.self_attn.v_proj"
    factors = anchor.modules[name]
    anchor.modules[name] = Factors(factors.left, factors.sigma * 0, factors.right, 0.0)
    with pytest.raises(AnchorError, match=r"‖dW‖ is nothing in model\.layers\.1"):
        bind(anchor, lora(llama))


def test_an_embedding_under_lora_is_refused(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj",)))
    model = lora(llama, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(AnchorError, match="embedding under LoRA"):
        bind(anchor, model)


def test_a_subspace_of_everything_would_vanish_and_is_refused(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")), rank=32)
    with pytest.raises(AnchorError, match="penalty vanishes"):
        bind(anchor, lora(llama), operator="subspace")
    assert float(bind(anchor, lora(llama), operator="subspace", rank=4)()) == 0


def test_a_subspace2_of_everything_would_vanish_and_is_refused(tmp_path: Path) -> None:
    path = tiny_llama(tmp_path / "llama", dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(path)  # q_proj is 32 × 32, v_proj is 16 × 32
    square = anchor_of(weights_of(model, ("q_proj",)), rank=32)
    wide = anchor_of(weights_of(model, ("v_proj",)), rank=32)
    only_v = moved(lora(model, target_modules=["v_proj"]))
    penalty = bind(wide, only_v, operator="subspace2")
    only_v.base_model.model.model.layers[0].self_attn.v_proj.lora_B["default"].weight.data += 1
    assert float(penalty()) > 1e-2  # 16 right singular vectors leave half of the inputs
    adapter = lora(AutoModelForCausalLM.from_pretrained(path), target_modules=["q_proj"])
    with pytest.raises(AnchorError, match=r"'subspace2' at rank 32 .* penalty vanishes"):
        bind(square, adapter, operator="subspace2")
    bind(square, adapter, operator="subspace2", rank=31)
    bind(square, adapter, operator="subspace2", side="along")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"operator": "cosine"}, "operator 'cosine' is unknown"),
        ({"side": "left"}, "side 'left' is unknown"),
        ({"operator": "none", "side": "along"}, "no along side"),
        ({"rank": 0}, "below 1"),
        ({"rank": "full"}, "rank 'full' is not a whole number: leave it out"),
        ({"rank": 2.0}, r"rank 2\.0 is not a whole number"),
        ({"rank": True}, "rank True is not a whole number"),
        ({"rank": 9}, "more than the 3 singular triplets"),
    ],
)
def test_wrong_options_are_refused(llama: Any, options: dict[str, Any], text: str) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    with pytest.raises(AnchorError, match=text):
        bind(anchor, lora(llama), **options)


@pytest.mark.parametrize("given", ["a.safetensors", Path("a.safetensors"), nn.Linear(2, 2), None])
def test_what_is_no_anchor_is_pointed_to_load(llama: Any, given: Any) -> None:
    with pytest.raises(AnchorError, match=r"no Anchor: .*Anchor\.load\(path\)"):
        bind(given, lora(llama))


def test_names_match_through_prefixes_but_never_two_at_once() -> None:
    keys = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]
    assert match_name("model.layers.1.self_attn.q_proj", keys) == keys[1]
    assert match_name("model.language_model.layers.1.self_attn.q_proj", keys) == keys[1]
    assert match_name("layers.0.self_attn.q_proj", keys) == keys[0]
    assert match_name("model.layers.10.self_attn.q_proj", keys) is None
    towers = ["vision.layers.0.q_proj", "text.layers.0.q_proj"]
    with pytest.raises(AnchorError, match="could be any of"):
        match_name("model.layers.0.q_proj", towers)


def test_movement_is_measured_from_the_start(llama: Any) -> None:
    anchor = anchor_of(weights_of(llama, ("q_proj", "v_proj")))
    model = get_peft_model(llama, LoraConfig(r=3, target_modules=["q_proj", "v_proj"])).double()
    penalty = bind(anchor, model, operator="subspace")
    assert penalty.movement().energy == 0
    target = penalty.coverage.targets[0]
    b, a = target.parameters()
    kept = target.factors
    for sign in (1.0, -1.0):  # an adapter that moves along dW itself, forwards then backwards
        b.data = sign * (kept.left * kept.sigma)[:, :3].double() / target.scale
        a.data = kept.right[:, :3].T.double()
        now = penalty.movement()
        assert now.energy == pytest.approx(float(kept.sigma.double().square().sum()), rel=1e-6)
        assert now.penalised == pytest.approx(0, abs=1e-10)
        assert now.inside == pytest.approx(1, rel=1e-6)
        assert (now.forwards if sign > 0 else now.backwards) == pytest.approx(1, rel=1e-6)
        assert (now.backwards if sign > 0 else now.forwards) == 0
