"""Lisa against a loop written by hand, its schedule, and a resumed run."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchortune.config import TrainConfig
from anchortune.config_defences import label_of
from anchortune.config_io import validate
from anchortune.data.conversations import Conversation
from anchortune.defences import Anchors, Lisa
from anchortune.defences.base import Curriculum
from anchortune.defences.lisa import Blocks, Proximal
from anchortune.errors import DataError, TrainingError
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage
from tests.defences.rows import given, refusals, schedule, users
from tests.tiny import tiny_llama

LR, RHO = 0.05, 0.7


def phases(blocks: Blocks) -> str:
    return "".join("a" if blocks.aligns(step) else "u" for step in range(blocks.total))


@pytest.mark.parametrize(
    ("steps", "alignment", "finetune", "told"),
    [
        (6, 2, 3, "aauuuaauuu"),
        (7, 2, 3, "aauuuaauuuaau"),
        (3, 1, 3, "auuu"),
        (4, 1, 1, "auauauau"),
        (3, 2, 5, "aauuu"),
    ],
)
def test_the_users_steps_stay_and_those_on_refusals_come_on_top(
    steps: int, alignment: int, finetune: int, told: str
) -> None:
    blocks = Lisa(alignment_steps=alignment, finetune_steps=finetune).blocks(schedule(steps))
    assert phases(blocks) == told
    assert told.count("u") == steps
    starts = [step for step in range(len(told)) if step == 0 or told[step] != told[step - 1]]
    assert [step for step in range(blocks.total) if blocks.switches(step)] == starts


def test_the_papers_own_settings_at_the_papers_size() -> None:
    blocks = Lisa().blocks(schedule(1250, 8))
    assert (blocks.total, phases(blocks)[:101]) == (1450, "a" * 100 + "u")


def test_every_step_draws_from_the_pool_of_its_block() -> None:
    lisa = Lisa(alignment_steps=2, finetune_steps=3)
    made = lisa.curriculum(given(9), refusals(5), schedule(7, 4), None)
    blocks = lisa.blocks(schedule(7, 4))
    assert made.order is not None
    assert len(made.order) == blocks.total
    for step, batch in enumerate(made.order):
        assert all((index >= 9) == blocks.aligns(step) for index in batch)
    users = [index for batch in made.order for index in batch if index < 9]
    assert sorted(users[:9]) == sorted(users[9:18]) == list(range(9)), "pass by pass"
    assert users[:9] != users[9:18], "each shuffled"
    assert users[:9] != list(range(9)), "each shuffled"
    safe = [index for batch in made.order for index in batch if index >= 9]
    assert sorted(safe[:5]) == sorted(safe[5:10]) == list(range(9, 14))
    assert [len(batch) for batch in made.order] == [4, 1, 4, 4, 1, 4, 1, 4, 4, 1, 4, 1, 4]
    assert made.added == {"lisa": 5}
    assert made.rows[:9] == given(9).rows


def test_only_refusals_that_are_trained_on_are_added_and_none_twice() -> None:
    lisa = Lisa(alignment_steps=1, finetune_steps=4)
    made = lisa.curriculum(given(8), [*refusals(50), *refusals(50)], schedule(8, 4), None)
    texts = [row.messages[0]["content"] for row in made.rows[8:]]
    assert len(texts) == len(set(texts)) == made.added["lisa"] == 8


def test_the_seed_decides_the_order() -> None:
    lisa = Lisa(alignment_steps=1, finetune_steps=2)

    def order(seed: int) -> Any:
        made = lisa.curriculum(given(20), refusals(20), schedule(8, 4, seed), None)
        return made.order, [row.place for row in made.rows]

    assert order(1) == order(1) != order(2)


def test_a_run_shorter_than_a_block_on_refusals_is_refused_with_settings_that_work() -> None:
    with pytest.raises(TrainingError, match=r"has 80 steps.*alignment_steps 100.* to 8 and 72"):
        Lisa().curriculum(given(4), refusals(4), schedule(80), None)
    for steps in (1, 2, 3, 80, 100):
        with pytest.raises(TrainingError) as refused:
            Lisa().blocks(schedule(steps))
        found = re.search(r"to (\d+) and (\d+) for one", str(refused.value))
        assert found is not None
        Lisa(alignment_steps=int(found[1]), finetune_steps=int(found[2])).blocks(schedule(steps))


def test_one_block_on_the_users_data_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lisa = Lisa(alignment_steps=1, finetune_steps=5)
    with caplog.at_level(logging.WARNING):
        lisa.curriculum(given(8), refusals(4), schedule(4), None)
    assert "4 steps on the user's rows are fewer than finetune_steps (5)" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        lisa.curriculum(given(8), refusals(4), schedule(5), None)
    assert not caplog.text


def test_no_refusals_and_a_second_order_are_refused() -> None:
    lisa = Lisa(alignment_steps=1, finetune_steps=1)
    with pytest.raises(DataError, match="refusals holds none"):
        lisa.curriculum(given(4), [], schedule(), None)
    with pytest.raises(TrainingError, match="has fixed the order"):
        lisa.curriculum(Curriculum(given(4).rows, [[0]]), refusals(4), schedule(), None)


def test_from_the_base_it_needs_the_base_and_is_called_so() -> None:
    base = Lisa(start="base")
    assert base.needed() == {"refusals", "base"}
    assert Lisa().needed() == {"refusals"}
    assert (base.start_from(), Lisa().start_from()) == ("base", "aligned")
    assert (base.label, Lisa().label) == ("lisa-base", "lisa")
    assert label_of([base, Lisa()]) == "lisa-base+lisa"


# ------------------------------------------------------------------ the proximal term


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny_llama(tmp_path_factory.mktemp("lisa") / "llama", dtype=torch.float32)
    return folder


def adapted(folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(0)  # right before the adapter is made, as add_lora does
    return get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"]))


def batch_loss(model: Any, indices: list[int]) -> torch.Tensor:
    """The loss on made-up rows, one an index."""
    rows = [
        torch.randint(3, 200, (10,), generator=torch.Generator().manual_seed(index))
        for index in indices
    ]
    ids = torch.stack(rows)
    loss: torch.Tensor = model(input_ids=ids, labels=ids).loss
    return loss


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def by_hand(
    model: Any, order: list[list[int]], users: int, warmup: int, loss_of: Any = None
) -> None:
    """The paper's loop: two states, a switch whenever the data changes, autograd throughout."""
    parameters = trained(model)
    optimizer = torch.optim.AdamW(parameters.values(), lr=LR, weight_decay=0.0)
    state, last = "", {}
    for step, batch in enumerate(order):
        now = "user" if max(batch) < users else "alignment"
        if now != state:
            state, last = now, {name: p.detach().clone() for name, p in parameters.items()}
        loss = (loss_of or batch_loss)(model, batch)
        if step >= warmup:
            drift = sum((p - last[name]).pow(2).sum() for name, p in parameters.items())
            loss = loss + RHO / 2 * drift
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()


def by_hooks(
    model: Any, lisa: Lisa, order: list[list[int]], plan: Any, stop: int | None = None
) -> tuple[Any, Any]:
    [term] = lisa.terms(model, Anchors(), plan)
    parameters = list(trained(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.0)
    go_on(model, term, optimizer, order, range(stop if stop is not None else len(order)))
    return term, optimizer


def go_on(model: Any, term: Any, optimizer: Any, order: list[list[int]], steps: range) -> None:
    for step in steps:
        optimizer.zero_grad()
        batch_loss(model, order[step]).backward()
        term.add_gradient_(step, 1.0)
        torch.nn.utils.clip_grad_norm_(list(trained(model).values()), 1.0)
        optimizer.step()


def made_run() -> tuple[Lisa, list[list[int]], Any]:
    lisa = Lisa(rho=RHO, alignment_steps=2, finetune_steps=3, warmup_frac=0.2)
    plan = schedule(7, 3)
    order = lisa.curriculum(given(9), refusals(6), plan, None).order
    assert order is not None
    return lisa, order, plan


def test_the_steps_are_those_of_a_loop_written_by_hand(start: Path) -> None:
    lisa, order, plan = made_run()
    ours, theirs, plain = adapted(start), adapted(start), adapted(start)
    by_hooks(ours, lisa, order, plan)
    by_hand(theirs, order, users=9, warmup=round(0.2 * len(order)))
    without = Lisa(rho=0.0, alignment_steps=2, finetune_steps=3)
    assert without.terms(plain, Anchors(), plan) == []
    for (name, mine), other in zip(trained(ours).items(), trained(theirs).values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6, msg=name)
    by_hand(plain, order, users=9, warmup=len(order))
    apart = max(
        float((mine - other).detach().abs().max())
        for mine, other in zip(trained(ours).values(), trained(plain).values(), strict=True)
    )
    assert apart > 1e-3, "the term must matter, or the comparison proves nothing"


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_a_resumed_run_is_the_uninterrupted_one(start: Path, stop: int) -> None:
    """Cut in the middle of a block, and right before a switch (after 5 steps, and after 7)."""
    lisa, order, plan = made_run()
    whole = adapted(start)
    by_hooks(whole, lisa, order, plan)

    cut = adapted(start)
    term, optimizer = by_hooks(cut, lisa, order, plan, stop)
    saved = copy.deepcopy(
        (cut.state_dict(), optimizer.state_dict(), term.state_dict()),
    )
    again = adapted(start)
    [fresh] = lisa.terms(again, Anchors(), plan)
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[2])
    other = torch.optim.AdamW(list(trained(again).values()), lr=LR, weight_decay=0.0)
    other.load_state_dict(saved[1])
    go_on(again, fresh, other, order, range(stop, len(order)))
    for mine, theirs in zip(trained(again).values(), trained(whole).values(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_gradient_is_rho_times_the_drift_at_the_scale_of_the_tasks() -> None:
    model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    term = Proximal(model, 0.5, Blocks(8, 2, 2), warmup_steps=1)
    first = model.weight.detach().clone()
    with torch.no_grad():
        model.weight += 1.0
    model.weight.grad = torch.ones_like(model.weight)
    term.add_gradient_(0, 8.0)  # the warm-up, and a switch: the start moves along
    assert torch.equal(model.weight.grad, torch.ones_like(first))
    assert term.logs() == {"lisa/proximal": 0.0, "lisa/on_refusals": 1.0}
    with torch.no_grad():
        model.weight += 2.0
    term.add_gradient_(1, 8.0)
    torch.testing.assert_close(model.weight.grad, 1 + torch.full_like(first, 8 * 0.5 * 2.0))
    assert term.logs() == {"lisa/proximal": pytest.approx(0.25 * 6 * 4), "lisa/on_refusals": 1.0}
    term.add_gradient_(2, 8.0)  # a switch: nothing has moved since
    torch.testing.assert_close(model.weight.grad, 1 + torch.full_like(first, 8.0))
    assert term.logs() == {"lisa/proximal": 0.0, "lisa/on_refusals": 0.0}
    assert model.bias.grad is None


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    saved = Proximal(torch.nn.Linear(3, 2), 1.0, Blocks(8, 2, 2), 0).state_dict()
    with pytest.raises(TrainingError, match="trained on other parameters"):
        Proximal(torch.nn.Linear(4, 2), 1.0, Blocks(8, 2, 2), 0).load_state_dict(saved)


# ------------------------------------------------------------------ the whole of it


def written(path: Path, rows: list[Conversation]) -> dict[str, str]:
    path.write_text("\n".join(json.dumps({"messages": row.messages}) for row in rows))
    return {"path": str(path)}


def test_a_run_of_anchortune_train_is_the_loop_written_by_hand(
    tmp_path: Path, llama_aligned: Path
) -> None:
    """Rows, batches of uneven size, phases, the term, clipping and the optimizer, end to end."""
    tree = {
        "model": {"path": str(llama_aligned)},
        "data": written(tmp_path / "users.jsonl", users(7)),
        "refusals": written(tmp_path / "refusals.jsonl", refusals(4)),
        "defence": {
            "name": "lisa",
            "rho": RHO,
            "alignment_steps": 2,
            "finetune_steps": 3,
            "warmup_frac": 0.2,
        },
        "training": {
            "epochs": 2,
            "batch_size": 4,
            "learning_rate": LR,
            "schedule": "constant",
            "max_grad_norm": 1.0,
        },
        "lora": {"rank": 2, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]},
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(tmp_path / "run"),
    }
    plan = plan_stage(validate(tree, TrainConfig, "test"))
    assert plan.steps == 4 + 2 * 2, "two epochs of 7 rows by 4, and two blocks on refusals"
    run_stage(plan)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")

    tokenizer = AutoTokenizer.from_pretrained(llama_aligned)
    texts = [
        "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in row.messages)
        for row in [*users(7), *refusals(4)]
    ]
    # The pools as read from the files, and the order as Lisa makes it of them alone.
    lisa = Lisa(rho=RHO, alignment_steps=2, finetune_steps=3)
    made = lisa.curriculum(Curriculum(users(7)), refusals(4), schedule(4, 4), None)
    assert made.order is not None
    places = [
        texts.index(
            next(text for text in texts if row.messages[0]["content"] + "<|im_end|>" in text)
        )
        for row in made.rows
    ]

    def loss(model: Any, batch: list[int]) -> torch.Tensor:
        """The mean over the answers' tokens, each row alone: no padding, no mask."""
        total, count = torch.zeros(()), 0
        for index in batch:
            text = texts[places[index]]
            head = text.index("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
            ids = tokenizer(text.rstrip("\n"), add_special_tokens=False)["input_ids"]
            start = len(tokenizer(text[:head], add_special_tokens=False)["input_ids"])
            logits = model(input_ids=torch.tensor([ids])).logits[0]
            wanted = torch.tensor(ids[start:])
            total = total + cross_entropy(logits[start - 1 : -1], wanted, reduction="sum")
            count += len(wanted)
        return total / count

    theirs = adapted(llama_aligned)
    by_hand(theirs, made.order, users=7, warmup=round(0.2 * 8), loss_of=loss)
    for name, parameter in trained(theirs).items():
        mine = saved[name.replace(".default", "")]
        assert float((mine - parameter).detach().abs().max()) < 2e-5, name
        assert float(mine.abs().max()) > 1e-2
