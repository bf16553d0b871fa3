"""Logits of the labelled positions alone: the same loss and gradients, in every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchortune.models.load import Numbers
from anchortune.training import gradient as mean_gradient
from anchortune.training.batches import Collator
from anchortune.training.labelled import labelled_positions, takes_labelled_positions
from anchortune.training.template import IGNORE, Encoded
from tests import tiny

ROWS = [
    {"input_ids": [1, 5, 6, 7, 8, 2], "labels": [IGNORE] * 4 + [8, 2]},
    {"input_ids": [1, 9, 4, 2], "labels": [IGNORE, IGNORE, 4, 2]},
    {"input_ids": [1, 3], "labels": [IGNORE, IGNORE]},
]
FAMILIES = [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_gemma2, tiny.tiny_phi3, tiny.tiny_gpt2]


def load(path: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def gradients(model: Any, batch: dict[str, Any]) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**batch, num_items_in_batch=4).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("make", FAMILIES)
def test_loss_and_gradients_are_those_of_every_position(make: Any, tmp_path: Path) -> None:
    model = load(make(tmp_path / "m"))
    model.train()
    assert takes_labelled_positions(model)
    assert model.training
    model.eval()  # or GPT-2's dropout would differ
    loss, wanted = gradients(model, Collator(0)(ROWS))
    short = Collator(0, labelled_only=True)(ROWS)
    assert short["logits_to_keep"].tolist() == [1, 2, 3, 4]
    assert model(**short).logits.shape[1] == 4
    mine, found = gradients(model, short)
    assert mine == pytest.approx(loss, rel=1e-5)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_peft_model_is_asked_through(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(load(tiny.tiny_llama(tmp_path / "m")), LoraConfig(r=2))
    assert takes_labelled_positions(model)


def test_a_mean_gradient_asks_for_no_other_logit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = torch.device("cpu")
    numbers = Numbers(cpu, torch.float32, torch.float32)
    model = load(tiny.tiny_llama(tmp_path / "m"))
    name = "model.layers.0.self_attn.q_proj"
    rows = [Encoded(row["input_ids"], row["labels"], False) for row in ROWS]
    seen: list[int] = []
    model.lm_head.register_forward_hook(lambda _, x, out: seen.append(out.shape[1]))

    def product() -> torch.Tensor:
        seen.clear()
        found = mean_gradient.descent(model, Tokens(), numbers, [name], rows, 64)[name]
        return found.left * found.sigma @ found.right.T

    short = product()
    assert seen[-1] == 4
    monkeypatch.setattr(mean_gradient, "takes_labelled_positions", lambda model: False)
    whole = product()
    assert seen == [6]
    torch.testing.assert_close(short, whole, rtol=1e-4, atol=1e-6)


class Tokens:
    """Of a tokenizer, what padding needs."""

    pad_token_id = 0


class OwnLoss(torch.nn.Module):
    """A model of a remote repository, which shifts the labels itself whatever it is told."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any, labels: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        out = self.inner(input_ids=input_ids, logits_to_keep=logits_to_keep)
        rows = labels[:, -out.logits.shape[1] :]
        out.loss = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), ignore_index=IGNORE
        )
        return out


class Unshifted(OwnLoss):
    """A model whose loss wants a logit for every label, and fails without."""

    def forward(self, input_ids: Any, labels: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        out = self.inner(input_ids=input_ids, logits_to_keep=logits_to_keep)
        out.loss = torch.nn.functional.cross_entropy(
            out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORE
        )
        return out


class AllLogits(torch.nn.Module):
    """A model that knows no ``logits_to_keep``."""

    def forward(self, input_ids: Any, labels: Any = None) -> Any:
        raise AssertionError("not to be called")


def test_models_that_would_learn_something_else_are_left_alone(tmp_path: Path) -> None:
    assert not takes_labelled_positions(OwnLoss(load(tiny.tiny_llama(tmp_path / "m"))))
    assert not takes_labelled_positions(Unshifted(load(tiny.tiny_llama(tmp_path / "m"))))
    assert not takes_labelled_positions(AllLogits())


@given(
    st.lists(
        st.lists(st.sampled_from([IGNORE, 3, 4]), min_size=5, max_size=5), min_size=1, max_size=4
    )
)
def test_every_label_that_is_predicted_is_kept_and_none_else(rows: list[list[int]]) -> None:
    labels = torch.tensor(rows)
    told = labelled_positions(labels)
    kept, shifted = told["logits_to_keep"], told["shift_labels"]
    assert shifted.shape == (len(rows), len(kept))
    assert int(shifted.ne(IGNORE).sum()) == int(labels[:, 1:].ne(IGNORE).sum())
    for row in range(len(rows)):
        for at, position in enumerate(kept.tolist()):
            following = labels[row, position + 1] if position < 4 else IGNORE
            assert shifted[row, at] == following
    if shifted.ne(IGNORE).any():
        assert bool(shifted.ne(IGNORE).any(dim=0).all())
