"""An anchor made again in mid-training: the estimator, a loop written by hand, resume, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from anchortune.anchor.penalty import bind
from anchortune.config import TrainConfig
from anchortune.config_io import validate
from anchortune.data.conversations import SourceReport
from anchortune.errors import AnchorError, ConfigError, TrainingError
from anchortune.models.load import Numbers
from anchortune.record import read_record
from anchortune.training.gradient import descent
from anchortune.training.plan import plan_stage
from anchortune.training.refresh import STATE_FILE, Refresh, attach_refresh
from anchortune.training.seam import attach
from anchortune.training.stage import run_stage
from anchortune.training.template import Encoded
from tests.tiny import tiny_llama
from tests.training.test_seam import InOrder, Rows, adapted, anchor_for, arguments, weights
from tests.training.test_stage import anchor as anchor
from tests.training.test_stage import data as data
from tests.training.test_stage import make, same

FLOAT = Numbers(torch.device("cpu"), torch.float32, torch.float32)
LAM, EVERY, RANK = 0.3, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("refresh") / "llama"
    return tiny_llama(place, dtype=torch.float32, tokenizer=True)


def encoded(count: int = 11) -> list[Encoded]:
    """Rows of other lengths, of which only the second half is learnt."""
    rows = []
    for seed in range(count):
        size = 8 + seed % 5
        generator = torch.Generator().manual_seed(100 + seed)
        ids = torch.randint(3, 200, (size,), generator=generator).tolist()
        rows.append(Encoded(ids, [-100] * (size // 2) + ids[size // 2 :], False))
    return rows


def refresh_of(folder: Path, rows: list[Encoded], every: int = EVERY, rank: int = RANK) -> Refresh:
    report = SourceReport("rows", "0" * 64, "messages", {}, len(rows), len(rows))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Refresh(every, rank, rows, tokenizer, FLOAT, report)


def mean_loss(model: Any, rows: list[Encoded]) -> torch.Tensor:
    """Row by row: the estimator's loss as its definition has it."""
    total, count = torch.zeros(()), 0
    for row in rows:
        scores = model(input_ids=torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
        for at, label in enumerate(row.labels[1:]):
            if label != -100:
                total, count = total - scores[at, label], count + 1
    return total / count


def merged_gradients(model: Any, folder: Path, rows: list[Encoded]) -> dict[str, torch.Tensor]:
    """∇L of each adapted weight, of a plain model that has the merged weights."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    names = []
    with torch.no_grad():
        for name, module in model.get_base_model().named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                plain.get_submodule(name).weight += module.scaling["default"] * b @ a
                names.append(name)
    found = torch.autograd.grad(
        mean_loss(plain, rows), [plain.get_submodule(name).weight for name in names]
    )
    return dict(zip(names, found, strict=True))


def moved(model: Any) -> Any:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    return model


def test_the_gradient_under_an_adapter_is_that_of_the_merged_weights(folder: Path) -> None:
    model, rows = moved(adapted(folder)).train(), encoded()
    wanted = merged_gradients(model, folder, rows)
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    held = next(p for p in model.parameters() if p.requires_grad)
    held.grad = torch.ones_like(held)
    before = weights(model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = descent(model, tokenizer, FLOAT, list(wanted), rows, 32)
    for name, gradient in wanted.items():
        factors = found[name]
        dense = factors.left @ torch.diag(factors.sigma) @ factors.right.T
        torch.testing.assert_close(dense, -gradient, atol=1e-6, rtol=1e-3)
    # And the model is left as it was.
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needed
    assert torch.equal(held.grad, torch.ones_like(held))
    assert all(p.grad is None for p in model.parameters() if p is not held)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[k], v) for k, v in weights(model).items())


def test_the_steps_are_those_of_a_loop_written_by_hand(folder: Path, tmp_path: Path) -> None:
    rows, first = encoded(), anchor_for(folder)
    trainer = InOrder(
        model=adapted(folder), args=arguments(tmp_path, max_grad_norm=0.0), train_dataset=Rows()
    )
    attach(trainer, first, lam=LAM, rank=RANK)
    attach_refresh(trainer, refresh_of(folder, rows))
    trainer.train()

    model = adapted(folder).train()
    layers = {
        name: module
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    bases = {name: first.modules[name].left[:, :RANK].float() for name in layers}
    batch = [Rows()[at] for at in range(16)]
    for step in range(6):
        if step and step % EVERY == 0:
            for name, gradient in merged_gradients(model, folder, rows).items():
                bases[name] = torch.linalg.svd(-gradient.double())[0][:, :RANK].float()
        taken = batch[4 * (step % 4) : 4 * (step % 4) + 4]
        inputs = {key: torch.stack([row[key] for row in taken]) for key in taken[0]}
        loss = model(**inputs).loss
        for name, layer in layers.items():
            update = layer.scaling["default"] * (
                layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            )
            off = update - bases[name] @ (bases[name].T @ update)
            loss = loss + LAM * off.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    ours, theirs = weights(trainer.model), weights(model)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=2e-4, rtol=1e-3)
    # Without a new anchor the weights are others, so the comparison could fail.
    still = InOrder(
        model=adapted(folder), args=arguments(tmp_path, max_grad_norm=0.0), train_dataset=Rows()
    )
    attach(still, first, lam=LAM, rank=RANK)
    still.train()
    apart = max(float((weights(still.model)[k] - v).abs().max()) for k, v in theirs.items())
    assert apart > 2e-3


def test_the_start_that_the_update_is_measured_from_stays(folder: Path) -> None:
    model = adapted(folder)
    penalty = bind(anchor_for(folder), model, operator="subspace", rank=RANK)
    moved(model)
    energy, start = penalty.movement().energy, penalty.start_fingerprint()
    names = [target.name for target in penalty.coverage.targets]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before = float(penalty().detach())
    penalty.measure_against(descent(model, tokenizer, FLOAT, names, encoded(), RANK))
    assert penalty.movement().energy == pytest.approx(energy)
    assert penalty.start_fingerprint() == start
    assert float(penalty().detach()) != pytest.approx(before, rel=1e-4)


def config(start: Path, rows: Path, output: Path, anchor: Path, **changes: Any) -> TrainConfig:
    tree: dict[str, Any] = {
        "penalty": {"anchor": str(anchor), "rank": 2},
        "anchor_refresh": {"every": 2, "data": str(rows), "rank": 4},
        "machine": {"save_steps": 1, "keep_checkpoints": True},
    }
    return make(start, rows, output, **(tree | changes))


def test_a_resumed_run_is_the_same_to_the_bit(
    llama_aligned: Path, data: Path, anchor: Path, tmp_path: Path
) -> None:
    whole = config(llama_aligned, data, tmp_path / "whole", anchor)
    plan = plan_stage(whole)
    assert "the anchor is made again every 2 steps at rank 4: 2 passes over 20 rows" in "\n".join(
        plan.lines()
    )
    record = run_stage(plan)
    assert record.inputs["anchor_refresh"]["every"] == 2
    told = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    renewed = [line["step"] for line in told if "refresh/cosine_to_first" in line]
    assert renewed == [3, 5]
    for cut in (2, 3):  # right before a new anchor, and between two
        place = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", place)
        (place / "record.json").unlink()
        shutil.rmtree(place / "adapter")
        for step in range(cut + 1, 7):
            shutil.rmtree(place / f"checkpoints/checkpoint-{step}")
        again = run_stage(plan_stage(config(llama_aligned, data, place, anchor)))
        assert again.metrics["resumed_from_step"] == cut
        assert same(tmp_path / "whole/adapter", place / "adapter")
        assert [
            {k: v for k, v in json.loads(line).items() if k.startswith(("step", "refresh", "asft"))}
            for line in (place / "log.jsonl").read_text().splitlines()
        ] == [
            {k: v for k, v in line.items() if k.startswith(("step", "refresh", "asft"))}
            for line in told
        ]
    plain = config(llama_aligned, data, tmp_path / "plain", anchor, anchor_refresh=None)
    run_stage(plan_stage(plain))
    assert not same(tmp_path / "whole/adapter", tmp_path / "plain/adapter")
    assert "anchor_refresh" not in plain.science()
    assert "anchor_refresh" not in read_record(tmp_path / "plain").inputs


def test_another_refresh_does_not_go_on_where_one_stopped(folder: Path, tmp_path: Path) -> None:
    def run(every: int, resume: bool) -> None:
        trainer = InOrder(
            model=adapted(folder),
            args=arguments(tmp_path, save_strategy="steps", save_steps=3),
            train_dataset=Rows(),
        )
        attach(trainer, anchor_for(folder), lam=LAM, rank=RANK)
        attach_refresh(trainer, refresh_of(folder, encoded(4), every))
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3") if resume else None)

    run(2, resume=False)
    with pytest.raises(TrainingError, match="another anchor_refresh \\(every differs\\)"):
        run(1, resume=True)
    (tmp_path / "checkpoint-3" / STATE_FILE).unlink()
    with pytest.raises(TrainingError, match="saved without anchor_refresh"):
        run(2, resume=True)


def test_full_training_is_refreshed_too(
    llama_aligned: Path, data: Path, anchor: Path, tmp_path: Path
) -> None:
    given = config(
        llama_aligned, data, tmp_path / "o", anchor, lora=None, machine={},
        training={"learning_rate": 1e-4}, penalty={"anchor": str(anchor), "rank": 2},
    )  # fmt: skip
    record = run_stage(plan_stage(given))
    assert record.metrics["steps"] == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"penalty": None}, "there is no penalty"),
        ({"penalty": {"anchor": "a", "operator": "gram"}}, "operator gram does not go by"),
        ({"penalty": {"anchor": "a", "operator": "none"}}, "operator none does not go by"),
        ({"lora": {"qlora": True}}, "lora.qlora to false"),
    ],
)
def test_it_is_refused_where_it_makes_no_sense(changes: dict[str, Any], said: str) -> None:
    tree: dict[str, Any] = {
        "model": {"path": "m"},
        "data": {"path": "d"},
        "output": "o",
        "penalty": {"anchor": "a"},
        "anchor_refresh": {"every": 2, "data": "r.jsonl"},
    }
    with pytest.raises(ConfigError, match=said):
        validate(tree | changes, TrainConfig, "test")


def test_it_is_refused_before_any_work(
    llama_aligned: Path, data: Path, anchor: Path, folder: Path, tmp_path: Path
) -> None:
    late = {"every": 6, "data": str(data)}
    with pytest.raises(TrainingError, match="every is 6 and the run has 6 steps"):
        plan_stage(config(llama_aligned, data, tmp_path, anchor, anchor_refresh=late))
    short = {"every": 2, "data": str(data), "rank": 1}
    with pytest.raises(AnchorError, match="anchor_refresh at rank 1: rank 2 is more than the 1"):
        plan_stage(config(llama_aligned, data, tmp_path, anchor, anchor_refresh=short))
    full = {"every": 2, "data": str(data), "rank": 64}
    bare = {"anchor": str(anchor)}
    with pytest.raises(AnchorError, match=r"keeps all (16|32) output directions"):
        plan_stage(config(llama_aligned, data, tmp_path, anchor, anchor_refresh=full, penalty=bare))
    trainer = InOrder(model=adapted(folder), args=arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(TrainingError, match="no penalty whose anchor"):
        attach_refresh(trainer, refresh_of(folder, encoded(4)))
    attach(trainer, anchor_for(folder), operator="gram")
    with pytest.raises(TrainingError, match="operator gram depends on the size"):
        attach_refresh(trainer, refresh_of(folder, encoded(4)))
