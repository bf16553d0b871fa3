"""What an evaluation takes: figures that grow with the model and with what is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    widths = []

    def timed(_: object, depth: int, numbers: Numbers, rows: int, width: int) -> Any:
        widths.append(width)
        return 8.0 * (1 + depth), 1.0 * (1 + depth)

    monkeypatch.setattr(estimate, "_time_shallow", timed)
    small = LlamaConfig(num_hidden_layers=2)
    # Reading takes 8 for the head and 8 a layer, a token 1 and 1; timed with half an answer behind
    # the prompt, of which 3 of 4 tokens are the prompt's.
    assert estimate.pace(small, NUMBERS, 4, 9, 6) == (24.0 * 9 / 12, 3.0)
    assert estimate.pace(LlamaConfig(num_hidden_layers=10), NUMBERS, 4, 9, 6) == (66.0, 11.0)
    assert set(widths) == {12}


def test_a_prompt_is_read_once_and_not_with_every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts tokens: 8 rows of 512 and 2 are read, then one token of 8 rows a step."""
    clock = [0.0]

    def counted(model: object, batch: Any, **_: Any) -> None:
        rows = list(batch)
        clock[0] += sum(len(row.ids) for row in rows)  # the reading, which gives the first token
        clock[0] += len(rows) * (rows[0].limit - 1)

    monkeypatch.setattr(estimate, "decode", counted)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: clock[0])
    options = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128}
    small = LlamaConfig(num_hidden_layers=2, num_attention_heads=2, **options)
    assert estimate.pace(small, NUMBERS, 8, 512, 2) == (8.0 * 512, 8.0)


def test_a_model_that_cannot_be_cut_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> float:
        raise ValueError("layers")

    monkeypatch.setattr(estimate, "_time_shallow", fails)
    assert estimate.pace(LlamaConfig(), NUMBERS, 1, 1, 1) is None


def test_time_memory_and_disk_by_hand(
    tmp_path: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "pace", lambda *_: estimate.Pace(2.0, 0.5))
    models = {"aligned": {"path": str(llama_base)}}
    machine = {"device": "cpu", "dtype": "float32", "batch_size": 4}
    chosen = config(tmp_path, models, judges=["refusal"], machine=machine)
    planned = plan_eval(chosen, timed=True)
    found = planned.estimate
    assert found is not None
    # Batches of 4: two of six prompts and one of four, 5 tokens each; one of three sums, 128.
    digits = planned.asked[2].max_new_tokens
    assert found.seconds == 4 * 2.0 + 0.5 * (2 * 5 + 1 * 5 + 1 * digits)
    assert found.reading_s == 4 * 2.0
    parameters = sum(p.numel() for p in planned.candidates["aligned"].skeleton.parameters())
    assert found.memory_bytes == 4 * parameters
    assert found.disk_bytes > 0
    assert any(line.startswith("time    at most about") for line in planned.lines())
    elsewhere = estimate.Estimate(0.0, 0, 10)
    assert elsewhere.lines() == []
