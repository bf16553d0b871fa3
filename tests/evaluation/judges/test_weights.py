"""Batches of a judge that runs here: order, halving when memory runs out, and its limit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchortune.config import ModelSection
from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.judges.weights import JudgeWeights, special_strings
from tests import tiny

ROWS = [[1] * n for n in (3, 9, 1, 7, 5)]


def weights(path: Path, batch_size: int | None = None) -> JudgeWeights:
    machine = EvalMachine(device="cpu", dtype="float32")
    return JudgeWeights(ModelSection(path=str(path)), machine, batch_size)


def test_the_longest_rows_go_first(llama_base: Path) -> None:
    batches: list[list[int]] = []
    done: list[int] = []
    weights(llama_base, 2).in_batches(ROWS, batches.append, new_tokens=4, on_done=done.append)
    assert batches == [[1, 3], [4, 0], [2]]
    assert done == [2, 4, 5]


def test_a_batch_that_memory_does_not_hold_is_halved_and_none_is_lost(llama_base: Path) -> None:
    tried: list[int] = []
    ran: list[int] = []

    def run(batch: list[int]) -> None:
        tried.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        ran.extend(batch)

    weights(llama_base).in_batches(ROWS, run, new_tokens=4)
    assert tried == [5, 2, 2, 1]
    assert sorted(ran) == [0, 1, 2, 3, 4]


def test_when_not_even_one_fits_it_is_said(llama_base: Path) -> None:
    def run(batch: list[int]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with pytest.raises(EvaluationError, match="not enough memory for a sequence of 9 tokens"):
        weights(llama_base, 4).in_batches(ROWS, run, new_tokens=4)


def test_another_error_is_not_taken_for_it(llama_base: Path) -> None:
    def run(batch: list[int]) -> None:
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        weights(llama_base).in_batches(ROWS, run, new_tokens=4)


def test_weights_are_there_and_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such model folder"):
        weights(tmp_path / "none")


def test_the_special_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = AutoTokenizer.from_pretrained(tiny.tiny_tokenizer(tmp_path))
    assert set(special_strings(made)) == {"<|im_start|>", "<|im_end|>", "<pad>"}
