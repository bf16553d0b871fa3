"""The watch over trainers, optimizers and weights of other people's: what is no fault is none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune import attach_health
from anchortune.training.watch import _cannot_move, _labels_of, _not_finite, _Start
from tests.tiny import tiny_llama
from tests.training.test_seam import InOrder, Rows, adapted, arguments
from tests.training.test_watch import kinds, watched


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("watch") / "llama", dtype=torch.float32)


class OwnRate(torch.optim.SGD):
    """A rate of its own, as Adafactor's: the group has none."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["lr"] = 1e-2
        super().step(closure)
        for group in self.param_groups:
            group["lr"] = None


def test_what_another_trainer_may_have_is_no_fault(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder)
    own = OwnRate([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    still = torch.optim.lr_scheduler.LambdaLR(own, lambda _: 1.0)
    own.param_groups[0]["lr"] = None
    still.step = lambda *_: None  # type: ignore[method-assign]
    still.get_last_lr = lambda: [0.0]  # type: ignore[method-assign]
    args = arguments(tmp_path, max_steps=12)
    trainer = InOrder(model, args, train_dataset=Rows(), optimizers=(own, still))
    attach_health(trainer).train()
    assert kinds(trainer) == []

    # GaLore's by layers holds nothing but a dummy, DeepSpeed leaves nothing where the weights were.
    dummy = torch.optim.SGD([torch.zeros(1)], lr=1e-2)
    trainer = InOrder(model, args, train_dataset=Rows(), optimizers=(dummy, None))
    trainer.args.optim = "galore_adamw_layerwise"
    assert _cannot_move(trainer, _Start(model)) is None
    sharded = watched(folder, tmp_path)
    sharded.is_deepspeed_enabled = True
    sharded._health.begin(sharded)
    assert sharded._health.look(sharded).steps is None


def test_labels_that_are_classes_and_figures_that_nobody_took(folder: Path, tmp_path: Path) -> None:
    assert _labels_of((None, {"labels": torch.tensor([3])}), {}) == 1
    assert _labels_of((None, {"labels": torch.tensor([[3, -100]])}), {}) == 0
    trainer = watched(folder, tmp_path)
    told = [{"step": 1, "loss": 1.0, "grad_norm": None}, {"step": 2, "loss": float("nan")}]
    trainer._health.catch_up(told)
    # What a checkpoint's history says went on all the same; where it still is so, it stops.
    assert kinds(trainer) == []
    assert trainer._health.health.take({"step": 3, "loss": float("nan")})[0].stops


def test_weights_of_which_there_is_no_norm_are_passed_over() -> None:
    eight = torch.zeros(2).to(torch.float8_e4m3fn)
    assert _not_finite({"a": eight, "b": torch.zeros(2, device="meta")}) is None
    assert _not_finite({"a": eight, "b": torch.tensor([1.0, torch.inf])}) == "b"
