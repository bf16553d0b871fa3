"""Terms, orders and losses on a trainer against loops written by hand."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer

from anchortune.errors import TrainingError
from anchortune.training.batches import Collator, Sequences
from anchortune.training.order import MicroBatches, attach_order, split
from anchortune.training.seam import attach
from anchortune.training.task_loss import attach_task_loss
from anchortune.training.template import IGNORE, Encoded
from anchortune.training.terms import STATE_FILE, attach_terms, load_states, save_states
from tests.tiny import tiny_llama
from tests.training.test_seam import (
    LAM,
    InOrder,
    Rows,
    adapted,
    anchor_for,
    arguments,
    by_hand,
    same,
    weights,
)

RHO = 0.7
SWITCH = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("terms") / "llama", dtype=torch.float32, tokenizer=True
    )


class Near:
    """``ρ/2·‖w − w_last‖²``, w_last taken anew every ``SWITCH`` steps."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.last = self._now()

    def _now(self) -> dict[str, torch.Tensor]:
        return {n: p.detach().clone() for n, p in self.model.named_parameters() if p.requires_grad}

    def add_gradient_(self, step: int, grad_scale: float) -> None:
        if step % SWITCH == 0:
            self.last = self._now()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.grad.add_(grad_scale * RHO * (parameter.detach() - self.last[name]))

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last, "kind": "near", "more": [1, None, {"x": 0.5}]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert (state["kind"], state["more"]) == ("near", [1, None, {"x": 0.5}])
        self.last = state["last"]

    def logs(self) -> dict[str, float]:
        return {"near/rho": RHO}


def by_hand_near(folder: Path, steps: int = 6) -> Any:
    """Lisa's proximal step, written out: the term's gradient after backward, before clipping."""
    model = adapted(folder)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    model.train()
    rows = Rows()
    last: list[torch.Tensor] = []
    for step in range(steps):
        picked = [rows[(4 * step + i) % 16] for i in range(4)]
        batch = {key: torch.stack([row[key] for row in picked]) for key in picked[0]}
        tokens = picked[0]["labels"].numel() - 1
        loss = model(**batch, num_items_in_batch=torch.tensor(4 * tokens)).loss
        optimizer.zero_grad()
        loss.backward()
        if step % SWITCH == 0:
            last = [p.detach().clone() for p in parameters]
        for parameter, at in zip(parameters, last, strict=True):
            parameter.grad.add_(RHO * (parameter.detach() - at))
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model


def near(folder: Path, out: Path, **options: Any) -> Any:
    trainer = InOrder(adapted(folder), arguments(out, **options), train_dataset=Rows())
    return attach_terms(trainer, [Near(trainer.model)])


def test_a_term_gives_the_steps_of_a_loop_by_hand_and_resumes(folder, tmp_path) -> None:
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    whole = near(folder, tmp_path / "whole", **saving)
    whole.train()
    assert same(weights(whole.model), weights(by_hand_near(folder)))
    assert not same(weights(whole.model), weights(by_hand(folder, 0.0)))
    assert whole.state.log_history[0]["near/rho"] == RHO
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    checkpoint = tmp_path / "part" / "checkpoint-3"
    part = near(folder, tmp_path / "part", **saving)
    part.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole.model), weights(part.model))

    trainer = InOrder(adapted(folder), arguments(tmp_path / "part", **saving), train_dataset=Rows())
    attach_terms(trainer, [Near(trainer.model)] * 2)
    with pytest.raises(TrainingError, match="saved with 1 terms and there are 2 now"):
        trainer.train(resume_from_checkpoint=str(checkpoint))
    (checkpoint / STATE_FILE).unlink()
    with pytest.raises(TrainingError, match="saved without terms"):
        near(folder, tmp_path / "part", **saving).train(resume_from_checkpoint=str(checkpoint))


def test_terms_stack_with_the_penalty_in_either_order(folder, tmp_path) -> None:
    found = []
    for first in ("penalty", "terms"):
        trainer = InOrder(adapted(folder), arguments(tmp_path / first), train_dataset=Rows())
        if first == "penalty":
            attach(trainer, anchor_for(folder), lam=LAM, operator="subspace")
        attach_terms(trainer, [Near(trainer.model)])
        if first == "terms":
            attach(trainer, anchor_for(folder), lam=LAM, operator="subspace")
        trainer.train()
        assert {"near/rho", "asft/lam"} <= set(trainer.state.log_history[0])
        found.append(weights(trainer.model))
    penalised = weights(by_hand(folder, LAM, operator="subspace"))
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, found[1][name], rtol=1e-3, atol=1e-5)
    assert not same(found[0], penalised)


@pytest.mark.parametrize(
    ("flag", "text"),
    [("is_deepspeed_enabled", "DeepSpeed .* a term cannot"), ("is_fsdp_enabled", "FSDP")],
)
def test_backends_that_cannot_honour_terms_are_refused(folder, tmp_path, flag, text) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    setattr(trainer, flag, True)
    with pytest.raises(TrainingError, match=text):
        attach_terms(trainer, [])
    with pytest.raises(TrainingError, match=r"term\.add_gradient_\(step, 1\.0\)"):
        attach_terms(object(), [])


def test_attached_twice_or_to_another_model_is_refused(folder, tmp_path) -> None:
    trainer = near(folder, tmp_path)
    with pytest.raises(TrainingError, match="attach all of them at once"):
        attach_terms(trainer, [])
    trainer.model = trainer.model_wrapped = adapted(folder)
    with pytest.raises(TrainingError, match="not the one that the terms were made for"):
        trainer.train()


def test_states_are_read_back_as_they_were(tmp_path) -> None:
    states = [{"w": {"a.b": torch.arange(3.0)}, "n": 3, "x": [None, torch.ones(2)]}, {}]
    save_states(tmp_path, states)
    found = load_states(tmp_path)
    assert torch.equal(found[0]["w"]["a.b"], torch.arange(3.0))
    assert torch.equal(found[0]["x"][1], torch.ones(2))
    assert (found[0]["n"], found[0]["x"][0], found[1]) == (3, None, {})
    save_states(tmp_path, [{"n": 1}])
    assert load_states(tmp_path) == [{"n": 1}]


def uneven() -> list[Encoded]:
    """Eight rows of several lengths, the answer from the third token on."""
    rows = []
    for index in range(8):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 200, (6 + 2 * (index % 4),), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE, IGNORE, *ids[2:]]))
    return rows


ORDER = [[0, 1, 2, 3, 4, 5, 6, 7], [7, 7, 3], [2], [5, 4, 3, 2, 1, 0]]


def flat(parts: Any) -> list[Any]:
    return list(itertools.chain.from_iterable(parts))


def test_a_step_is_split_into_as_many_parts_as_the_trainer_counts() -> None:
    assert split([1, 2, 3, 4, 5], 2) == [[1, 2, 3], [4, 5]]
    assert split([1, 2], 4) == [[1], [2], [-1], [-1]]
    assert len(MicroBatches(ORDER, 8)) == len(list(MicroBatches(ORDER, 8))) == 32
    assert flat(MicroBatches(ORDER, 1)) == flat(ORDER)


class Seen(Collator):
    """A collator that remembers what it was given."""

    def __call__(self, rows: Any) -> Any:
        LOOKED.append([row["input_ids"] for row in rows if any(x >= 0 for x in row["labels"])])
        return super().__call__(rows)


LOOKED: list[list[list[int]]] = []


def ordered(folder: Path, out: Path, micro: int, loss: Any = None, **options: Any) -> Any:
    args = arguments(
        out,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        max_steps=len(ORDER),
        **options,
    )
    trainer = Trainer(
        adapted(folder), args, data_collator=Seen(0), train_dataset=Sequences(uneven())
    )
    attach_order(trainer, ORDER)
    return trainer if loss is None else attach_task_loss(trainer, loss)


def by_hand_ordered(folder: Path, loss: Any = None) -> Any:
    """Each step's batch at once, its loss a mean over the step's answer tokens."""
    model = adapted(folder)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    model.train()
    rows = uneven()
    for step in ORDER:
        picked = [{"input_ids": rows[i].input_ids, "labels": rows[i].labels} for i in step]
        batch = Collator(0)(picked)
        if loss is None:
            value = model(**batch).loss
        else:
            labels = batch.pop("labels")
            with torch.no_grad(), model.disable_adapter():
                reference = model(**batch).logits
            value = loss(model(**batch).logits, labels, reference)
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model


def close(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    # Adam turns rounding of tiny gradients into steps; the weights moved by about 0.04.
    drift = torch.cat([(left[n] - right[n]).abs().flatten() for n in left])
    assert float(drift.max()) < 2e-3
    assert float(drift.mean()) < 2e-5


@pytest.mark.parametrize("micro", [8, 2, 1])
def test_an_order_is_honoured_exactly(folder, tmp_path, micro: int) -> None:
    LOOKED.clear()
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    trainer = ordered(folder, tmp_path, micro, **saving)
    trainer.train()
    pieces, rows = 8 // micro, uneven()
    seen = [flat(LOOKED[at : at + pieces]) for at in range(0, len(LOOKED), pieces)]
    assert seen == [[rows[i].input_ids for i in batch] for batch in ORDER]
    close(weights(trainer.model), weights(by_hand_ordered(folder)))

    LOOKED.clear()
    again = ordered(folder, tmp_path, micro, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert flat(LOOKED) == [rows[i].input_ids for i in ORDER[3]]
    assert same(weights(trainer.model), weights(again.model))


def held_back(logits: Any, labels: Any, reference: Any) -> Any:
    """Cross-entropy and the distance to the start model's logits, a mean over answer tokens."""
    learnt = labels[:, 1:] != IGNORE
    now, start = logits[:, :-1][learnt], reference[:, :-1][learnt]
    return cross_entropy(now, labels[:, 1:][learnt]) + 0.5 * (now - start).square().mean()


@pytest.mark.parametrize("micro", [8, 1])
def test_a_loss_of_its_own_is_the_same_however_a_step_is_accumulated(
    folder, tmp_path, micro: int
) -> None:
    trainer = ordered(folder, tmp_path, micro, held_back)
    trainer.train()
    close(weights(trainer.model), weights(by_hand_ordered(folder, held_back)))
    plain = Trainer(trainer.model, arguments(tmp_path / "e"), data_collator=Collator(0))
    rows = Sequences(uneven())
    assert trainer.evaluate(rows)["eval_loss"] == plain.evaluate(rows)["eval_loss"]


def test_the_reference_of_a_full_training_is_a_frozen_copy(folder, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainer = Trainer(
        model, arguments(tmp_path, max_steps=2), data_collator=Collator(0),
        train_dataset=Sequences(uneven()),
    )  # fmt: skip
    looked = []

    def loss(logits: Any, labels: Any, reference: Any) -> Any:
        looked.append((logits.detach() - reference).abs().max().item())
        return held_back(logits, labels, reference)

    attach_task_loss(trainer, loss)
    trainer.train()
    assert looked[0] == 0 < looked[1]
    assert not torch.equal(start["lm_head.weight"], model.lm_head.weight)
    for name, parameter in trainer._reference.named_parameters():
        assert torch.equal(parameter, start[name])
