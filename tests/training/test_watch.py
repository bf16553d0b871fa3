"""Every way a training goes wrong, caused on a tiny model, is noticed and told with the mend."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from anchortune import Anchor, attach_health
from anchortune.data.screened import HarmfulRow, Screened, ScreenedSource
from anchortune.errors import TrainingError
from anchortune.training.health import MOVES_WITHIN, Finding
from anchortune.training.plan import plan_stage
from anchortune.training.seam import attach
from anchortune.training.train import train
from anchortune.training.watch import HealthMixin, HealthStop, health_findings
from tests.tiny import tiny_llama
from tests.training.test_seam import InOrder, Rows, adapted, anchor_for, arguments, same, weights
from tests.training.test_stage import Killed, kill_at, make

SAFETENSORS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(
        tmp_path_factory.mktemp("watch") / "llama", dtype=torch.float32, tokenizer=True
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    found = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in found))
    return path


def watched(folder: Path, out: Path, kind: type[Trainer] = InOrder, **options: Any) -> Any:
    """A stranger's trainer, watched, without a penalty."""
    trainer = kind(adapted(folder), arguments(out, **options), train_dataset=Rows())
    assert attach_health(trainer) is trainer
    return trainer


def stopped(trainer: Any, told: str) -> HealthStop:
    with pytest.raises(HealthStop, match=told) as caught:
        trainer.train()
    assert isinstance(caught.value, TrainingError)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return caught.value


def kinds(trainer: Any) -> list[str]:
    return [finding.kind for finding in health_findings(trainer)]


class Spoilt(InOrder):
    """A trainer whose third step does harm: to the loss, or to the gradients alone."""

    what = "loss"

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.state.global_step == 2 and self.what != "nothing":
            if self.what == "loss":
                return loss * torch.nan
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(torch.inf)
        return loss


class SpoiltGradient(Spoilt):
    what = "gradient"


@pytest.mark.parametrize("logging_steps", [1, 100])
@pytest.mark.parametrize("hidden", [True, False])
def test_a_loss_that_is_no_number_stops_at_its_step_even_where_the_trainer_hides_it(
    folder: Path, tmp_path: Path, hidden: bool, logging_steps: int
) -> None:
    trainer = watched(
        folder, tmp_path, Spoilt, logging_nan_inf_filter=hidden, logging_steps=logging_steps,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    stop = stopped(trainer, r"the loss is nan at step 3; lower .*before it is .*checkpoint-2")
    assert stop.finding.step == trainer.state.global_step == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    trainer.what = "nothing"  # mended, it goes on from there
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    assert kinds(trainer) == []


@pytest.mark.parametrize("clipped", [1.0, 0.0])
def test_gradients_that_are_no_numbers_reach_no_checkpoint(
    folder: Path, tmp_path: Path, clipped: float
) -> None:
    trainer = watched(
        folder, tmp_path, SpoiltGradient, max_grad_norm=clipped, logging_steps=100,
        save_strategy="steps", save_steps=1,
    )  # fmt: skip
    stopped(trainer, r"lora_. ?.*holds numbers that are not finite after step 3|gradients are no")
    from safetensors.torch import load_file

    kept = sorted(tmp_path.glob("checkpoint-*"))
    assert [path.name for path in kept] == ["checkpoint-1", "checkpoint-2"]
    for path in kept:
        assert all(value.isfinite().all() for value in load_file(path / SAFETENSORS).values())


def test_a_last_step_that_ruins_the_weights_leaves_no_result(folder: Path, tmp_path: Path) -> None:
    trainer = watched(folder, tmp_path, SpoiltGradient, max_steps=3, max_grad_norm=0.0)
    trainer.args.logging_steps = 100
    stopped(trainer, "not finite|no finite numbers")


def test_a_loop_of_ours_ends_with_exit_code_2_and_the_checkpoint_before(
    llama_aligned: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the command line prints of it is the error's sentence; see tests/cli/test_app.py."""
    rate = {"learning_rate": 1e30, "max_steps": 6, "warmup_frac": 0.0}
    with pytest.raises(HealthStop, match=r"; lower training.learning_rate") as caught:
        train(make(llama_aligned, rows, tmp_path / "o", training=rate, machine={"save_steps": 1}))
    assert caught.value.exit_code == 2
    assert caught.value.finding.step <= 6
    assert not (tmp_path / "o" / "record.json").exists()
    assert not (tmp_path / "o" / "adapter").exists()
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == caught.value.finding.step  # the step that failed is in the log


def test_a_broken_checkpoint_is_named_and_not_the_learning_rate(
    folder: Path, tmp_path: Path
) -> None:
    trainer = watched(folder, tmp_path)
    trainer.model.get_base_model().model.norm.weight.data[3] = torch.nan
    stopped(trainer, r"at step 1, for the model's .*model.norm.weight, .* checkpoint is broken")


class NoLabels(Rows):
    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = super().__getitem__(index)
        return row | {"labels": torch.full_like(row["labels"], -100)}


@pytest.mark.parametrize("door", ["watched", "attach"])
def test_rows_without_a_token_to_learn_are_named_at_the_first_step(
    folder: Path, tmp_path: Path, door: str
) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=NoLabels())
    if door == "attach":
        attach(trainer, anchor_for(folder), operator="subspace")
    attach_health(trainer)
    stop = stopped(trainer, "no token to learn: every label is left out; look at the labels")
    assert stop.finding.step == 1


class Unreached(InOrder):
    """The loss does not depend on what is trained."""

    def compute_loss(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(model, *args, **kwargs)
        return loss.detach() + 0.0 * sum(p.sum() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("kind", "rate", "told"),
    [
        (InOrder, 0.0, "10 steps after the start: the learning rate was 0 in each of them"),
        (Unreached, 1e-2, "10 steps after the start: no gradient reaches them"),
    ],
)
def test_what_never_moves_stops_after_ten_steps(
    folder: Path, tmp_path: Path, kind: Any, rate: float, told: str
) -> None:
    trainer = watched(folder, tmp_path, kind, learning_rate=rate, max_steps=40)
    stop = stopped(trainer, told)
    assert stop.finding.step == MOVES_WITHIN
    short = watched(folder, tmp_path / "s", kind, learning_rate=rate, max_steps=4)
    short.train()  # too few steps to be sure of: said at the end
    assert kinds(short) == ["unmoved"]


def test_what_cannot_move_is_refused_before_the_first_step(folder: Path, tmp_path: Path) -> None:
    frozen = watched(folder, tmp_path)
    for name, parameter in frozen.model.named_parameters():
        if "lora_B" in name:
            parameter.requires_grad_(False)
    stop = stopped(frozen, "LoRA's B is 0 and frozen.* set requires_grad")
    assert stop.finding.step == frozen.state.global_step == 0
    model = adapted(folder)
    strange = torch.optim.AdamW(adapted(folder).parameters(), lr=1e-2)
    other = InOrder(model, arguments(tmp_path), train_dataset=Rows(), optimizers=(strange, None))
    attach_health(other)
    stopped(other, "the optimizer holds none of the trained weights: make it from the model")


def test_a_full_training_that_never_moves_is_seen_in_samples(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    still = InOrder(
        model, arguments(tmp_path, learning_rate=0.0, max_steps=12), train_dataset=Rows()
    )
    stopped(attach_health(still), "the learning rate was 0")
    model = AutoModelForCausalLM.from_pretrained(folder)
    moving = InOrder(model, arguments(tmp_path, max_steps=12), train_dataset=Rows())
    attach_health(moving).train()
    assert kinds(moving) == []


def test_a_learning_rate_that_destroys_the_model_stops(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    args = arguments(tmp_path, learning_rate=3.0, max_steps=40)
    trainer = InOrder(model, args, train_dataset=Rows())
    stop = stopped(attach_health(trainer), "would give 5.6, so the model is lost; lower")
    assert stop.finding.step <= 12


@pytest.mark.parametrize("door", ["rate", "lam"])
def test_a_loss_that_does_not_fall_is_told_after_two_passes(
    folder: Path, tmp_path: Path, door: str
) -> None:
    """The rate is next to nothing; or λ is so large that ‖U‖² holds the update at nothing."""
    rate = 1e-9 if door == "rate" else 3e-3
    args = arguments(
        tmp_path, learning_rate=rate, per_device_train_batch_size=3, max_steps=-1,
        num_train_epochs=4,
    )  # fmt: skip
    trainer = Trainer(adapted(folder), args, train_dataset=Rows())
    if door == "lam":
        attach(trainer, anchor_for(folder), operator="none", lam=300.0)
    attach_health(trainer).train()
    found = {finding.kind: finding for finding in health_findings(trainer)}
    assert "the task is not being learnt" in found["flat"].told
    assert found["flat"].step == 13  # the first step of the third pass


class Ascending(InOrder):
    """Goes up the slope, of a loss small enough that it is never beyond guessing."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.neg_()
        return 0.2 * loss


def test_a_loss_that_rises_is_told(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    args = arguments(tmp_path, learning_rate=1e-2, max_steps=50)
    trainer = Ascending(model, args, train_dataset=Rows())
    attach_health(trainer).train()
    assert "rising" in kinds(trainer)


def test_a_penalty_whose_gradient_overflows_is_named(folder: Path, tmp_path: Path) -> None:
    trainer = InOrder(adapted(folder), arguments(tmp_path), train_dataset=Rows())
    attach(trainer, anchor_for(folder), operator="none", lam=1e39)
    stopped(trainer, r"the penalty or its gradient is no finite number at step 1.*lam, which is 1e")


def test_a_lambda_that_swamps_the_task_is_said_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def run(lam: float) -> Any:
        args = arguments(tmp_path, max_steps=24)
        trainer = InOrder(adapted(folder), args, train_dataset=Rows())
        attach(trainer, anchor_for(folder), operator="none", lam=lam)
        with caplog.at_level(logging.WARNING, logger="anchortune"):
            trainer.train()
        return trainer

    assert kinds(run(1.0)) == []
    assert not [record for record in caplog.records if "caution" in record.message]
    trainer = run(1e4)
    assert kinds(trainer) == ["swamped"]
    [said] = [record for record in caplog.records if "caution" in record.message]
    assert "with a lam of 10000" in said.message
    assert "lower lam" in said.message


def test_the_gradients_that_are_logged_are_those_of_autograd(folder: Path, tmp_path: Path) -> None:
    """Of the second step, at which the update is no longer nothing."""
    trainer = InOrder(adapted(folder), arguments(tmp_path, max_steps=2), train_dataset=Rows())
    attach(trainer, anchor_for(folder), operator="subspace", lam=3.0)
    seen = []
    original = type(trainer).training_step

    def looking(self: Any, *args: Any, **kwargs: Any) -> Any:
        from anchortune.anchor.penalty import bind

        before = [p.detach().clone() for p in self.model.parameters() if p.requires_grad]
        loss = original(self, *args, **kwargs)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        penalty = bind(anchor_for(folder), self.model, operator="subspace")
        # What was bound anew measures from here: from the start, the first adapter is nothing.
        penalty.coverage.targets[:] = self._asft.penalty.coverage.targets
        ours = torch.autograd.grad(3.0 * penalty(), trained)
        assert all(torch.equal(p, b) for p, b in zip(trained, before, strict=True))
        both = torch.cat([p.grad.flatten() for p in trained])
        ours = torch.cat([g.flatten() for g in ours])
        task = both - ours
        cosine = torch.nn.functional.cosine_similarity(task, ours, dim=0)
        seen.append((float(task.norm()), float(ours.norm()), float(cosine)))
        return loss

    type(trainer).training_step = looking  # type: ignore[method-assign]
    trainer.train()
    first, second = (line for line in trainer.state.log_history if "loss" in line)
    assert first["asft/penalty_grad_norm"] == 0
    assert "asft/grad_cosine" not in first
    names = ("asft/task_grad_norm", "asft/penalty_grad_norm", "asft/grad_cosine")
    assert [second[name] for name in names] == pytest.approx(seen[1], rel=1e-4, abs=1e-5)


def test_gradients_are_measured_at_logged_steps_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.training import seam

    made = []

    class Counted(seam.Pull):
        def __init__(self, *given: Any) -> None:
            made.append(trainer.state.global_step + 1)
            super().__init__(*given)

    monkeypatch.setattr(seam, "Pull", Counted)
    args = arguments(tmp_path, logging_steps=3, max_steps=8)
    trainer = InOrder(adapted(folder), args, train_dataset=Rows())
    attach(trainer, anchor_for(folder), operator="subspace")
    trainer.train()
    assert made == [3, 6, 8]
    logged = [line for line in trainer.state.log_history if "loss" in line]
    assert all(("asft/task_grad_norm" in line) == (line["step"] in made) for line in logged)


def test_on_a_device_nothing_is_read_between_logged_steps(folder: Path, tmp_path: Path) -> None:
    """A number that is read from the device ``meta`` is an error."""
    watch = watched(folder, tmp_path)._health
    for _ in range(100):
        watch.saw(torch.zeros((), device="meta"), torch.ones((), device="meta"))
    assert not watch.troubled
    with pytest.raises((RuntimeError, NotImplementedError)):
        watch._read()


def test_a_watched_training_takes_the_steps_of_another(folder: Path, tmp_path: Path) -> None:
    plain = InOrder(adapted(folder), arguments(tmp_path, max_steps=8), train_dataset=Rows())
    plain.train()
    looked = watched(folder, tmp_path, max_steps=8)
    looked.train()
    assert same(weights(plain.model), weights(looked.model))
    assert attach_health(looked) is looked
    assert [c.__name__ for c in type(looked).__mro__].count(HealthMixin.__name__) == 1
    assert [line.get("loss") for line in plain.state.log_history] == [
        line.get("loss") for line in looked.state.log_history
    ]


def healthy(folder: Path, out: Path, seed: int, lam: Any, operator: Any = "subspace") -> Any:
    args = arguments(
        out, learning_rate=(3e-4, 3e-3, 1e-2)[seed % 3], max_steps=20, seed=seed,
        lr_scheduler_type="linear", warmup_steps=2, max_grad_norm=(1.0, 0.0)[seed % 2],
    )  # fmt: skip
    trainer = Trainer(adapted(folder), args, train_dataset=Rows())
    if lam is None:
        attach_health(trainer)
    else:
        attach(trainer, anchor_for(folder), operator=operator, lam=lam)
    trainer.train()
    return trainer


@pytest.mark.parametrize(("seed", "lam"), list(enumerate([None, 0.1, 1.0, "auto"])))
def test_healthy_tiny_trainings_raise_no_alarm(
    folder: Path, tmp_path: Path, seed: int, lam: Any
) -> None:
    assert kinds(healthy(folder, tmp_path, seed, lam)) == []


@pytest.mark.slow
@pytest.mark.parametrize("operator", ["gram", "subspace", "subspace2", "direction", "none"])
def test_many_healthy_tiny_trainings_raise_no_alarm(
    folder: Path, tmp_path: Path, operator: Any
) -> None:
    for seed in range(12):
        for lam in (0.03, 0.3, 3.0):
            assert kinds(healthy(folder, tmp_path, seed, lam, operator)) == [], (seed, lam)


def test_what_is_found_is_in_the_record_of_a_resumed_run_too(
    llama_aligned: Path,
    rows: Path,
    llama_base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    anchor = tmp_path / "anchor.safetensors"
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=targets, rank=4).save(anchor)

    def config(out: Path) -> Any:
        penalty = {"anchor": str(anchor), "operator": "none", "lam": 1e5}
        settings = {"epochs": 7, "max_length_tokens": 28}
        return make(
            llama_aligned, rows, out, penalty=penalty, training=settings, machine={"save_steps": 3}
        )

    whole = train(config(tmp_path / "whole")).metrics["health"]
    assert [found["kind"] for found in whole] == ["cut-rows", "swamped"]
    assert whole[0]["step"] == 0
    with monkeypatch.context() as patch:
        kill_at(patch, 16)
        with pytest.raises(Killed):
            train(config(tmp_path / "part"))
    assert train(config(tmp_path / "part")).metrics["health"] == whole


def test_mostly_harmful_data_is_in_the_plan_and_in_the_record(
    llama_aligned: Path, rows: Path, tmp_path: Path
) -> None:
    harmful = [HarmfulRow(f"line {number}") for number in range(1, 16)]
    source = ScreenedSource(str(rows), "0" * 64, 20, 20, harmful, 0, 0)
    config = make(llama_aligned, rows, tmp_path / "o", screen={"judge": "builtin"})
    found = Screened({"name": "builtin"}, "report", [source])
    assert any(
        "15 of 20 rows look harmful" in note for note in plan_stage(config, screened=found).notes
    )
    [told] = train(config, screened=found).metrics["health"]
    assert told["kind"] == "harmful-data"
    gone = Screened({"name": "builtin"}, "drop", [source])
    config = config.model_copy(update={"output": str(tmp_path / "p")})
    [told] = train(config, screened=gone).metrics["health"]
    assert "5 sequences remain to learn from" in told["told"]


def test_a_stop_is_made_again_in_another_process() -> None:
    stop = HealthStop(Finding("lost", 3, "the model is lost.", True), "checkpoint-2")
    again = copy.copy(stop)  # as pickle does it
    assert str(again) == "the model is lost; the last checkpoint before it is checkpoint-2."
    assert (str(again), again.finding) == (str(stop), stop.finding)


def test_a_trainer_that_is_none_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"not a transformers.Trainer: in a loop of your own"):
        attach_health(object())
