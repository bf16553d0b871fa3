"""Rows that begin alike are run once: the plan is the cheapest, and the gradients are the same."""

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
    SHORTEST,
    SharingMixin,
    can_share,
    group_rows,
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
    calls = 0


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
    # The beginning was run once; its last token predicts the first that one row learns.
    assert (1, len(HEAD) - 1) in calls
    assert sum(rows * width for rows, width in calls) < batch["input_ids"].numel()
    assert mine == pytest.approx(loss, rel=1e-5)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6, msg=name)


def test_a_model_that_cannot_go_on_from_its_cache_is_run_in_full(tmp_path: Path) -> None:
    model = load(tiny.tiny_llama(tmp_path / "m"))
    assert not can_share(load(tiny.tiny_gemma2(tmp_path / "g")), 1000)  # a window of 64
    whole = model.forward

    def forgets(*args: Any, **given: Any) -> Any:
        for name in ("cache", "past_key_values"):
            if given.get(name) is not None:
                given[name] = type(given[name])()
        given.pop("attention_mask", None)
        return whole(*args, **given)

    forgets.__signature__ = __import__("inspect").signature(whole)  # type: ignore[attr-defined]
    model.forward = forgets
    assert not can_share(model, 40)


def cost(rows: list[list[int]], limits: list[int], parts: list[list[int]]) -> int:
    """The least that these parts take, each with or without a shared beginning."""
    total = 0
    for part in parts:
        width = max(len(rows[i]) for i in part)
        plain = CALL_TOKENS + len(part) * width
        shared = min(min(limits[i], len(rows[i]) - 1) for i in part)
        while any(rows[i][:shared] != rows[part[0]][:shared] for i in part):
            shared -= 1
        if len(part) > 1 and shared >= SHORTEST:
            plain = min(plain, 2 * CALL_TOKENS + shared + len(part) * (width - shared))
        total += plain
    return total


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(10, 60), st.integers(1, 80), st.integers(1, 120)),
        min_size=1,
        max_size=6,
    )
)
def test_the_grouping_is_the_cheapest_of_all_cuts(drawn: list[tuple[int, int, int, int]]) -> None:
    rows = [[kind] * head + [9 + at] * tail for at, (kind, head, tail, _) in enumerate(drawn)]
    limits = [limit for *_, limit in drawn]
    groups = group_rows(rows, limits)
    assert sorted(index for group in groups for index in group.rows) == list(range(len(rows)))
    for group in groups:
        beginnings = {tuple(rows[index][: group.prefix]) for index in group.rows}
        assert len(beginnings) == 1
        assert all(group.prefix <= limits[i] and group.prefix < len(rows[i]) for i in group.rows)
    order = [index for group in groups for index in group.rows]
    cuts = [
        [order[a:b] for a, b in zip((0, *cut), (*cut, len(order)), strict=True)]
        for size in range(len(order))
        for cut in combinations(range(1, len(order)), size)
    ]
    mine = cost(rows, limits, [group.rows for group in groups])
    assert mine == min(cost(rows, limits, cut) for cut in cuts)


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
        file = tmp_path / str(share) / "adapter" / "adapter_model.safetensors"
        found[share] = (record.metrics["loss_last_tenth"], load_file(file))
    assert found["auto"][0] == pytest.approx(found[False][0], rel=1e-4)
    assert found["auto"][1].keys() == found[False][1].keys()
    same = [torch.equal(found["auto"][1][n], w) for n, w in found[False][1].items()]
    assert not all(same)  # it was another way of computing
    for name, weight in found[False][1].items():
        torch.testing.assert_close(found["auto"][1][name], weight, rtol=0, atol=1e-4, msg=name)


def test_who_asks_for_sharing_and_cannot_have_it_is_told(
    llama_aligned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"instruction": "Say it", "output": "it"}) + "\n")
    config = {
        "model": {"path": str(llama_aligned)},
        "data": {"path": str(path)},
        "output": str(tmp_path / "out"),
        "training": {"max_steps": 1, "batch_size": 1},
        "machine": {
            "device": "cpu", "dtype": "float32", "share_prefixes": True,
            "gradient_checkpointing": True,
        },
    }  # fmt: skip
    train(validate(config, TrainConfig, "here"))
    assert "machine.share_prefixes is left out" in caplog.text
