"""Trainer, mixin, attach and a loop written by hand take the same steps."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset, SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from anchortune.anchor.penalty import bind
from anchortune.errors import AnchorError, TrainingError
from anchortune.training.seam import STATE_FILE, AsftMixin, attach
from tests.anchor.test_penalty import anchor_of, weights_of
from tests.tiny import tiny_llama

LAM = 0.3


class Rows(Dataset):  # type: ignore[type-arg]
    """Sixteen rows of one length, so that every batching has as many label tokens.

    The first of a row has no label: it is never predicted, and transformers 5.0 counts it where
    5.24 does not.
    """

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 200, (12,), generator=generator)
        labels = ids.clone()
        labels[0] = -100
        return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


class InOrder(Trainer):  # type: ignore[misc]
    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return SequentialSampler(self.train_dataset)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("seam") / "llama", dtype=torch.float32, tokenizer=True
    )


def adapted(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    return get_peft_model(model, config)


def anchor_for(folder: Path, size: float = 0.3) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return anchor_of(weights_of(model, ("q_proj", "v_proj")), size=size)


def arguments(out: Path, **options: Any) -> TrainingArguments:
    settings = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "optim": "adamw_torch",
        "seed": 0,
    } | options
    return TrainingArguments(**settings)


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def by_hand(folder: Path, lam: float, steps: int = 6, **options: Any) -> Any:
    model = adapted(folder)
    penalty = bind(anchor_for(folder), model, **options)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    model.train()
    rows = Rows()
    for step in range(steps):
        picked = [rows[(4 * step + i) % 16] for i in range(4)]
        batch = {key: torch.stack([row[key] for row in picked]) for key in picked[0]}
        tokens = picked[0]["labels"].numel() - 1  # the first token of a row is never predicted
        loss = model(**batch, num_items_in_batch=torch.tensor(4 * tokens)).loss
        if lam:
            loss = loss + lam * penalty()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return model


def trained(folder: Path, out: Path, door: str, lam: float | str = LAM, **options: Any) -> Any:
    anchor, model = anchor_for(folder), adapted(folder)
    penalty = {key: options.pop(key) for key in ("operator", "off_budget") if key in options}
    args = arguments(out, **options)
    if door == "mixin":

        class Mixed(AsftMixin, InOrder):
            pass

        trainer = Mixed(model, args, train_dataset=Rows(), anchor=anchor, lam=lam, **penalty)
    else:
        trainer = InOrder(model, args, train_dataset=Rows())
        if door == "attach":
            assert attach(trainer, anchor, lam=lam, **penalty) is trainer
    trainer.train()
    return trainer


@pytest.mark.parametrize("operator", ["gram", "subspace", "direction_global"])
@pytest.mark.parametrize("door", ["mixin", "attach"])
def test_every_door_gives_the_steps_of_a_loop_by_hand(
    folder: Path, tmp_path: Path, door: str, operator: Any
) -> None:
    trainer = trained(folder, tmp_path, door, operator=operator)
    assert same(weights(trainer.model), weights(by_hand(folder, LAM, operator=operator)))
    assert not same(weights(trainer.model), weights(by_hand(folder, 0.0)))


def test_asft_trainer_is_trl_with_the_same_steps(folder: Path, tmp_path: Path) -> None:
    from trl import SFTConfig

    from anchortune import AsftTrainer

    class Ordered(AsftTrainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    import datasets

    rows = [{k: v.tolist() for k, v in row.items()} for row in (Rows()[i] for i in range(16))]
    config = SFTConfig(
        **{k: v for k, v in _plain(arguments(tmp_path)).items()},
        dataset_kwargs={"skip_prepare_dataset": True},
        gradient_checkpointing=False,
        bf16=False,
        dataset_num_proc=None,
    )
    trainer = Ordered(
        model=adapted(folder),
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        anchor=anchor_for(folder),
        lam=LAM,
        operator="subspace",
    )
    trainer.train()
    expected = weights(by_hand(folder, LAM, operator="subspace"))
    for name, weight in weights(trainer.model).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)


def _plain(args: TrainingArguments) -> dict[str, Any]:
    wanted = (
        "output_dir", "per_device_train_batch_size", "max_steps", "learning_rate",
        "max_grad_norm", "logging_steps", "save_strategy", "report_to", "disable_tqdm", "use_cpu",
        "seed", "lr_scheduler_type", "optim",
    )  # fmt: skip
    return {name: getattr(args, name) for name in wanted}


def test_accumulation_does_not_change_the_weight_of_the_penalty(
    folder: Path, tmp_path: Path
) -> None:
    whole = trained(folder, tmp_path / "a", "attach", per_device_train_batch_size=8)
    parts = trained(
        folder,
        tmp_path / "b",
        "attach",
        per_device_train_batch_size=1,
        gradient_accumulation_steps=8,
    )
    left, right = weights(whole.model), weights(parts.model)
    drift = torch.cat([(left[n] - right[n]).abs().flatten() for n in left])
    # Adam turns rounding of tiny gradients into steps, so the bound is on weights that moved 0.05.
    assert float(drift.max()) < 2e-3
    assert float(drift.mean()) < 2e-5
    first = [t.state.log_history[0]["grad_norm"] for t in (whole, parts)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def test_lambda_zero_is_bitwise_plain_sft(folder: Path, tmp_path: Path) -> None:
    off = trained(folder, tmp_path / "a", "attach", lam=0.0)
    plain = trained(folder, tmp_path / "b", "none")
    assert same(weights(off.model), weights(plain.model))


def test_logs_hold_the_task_loss_and_the_penalty_apart(folder: Path, tmp_path: Path) -> None:
    trainer = trained(folder, tmp_path, "attach", lam=2.0)
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert len(logs) == 6
    last = logs[-1]
    assert last["asft/lam"] == 2.0
    assert last["asft/penalty"] == pytest.approx(
        last["asft/penalised_share"] * last["asft/update_energy"]
    )
    assert (
        0
        <= last["asft/forwards_share"] + last["asft/backwards_share"]
        <= last["asft/inside_share"] + 1e-6
    )
    plain = trained(folder, tmp_path / "plain", "none")
    assert logs[0]["loss"] == plain.state.log_history[0]["loss"]  # the task's, at the same weights


def test_eval_loss_stays_the_tasks(folder: Path, tmp_path: Path) -> None:
    trainer = trained(folder, tmp_path, "attach", lam=50.0)
    with_penalty = trainer.evaluate(Rows())["eval_loss"]
    bare = InOrder(trainer.model, arguments(tmp_path / "bare"), train_dataset=Rows())
    assert with_penalty == bare.evaluate(Rows())["eval_loss"]


def test_a_grad_scaler_scales_the_added_gradient_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grads = []
    for scale in (1.0, 1024.0):
        trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
        attach(trainer, anchor_for(folder), lam=LAM)
        for _, parameter in trainer.model.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_(0.1)  # B = 0 has no gradient of the penalty
        batch = next(iter(trainer.get_train_dataloader()))
        monkeypatch.setattr(trainer.accelerator, "backward", lambda loss, **_: None)
        trainer.current_gradient_accumulation_steps = 1  # set by the loop, which is not run here
        scaler = SimpleNamespace(get_scale=lambda scale=scale: scale)
        monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
        trainer.training_step(trainer.model, batch)
        grads.append([p.grad for p in trainer.model.parameters() if p.requires_grad])
    for plain, scaled in zip(*grads, strict=True):
        assert float(plain.abs().max()) > 0
        torch.testing.assert_close(scaled, plain * 1024.0)


def test_a_greater_lambda_leaves_less_of_what_it_penalises(folder: Path, tmp_path: Path) -> None:
    left = [
        trained(folder, tmp_path / str(lam), "attach", lam=lam)._asft.penalty.movement()
        for lam in (0.0, 1.0, 100.0)
    ]
    penalised = [m.penalised * m.energy for m in left]
    assert penalised[0] > penalised[1] > penalised[2]


@pytest.mark.parametrize("lam", [LAM, "auto"])
def test_resume_after_a_kill_equals_no_interruption(
    folder: Path, tmp_path: Path, lam: float | str
) -> None:
    options: dict[str, Any] = {"operator": "subspace", "save_strategy": "steps", "save_steps": 3}
    whole = trained(folder, tmp_path / "whole", "attach", lam=lam, **options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "part" / "checkpoint-3")
    trainer = InOrder(
        adapted(folder),
        arguments(tmp_path / "part", save_strategy="steps", save_steps=3),
        train_dataset=Rows(),
    )
    attach(trainer, anchor_for(folder), lam=lam, operator="subspace")  # type: ignore[arg-type]
    trainer.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-3"))
    assert same(weights(whole.model), weights(trainer.model))
    assert whole._asft.schedule.lam == trainer._asft.schedule.lam


def test_resume_with_another_penalty_is_refused(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path, "attach", save_strategy="steps", save_steps=3)
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)

    def resumed(lam: float, operator: Any, checkpoint: Path) -> None:
        trainer = InOrder(adapted(folder), args, train_dataset=Rows())
        attach(trainer, anchor_for(folder), lam=lam, operator=operator)
        trainer.train(resume_from_checkpoint=str(checkpoint))

    with pytest.raises(TrainingError, match=r"trained with lam=0\.3, not 0\.7"):
        resumed(0.7, "subspace", tmp_path / "checkpoint-3")
    with pytest.raises(TrainingError, match="operator='subspace', not 'gram'"):
        resumed(LAM, "gram", tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-3" / STATE_FILE).unlink()
    with pytest.raises(TrainingError, match="saved without a penalty"):
        resumed(LAM, "subspace", tmp_path / "checkpoint-3")


def whole_model(folder: Path) -> Any:
    """The model with its attention matrices trained whole, everything else frozen."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(("q_proj.weight", "v_proj.weight")))
    return model


def test_full_parameter_resume_equals_no_interruption_and_needs_the_same_start(
    folder: Path, tmp_path: Path
) -> None:
    def trainer_from(start: Path) -> Any:
        args = arguments(tmp_path / "out", save_strategy="steps", save_steps=3, learning_rate=1e-4)
        trainer = InOrder(whole_model(start), args, train_dataset=Rows())
        return attach(trainer, anchor_for(folder), operator="subspace", lam=LAM)

    whole = trainer_from(folder)
    whole.train()
    checkpoint = tmp_path / "out" / "checkpoint-3"
    again = trainer_from(folder)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert same(weights(whole.model), weights(again.model))
    assert whole._asft.penalty.movement() == again._asft.penalty.movement()

    norms = [
        sum(float(t.start_b.norm()) for t in trainer_from(start)._asft.penalty.coverage.targets)
        for start in (folder, checkpoint)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)  # so near that only the bytes tell
    with pytest.raises(TrainingError, match="measured from other weights"):
        trainer_from(checkpoint).train(resume_from_checkpoint=str(checkpoint))


def test_lora_resume_from_a_trained_adapter_is_refused(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
    trained(folder, tmp_path, "attach", **options)
    checkpoint = str(tmp_path / "checkpoint-3")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, checkpoint, is_trainable=True)
    trainer = InOrder(model, arguments(tmp_path, **options), train_dataset=Rows())
    attach(trainer, anchor_for(folder), lam=LAM)
    with pytest.raises(TrainingError, match="measured from other weights"):
        trainer.train(resume_from_checkpoint=checkpoint)


def from_init(folder: Path, out: Path, make: Any, lam: float | str, **options: Any) -> Any:
    """A trainer that makes its model itself at each ``train()``."""
    args = arguments(out, save_strategy="steps", save_steps=3, **options)
    trainer = InOrder(model_init=lambda: make(folder), args=args, train_dataset=Rows())
    return attach(trainer, anchor_for(folder), operator="subspace", lam=lam)  # type: ignore[arg-type]


@pytest.mark.parametrize("lam", [LAM, "auto"])
@pytest.mark.parametrize("make", [adapted, whole_model])
def test_model_init_resumes_as_if_never_interrupted(
    folder: Path, tmp_path: Path, make: Any, lam: float | str
) -> None:
    whole = from_init(folder, tmp_path, make, lam)
    whole.train()
    given = InOrder(make(folder), arguments(tmp_path / "given"), train_dataset=Rows())
    attach(given, anchor_for(folder), operator="subspace", lam=lam)  # type: ignore[arg-type]
    given.train()
    assert same(weights(whole.model), weights(given.model))

    resumed = from_init(folder, tmp_path, make, lam)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert same(weights(whole.model), weights(resumed.model))
    assert whole._asft.schedule.lam == resumed._asft.schedule.lam
    assert whole._asft.penalty.movement() == resumed._asft.penalty.movement()


def test_model_init_starts_lambda_anew_at_each_training(folder: Path, tmp_path: Path) -> None:
    class Mixed(AsftMixin, InOrder):
        pass

    trainer = Mixed(
        model_init=lambda: adapted(folder),
        args=arguments(tmp_path),
        train_dataset=Rows(),
        anchor=anchor_for(folder),
        lam="auto",
    )
    found = []
    for _ in range(2):
        trainer.train()
        logged = [row["asft/lam"] for row in trainer.state.log_history if "asft/lam" in row]
        found.append((logged, weights(trainer.model)))
    assert len(set(found[0][0])) > 1
    assert found[0][0] == found[1][0]
    assert same(found[0][1], found[1][1])


def test_another_model_than_the_bound_one_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    attach(trainer, anchor_for(folder))
    trainer.model = trainer.model_wrapped = adapted(folder)
    with pytest.raises(TrainingError, match="not the one that the penalty was bound to"):
        trainer.train()


def test_auto_lambda_moves_towards_its_budget(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"operator": "subspace", "max_steps": 120}
    free = trained(folder, tmp_path / "a", "attach", lam=0.0, operator="subspace", max_steps=120)
    held = trained(folder, tmp_path / "b", "attach", lam="auto", off_budget=0.1, **options)
    assert free._asft.penalty.movement().penalised > 0.3
    assert held._asft.penalty.movement().penalised == pytest.approx(0.1, abs=0.05)
    lams = [row["asft/lam"] for row in held.state.log_history if "asft/lam" in row]
    assert len(set(lams)) > 10


def test_the_whole_anchor_must_be_met(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    narrow = anchor_of(weights_of(model, ("q_proj",)))
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(AnchorError, match="v_proj"):
        attach(trainer, narrow)


def test_a_penalty_that_never_fires_is_an_error(folder: Path, tmp_path: Path) -> None:
    class Own(InOrder):
        def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
            """A loop of somebody's own, which never calls training_step."""
            return self.callback_handler.on_step_end(self.args, self.state, self.control)

    trainer = Own(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    attach(trainer, anchor_for(folder))
    with pytest.raises(TrainingError, match=r"never added .*q_proj"):
        trainer.train()


def test_attached_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    attach(trainer, anchor_for(folder))
    with pytest.raises(TrainingError, match="attach once"):
        attach(trainer, anchor_for(folder))


def test_what_is_no_trainer_is_pointed_to_bind(folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"anchor\.bind\(model\)"):
        attach(object(), anchor_for(folder))


def test_a_path_in_place_of_an_anchor_is_refused_and_leaves_the_trainer_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(AnchorError, match=r"'a\.safetensors', which is no Anchor"):
        attach(trainer, "a.safetensors")  # type: ignore[arg-type]
    assert type(trainer) is InOrder
    attach(trainer, anchor_for(folder))


@pytest.mark.parametrize(
    ("flag", "text"), [("is_deepspeed_enabled", "DeepSpeed"), ("is_fsdp_enabled", "FSDP")]
)
def test_backends_that_cannot_honour_it_are_refused(
    folder: Path, tmp_path: Path, flag: str, text: str
) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    setattr(trainer, flag, True)
    with pytest.raises(TrainingError, match=text):
        attach(trainer, anchor_for(folder))


def test_optimizers_that_step_in_backward_are_refused(folder: Path, tmp_path: Path) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    trainer.args.optim = "galore_adamw_layerwise"
    with pytest.raises(TrainingError, match="during backward"):
        attach(trainer, anchor_for(folder))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lam": -1.0}, "at least 0"),
        ({"lam": float("nan")}, "at least 0"),
        ({"lam": "high"}, "a number or 'auto'"),
        ({"lam": 1.0, "off_budget": 0.1}, "off_budget goes with"),
        ({"lam": "auto", "off_budget": 1.5}, "between 0 and 1"),
        ({"lam": "auto", "operator": "none"}, "cannot do"),
        ({"lam": "auto", "operator": "gram"}, "no lam can meet off_budget"),
    ],
)
def test_lambdas_that_mean_nothing_are_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    with pytest.raises(TrainingError, match=text):
        attach(trainer, anchor_for(folder, size=0.01), **options)
