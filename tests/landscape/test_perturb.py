"""Moving a live model: where it goes, and that it comes back bit by bit."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anchortune.errors import AnchorError, EvaluationError
from anchortune.landscape import perturb
from anchortune.landscape.directions import Direction, of_update, random_direction
from anchortune.landscape.perturb import moved
from anchortune.maths.lowrank import LowRank

from ..tiny import tiny_gpt2, tiny_llama

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(BITS[tensor.element_size()]).clone()


def all_bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: bits(p) for name, p in model.named_parameters(remove_duplicate=False)}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def low_rank(shape: tuple[int, int], rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    return LowRank(
        torch.randn(shape[0], rank, generator=generator),
        torch.randn(rank, shape[1], generator=generator),
    )


def net(shapes: dict[str, tuple[int, int]], dtype: torch.dtype, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = nn.Module()
    for name, (rows, columns) in shapes.items():
        layer = nn.Linear(columns, rows, bias=False)
        layer.weight.data = torch.randn(rows, columns, generator=generator).to(dtype)
        model.add_module(name, layer)
    return model


def dense(part: LowRank) -> Tensor:
    return part.left.double() @ part.right.double()


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    rank=st.integers(1, 5),
    alpha=st.one_of(
        st.floats(-3, 3), st.sampled_from([1e-8, -1e-3, 50.0, -1e6]), st.floats(-1e30, 1e30)
    ),
    scale=st.sampled_from(["layer", "whole"]),
    block=st.sampled_from([1, 64, 1 << 22]),
    spread=st.sampled_from([1e-30, 1.0, 300.0]),
    noise=st.booleans(),
)
def test_every_bit_comes_back(
    dtype: torch.dtype,
    rows: int,
    columns: int,
    rank: int,
    alpha: float,
    scale: perturb.Scale,
    block: int,
    spread: float,
    noise: bool,
) -> None:
    model = net({"a": (rows, columns), "b": (columns, rows)}, dtype, seed=rank)
    model.a.weight.data *= spread
    model.a.weight.data[0, 0] = -0.0
    before = all_bits(model)
    shapes = {"a": (rows, columns), "b": (columns, rows)}
    way = of_update("x", {name: low_rank(shape, rank, 1) for name, shape in shapes.items()})
    ways = [(way, alpha)]
    if noise:
        ways.append((random_direction(shapes, 0), alpha / 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(perturb, "_BLOCK", block)
        with moved(model, ways, scale):
            pass
    assert same(before, all_bits(model))


@pytest.mark.parametrize("scale", ["layer", "whole"])
def test_the_weights_go_where_the_formula_says(scale: perturb.Scale) -> None:
    shapes = {"a": (7, 5), "b": (6, 9)}
    model = net(shapes, torch.float64)
    first = {name: low_rank(shape, 2, 3) for name, shape in shapes.items()}
    noise = random_direction(shapes, draw=4, seed=11)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    whole = sum(float(dense(part).square().sum()) for part in first.values()) ** 0.5
    other = (
        sum(float(part.dense().double().square().sum()) for part in noise.modules.values()) ** 0.5
    )
    with moved(model, [(of_update("x", first), 0.3), (noise, -0.2)], scale) as told:
        for name in shapes:
            weight, way = start[f"{name}.weight"], dense(first[name])
            random = noise.modules[name].dense().double()
            size = weight.norm()
            one = size / way.norm() if scale == "layer" else 1 / whole
            two = size / random.norm() if scale == "layer" else 1 / other
            wanted = weight + 0.3 * one * way - 0.2 * two * random
            torch.testing.assert_close(getattr(model, name).weight.detach(), wanted)
    assert told.weights == 2
    assert told.entries == 7 * 5 + 6 * 9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_holds_one_byte_a_weight_and_little_more(dtype: torch.dtype) -> None:
    model = net({"a": (300, 200)}, dtype)
    way = of_update("x", {"a": low_rank((300, 200), 4, 0)})
    with moved(model, [(way, 0.2)]) as told:
        pass
    assert told.entries <= told.held_bytes < 1.1 * told.entries


def fail_away_from(before: dict[str, Tensor], model: nn.Module) -> None:
    assert not same(before, all_bits(model))
    raise ZeroDivisionError


def test_it_comes_back_after_an_exception_too() -> None:
    model = net({"a": (6, 4)}, torch.bfloat16)
    before = all_bits(model)
    way = of_update("x", {"a": low_rank((6, 4), 1, 0)})
    with pytest.raises(ZeroDivisionError), moved(model, [(way, 1.0)]):
        fail_away_from(before, model)
    assert same(before, all_bits(model))


@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_it_comes_back_where_it_is_cut_off_on_the_way(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = {"a": (6, 4), "b": (6, 4)}
    model = net(shapes, torch.bfloat16)
    before = all_bits(model)
    way = of_update("x", {name: low_rank(shape, 1, 0) for name, shape in shapes.items()})
    monkeypatch.setattr(perturb, "_BLOCK", 12)
    copies = 0
    copy = Tensor.copy_

    def cut_off(self: Tensor, other: Tensor) -> Tensor:
        nonlocal copies
        copies += 1
        if copies == after + 1:
            raise KeyboardInterrupt
        return copy(self, other)

    monkeypatch.setattr(Tensor, "copy_", cut_off)
    with pytest.raises(KeyboardInterrupt), moved(model, [(way, 1.0)]):
        raise AssertionError("never here")
    assert same(before, all_bits(model))


def test_a_weight_changed_within_is_told() -> None:
    model = net({"a": (6, 4)}, torch.float32)
    way = of_update("x", {"a": low_rank((6, 4), 1, 0)})
    with pytest.raises(EvaluationError, match="did not come back as they were \\(a\\)"):  # noqa: SIM117
        with moved(model, [(way, 1.0)]):
            model.a.weight.data[2, 2] += 1


@pytest.fixture(params=["llama", "tied llama", "gpt2"])
def model(request: pytest.FixtureRequest, tmp_path: object) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if request.param == "gpt2":
        folder = tiny_gpt2(f"{tmp_path}/m")
    else:
        folder = tiny_llama(f"{tmp_path}/m", tie_word_embeddings=request.param == "tied llama")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)


def matrices(model: nn.Module) -> dict[str, tuple[int, int]]:
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() == 2:
            rows, columns = weight.shape
            conv = type(module).__name__ == "Conv1D"
            found[name] = (columns, rows) if conv else (rows, columns)
    return found


def test_a_real_class_of_model_moves_and_comes_back(model: nn.Module) -> None:
    shapes = matrices(model)
    before = all_bits(model)
    ids = torch.arange(12)[None]
    logits = model(input_ids=ids).logits
    way = of_update("x", {name: low_rank(shape, 2, 5) for name, shape in shapes.items()})
    with moved(model, [(way, 0.5), (random_direction(shapes, 1), 0.5)]) as told:
        assert not torch.equal(model(input_ids=ids).logits, logits)
        unique = {p.data_ptr(): p for p in model.parameters() if p.dim() == 2}
        assert told.weights == len(unique)  # tied ones once
    assert same(before, all_bits(model))
    assert torch.equal(model(input_ids=ids).logits, logits)


def test_a_conv1d_is_moved_the_way_it_is_stored(tmp_path: object) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2(f"{tmp_path}/m"), dtype=torch.float64)
    name = "transformer.h.1.mlp.c_fc"
    weight = model.get_submodule(name).weight
    assert weight.shape == (32, 48)
    part = low_rank((48, 32), 2, 0)
    start = weight.detach().clone()
    with moved(model, [(of_update("x", {"h.1.mlp.c_fc": part}), 0.1)]):
        wanted = start + 0.1 * start.norm() / dense(part).norm() * dense(part).T
        torch.testing.assert_close(weight.detach(), wanted)


def test_tied_weights_are_moved_once_and_counted_once() -> None:
    model = net({"a": (5, 5), "b": (5, 5)}, torch.float64)
    model.b.weight = model.a.weight
    start = model.a.weight.detach().clone()
    way = Direction("x", {"a": low_rank((5, 5), 1, 0), "b": low_rank((5, 5), 1, 0)})
    with moved(model, [(way, 1.0)], "whole"):
        gone = model.a.weight.detach() - start
    torch.testing.assert_close(gone.norm(), torch.tensor(1.0, dtype=torch.float64))


def test_autocast_around_it_changes_nothing() -> None:
    model = net({"a": (30, 20)}, torch.float32)
    way = of_update("x", {"a": low_rank((30, 20), 3, 0)})
    with moved(model, [(way, 0.4)]):
        plain = bits(model.a.weight)
    with torch.autocast("cpu", torch.bfloat16), moved(model, [(way, 0.4)]):
        assert torch.equal(plain, bits(model.a.weight))


def test_more_threads_within_do_not_matter() -> None:
    model = net({"a": (600, 500)}, torch.float32)
    before = all_bits(model)
    threads = torch.get_num_threads()
    try:
        with moved(model, [(of_update("x", {"a": low_rank((600, 500), 8, 0)}), 0.7)]):
            torch.set_num_threads(threads + 3)
    finally:
        torch.set_num_threads(threads)
    assert same(before, all_bits(model))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_bit_comes_back_on_cuda(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    shapes = {"a": (3000, 2000), "b": (2000, 3000)}
    model = net(shapes, dtype).to("cuda")
    before = all_bits(model)
    way = of_update("x", {name: low_rank(shape, 16, 1) for name, shape in shapes.items()})
    with moved(model, [(way, 0.5), (random_direction(shapes, 0), -0.3)]) as told:
        assert not same(before, all_bits(model))
    assert same(before, all_bits(model))
    assert told.held_bytes < 1.1 * told.entries


def test_alpha_0_moves_nothing() -> None:
    model = net({"a": (6, 4)}, torch.bfloat16)
    before = all_bits(model)
    with moved(model, [(of_update("x", {"a": low_rank((6, 4), 1, 0)}), 0.0)]) as told:
        assert same(before, all_bits(model))
    assert told == (0, 0, 0)


def refused(model: nn.Module, **parts: LowRank) -> None:
    with moved(model, [(Direction("x", parts), 1.0)]):
        pass


def test_refusals_name_the_weight() -> None:
    model = net({"a": (6, 4)}, torch.float32)
    part = low_rank((6, 4), 1, 0)
    with pytest.raises(AnchorError, match=r"1 of 2 modules .* not in the model \(other\)"):
        refused(model, a=part, other=part)
    with pytest.raises(AnchorError, match="'a' is 6 × 4 in the model but 4 × 6"):
        refused(model, a=low_rank((4, 6), 1, 0))
    with pytest.raises(ValueError, match="finite"), moved(model, [(Direction("x", {}), math.nan)]):
        pass
    model.a.weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(AnchorError, match=r"'a' is stored as torch\.uint8 and cannot be moved"):
        refused(model, a=part)
