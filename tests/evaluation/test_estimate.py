"""What an evaluation takes: figures that grow with the model and with what is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from anchortune.evaluation import estimate
from anchortune.evaluation.plan import plan_eval
from anchortune.models.load import Numbers
from tests.evaluation.eval_stand_ins import config

NUMBERS = Numbers(torch.device("cpu"), torch.float32, torch.float32)


def test_every_layer_beyond_the_first_costs_what_the_second_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "_time_shallow", lambda _, depth, *rest: 8.0 * (1 + depth))
    small = LlamaConfig(num_hidden_layers=2)
    # One layer takes 16, two take 24: the head 8 and each layer 8, over 8 steps.
    assert estimate.step_seconds(small, NUMBERS, 4, 9) == 3.0
    assert estimate.step_seconds(LlamaConfig(num_hidden_layers=10), NUMBERS, 4, 9) == 11.0


def test_a_model_that_cannot_be_cut_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise ValueError("layers")

    monkeypatch.setattr(estimate, "_time_shallow", fails)
    assert estimate.step_seconds(LlamaConfig(), NUMBERS, 1, 1) is None


def test_time_memory_and_disk_by_hand(
    tmp_path: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "step_seconds", lambda *_: 0.5)
    models = {"aligned": {"path": str(llama_base)}}
    machine = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    chosen = config(tmp_path, models, judges=["refusal"], machine=machine)
    planned = plan_eval(chosen, timed=True)
    found = planned.estimate
    assert found is not None
    # Batches of 4: two of six prompts and one of four, 5 tokens each; one of three sums, 128.
    digits = planned.asked[2].max_new_tokens
    assert found.seconds == 0.5 * (2 * 5 + 1 * 5 + 1 * digits)
    parameters = sum(p.numel() for p in planned.candidates["aligned"].skeleton.parameters())
    assert found.memory_bytes == 4 * parameters
    assert found.disk_bytes > 0
    assert any(line.startswith("time    at most about") for line in planned.lines())
    elsewhere = estimate.Estimate(0.0, 0, 10)
    assert elsewhere.lines() == []
