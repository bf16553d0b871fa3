"""Rows of a step as one tree: the plan is the cheapest, and the gradients are the same."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from anchortune.config import TrainConfig
from anchortune.config_io import validate
from anchortune.training.batches import Collator
from anchortune.training.sharing import (
    CALL_TOKENS,
    SharingMixin,
    can_share,
    lay_out,
    pack_rows,
)
from anchortune.training.template import IGNORE
from anchortune.training.train import train
from tests import tiny

HEAD = list(range(3, 15)) * 3


def rows_of(*tails: tuple[list[int], int], head: list[int] = HEAD) -> list[dict[str, list[int]]]:
    """Rows that begin with ``head``; of each the tail and how many of its tokens are learnt."""
    return [
        {
            "input_ids": [*head, *tail],
            "labels": [IGNORE] * (len(head) + len(tail) - learnt) + tail[len(tail) - learnt :],
        }
        for tail, learnt in tails
    ]


MIXED = [
    *rows_of(([20, 21, 22], 1), ([23, 24], 2), ([25, 26, 27, 28], 2), ([29, 30], 1)),
    *rows_of((list(range(30, 50)), 9), head=[3, 4]),
    {"input_ids": [1, 2], "labels": [IGNORE, IGNORE]},
]
FAMILIES = [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_gemma2, tiny.tiny_phi3, tiny.tiny_gpt2]


class Parent:
    """What stands for the trainer: the loss of all rows at once."""

    def compute_loss(self, model: Any, inputs: Any, _: bool = False, items: Any = None) -> Any:
        return model(**inputs, num_items_in_batch=items).loss


class Sharing(SharingMixin, Parent):
    pass


def load(path: Path, lora: bool = False) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, adapter) if lora else model


def gradients(trainer: Any, model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    model.train()
    model.zero_grad()
    items = batch["labels"][:, 1:].ne(IGNORE).sum()
    loss = trainer.compute_loss(model, batch, False, items)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", FAMILIES)
def test_gradients_are_those_of_the_whole_batch(make: Any, lora: bool, tmp_path: Path) -> None:
    model = load(make(tmp_path / "m"), lora)
    assert can_share(model, 60)
    assert all(p.grad is None for p in model.parameters())
    batch = Collator(0, labelled_only=True)(MIXED)
    calls: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: calls.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    mine, found = gradients(Sharing(), model, batch)
    hook.remove()
    loss, wanted = gradients(Parent(), model, batch)
    # Each row ends where it learns last; the fifth shares two tokens, the last learns nothing.
    assert calls == [(1, len(HEAD) + (2 + 1 + 3 + 1) + 19)]
    assert mine == pytest.approx(loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("forgotten", ["attention_mask", "position_ids"])
def test_a_model_that_does_not_heed_the_tree_is_run_in_full(
    forgotten: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = load(tiny.tiny_llama(tmp_path / "m")).to(dtype)
    assert not can_share(load(tiny.tiny_gemma2(tmp_path / "g")), 1000)  # a window of 64
    whole = model.forward

    def forgets(*args: Any, **given: Any) -> Any:
        given.pop(forgotten, None)
        return whole(*args, **given)

    model.forward = forgets
    assert not can_share(model, 40)
    model.forward = whole
    assert can_share(model, 40)
    model.config._attn_implementation = "flash_attention_2"
    assert not can_share(model, 40)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("make", FAMILIES)
def test_sixteen_bits_round_more_and_share_all_the_same(
    make: Any, lora: bool, tmp_path: Path
) -> None:
    model = load(make(tmp_path / "m"), lora).to(torch.bfloat16)
    assert can_share(model, 60)
    batch = Collator(0, labelled_only=True)(MIXED)
    mine, _ = gradients(Sharing(), model, batch)
    loss, _ = gradients(Parent(), model, batch)
    assert mine == pytest.approx(loss, rel=2e-2)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_and_checkpointing_compute_the_same(
    attention: str, tmp_path: Path
) -> None:
    model = load(tiny.tiny_llama(tmp_path / "m"))
    model.set_attn_implementation(attention)
    assert can_share(model, 60)
    batch = Collator(0, labelled_only=True)(MIXED)
    loss, wanted = gradients(Parent(), model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    mine, found = gradients(Sharing(), model, batch)
    assert mine == pytest.approx(loss, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6, msg=name)


def test_a_batch_without_labels_has_a_loss_of_0_and_gradients_of_0(tmp_path: Path) -> None:
    model = load(tiny.tiny_llama(tmp_path / "m"))
    batch = Collator(0, labelled_only=True)([{"input_ids": [1, 2], "labels": [IGNORE, IGNORE]}] * 2)
    loss = Sharing().compute_loss(model.train(), batch, False, torch.tensor(3))
    loss.backward()
    assert loss == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    assert any(p.grad is not None for p in model.parameters())


ROWS = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=6
)  # of three tokens, so that they often begin alike


def tree_size(rows: list[list[int]]) -> int:
    """The nodes of the rows' tree, each a beginning that some row has."""
    return len({tuple(row[: n + 1]) for row in rows for n in range(len(row))})


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_each_token_of_a_tree_sees_what_leads_to_it(rows: list[list[int]]) -> None:
    rows = sorted(rows)
    tree = lay_out(rows)
    assert len(tree.ids) == tree_size(rows)
    seen = {}
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.ids[path].tolist() == row
        assert tree.positions[path].tolist() == list(range(len(row)))
        for at, place in enumerate(path):
            seen[place] = sorted(path[: at + 1])
    assert {at: row.nonzero().flatten().tolist() for at, row in enumerate(tree.visible)} == seen


def cost(rows: list[list[int]], hidden: int, parts: list[list[int]]) -> float:
    """What these trees take, by the formula."""
    sizes = [tree_size([rows[i] for i in part]) for part in parts]
    return sum(CALL_TOKENS + size + size**2 / (3 * hidden) for size in sizes)


@settings(max_examples=60, deadline=None)
@given(ROWS, st.integers(1, 30), st.integers(1, 12))
def test_the_packing_is_the_cheapest_of_all_cuts(
    rows: list[list[int]], times: int, hidden: int
) -> None:
    rows = [[token for token in row for _ in range(times)] for row in rows]
    packs = pack_rows(rows, hidden)
    order = [index for pack in packs for index in pack]
    assert sorted(order) == list(range(len(rows)))
    assert [rows[index] for index in order] == sorted(rows)
    cuts = [
        [order[a:b] for a, b in zip((0, *cut), (*cut, len(order)), strict=True)]
        for size in range(len(order))
        for cut in combinations(range(1, len(order)), size)
    ]
    least = min(cost(rows, hidden, cut) for cut in cuts)
    assert cost(rows, hidden, packs) == pytest.approx(least)


def test_a_training_comes_out_the_same(llama_aligned: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "d.jsonl"
    rows = [{"instruction": f"Say the number {i} again", "output": f"{i}"} for i in range(24)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    found = {}
    for share in (False, "auto"):
        config = {
            "model": {"path": str(llama_aligned)},
            "data": {"path": str(path)},
            "output": str(tmp_path / str(share)),
            "lora": {"rank": 2, "dropout": 0.0},
            "training": {"epochs": 2, "learning_rate": 1e-3},
            "machine": {"device": "cpu", "dtype": "float32", "share_prefixes": share},
        }
        record = train(validate(config, TrainConfig, "here"))
        assert record.numbers["shared_prefixes"] == (share == "auto")
        file = tmp_path / str(share) / "adapter" / "adapter_model.safetensors"
        found[share] = (record.metrics["loss_last_tenth"], load_file(file))
    assert found["auto"][0] == pytest.approx(found[False][0], rel=1e-4)
    assert found["auto"][1].keys() == found[False][1].keys()
    same = [torch.equal(found["auto"][1][n], w) for n, w in found[False][1].items()]
    assert not all(same)  # it was another way of computing
    for name, weight in found[False][1].items():
        torch.testing.assert_close(found["auto"][1][name], weight, rtol=0, atol=1e-4, msg=name)


def test_who_asks_for_sharing_and_cannot_have_it_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"instruction": "Say it", "output": "it"}) + "\n")
    config = {
        "model": {"path": str(tiny.tiny_gemma2(tmp_path / "m", tokenizer=True))},  # a window of 64
        "data": {"path": str(path)},
        "output": str(tmp_path / "out"),
        "training": {"max_steps": 1, "batch_size": 1},
        "machine": {"device": "cpu", "dtype": "float32", "share_prefixes": True},
    }
    record = train(validate(config, TrainConfig, "here"))
    assert "machine.share_prefixes is left out" in caplog.text
    assert record.numbers["shared_prefixes"] is False
