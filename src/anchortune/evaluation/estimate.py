"""What asking takes: time from timed steps of a shallow copy, memory from shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anchortune.config import LoraSection, MachineSection
from anchortune.evaluation.candidates import Candidate
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.plan import Asked
from anchortune.evaluation.progress import duration
from anchortune.hardware import batch_rows, free_bytes
from anchortune.models.load import Numbers, pick_numbers
from anchortune.models.shallow import shallow_config

_STEPS = 8
_TOKEN_BYTES = 8  # of text, at the most, and of what stands beside it in the files


@dataclass(frozen=True)
class Estimate:
    """About what an evaluation takes.

    Attributes:
        seconds: at most, to generate; None where that cannot be timed. 0 where nothing runs here.
        memory_bytes: of the largest model, batches besides.
        disk_bytes: of the answers and verdicts at most.
    """

    seconds: float | None
    memory_bytes: int
    disk_bytes: int

    def lines(self) -> list[str]:
        """For people; none where no model runs here."""
        if not self.memory_bytes:
            return []
        told = [
            f"memory  about {self.memory_bytes / 2**30:.2f} GiB for the largest model, batches "
            "besides"
        ]
        if self.seconds is not None:
            took = duration(self.seconds)
            told.insert(0, f"time    at most about {took} to generate; judging besides")
        return told


def estimate(
    candidates: Mapping[str, Candidate],
    asked: Sequence[Asked],
    lengths: Mapping[str, Sequence[Sequence[int]]],
    machine: EvalMachine,
) -> Estimate:
    """Time, memory and disk of asking the models that run here.

    The time is that of answers which all reach their longest; judging comes on top.

    Args:
        candidates: by name.
        asked: every set.
        lengths: by model, for each set, the tokens of each prompt.
        machine: where it runs.
    """
    numbers = pick_numbers(
        MachineSection(device=machine.device, dtype=machine.dtype), LoraSection()
    )
    total, largest, known = 0.0, 0, True
    for name, sets in lengths.items():
        skeleton = candidates[name].skeleton.to(numbers.weights)
        weights = sum(parameter.numel() for parameter in skeleton.parameters())
        # An adapter is merged in float32, before the model is narrowed.
        wide = 4 if candidates[name].section.adapter else numbers.weights.itemsize
        largest = max(largest, weights * wide)
        for one, tokens in zip(asked, sets, strict=True):
            longest = max(tokens) + one.max_new_tokens
            rows = machine.batch_size or batch_rows(skeleton, longest, free_bytes(numbers.device))
            rows = min(rows, len(tokens))
            mean = round(sum(tokens) / len(tokens))
            step = step_seconds(skeleton.config, numbers, rows, mean)
            known = known and step is not None
            total += math.ceil(len(tokens) / rows) * one.max_new_tokens * (step or 0.0)
    longest = sum(len(one.items) * one.max_new_tokens for one in asked) * len(candidates)
    return Estimate(total if known else None, largest, longest * _TOKEN_BYTES)


def step_seconds(config: Any, numbers: Numbers, rows: int, width: int) -> float | None:
    """Seconds that one new token of a batch takes, the reading of its prompts shared out.

    The model's first one and two layers are made with random weights and timed; every further
    layer costs what the second did.

    Args:
        config: of the model.
        numbers: device and dtypes.
        rows: of the batch.
        width: tokens of a prompt.

    Returns:
        None where the architecture cannot be cut to two layers.
    """
    try:
        one, two = (_time_shallow(config, depth, numbers, rows, width) for depth in (1, 2))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    layers = int(config.get_text_config().num_hidden_layers)
    return (one + (layers - 1) * max(0.0, two - one)) / _STEPS


@torch.inference_mode()
def _time_shallow(config: Any, depth: int, numbers: Numbers, rows: int, width: int) -> float:
    from transformers import AutoModelForCausalLM

    shallow = shallow_config(config, depth)
    with torch.random.fork_rng(devices=[]), torch.device(numbers.device):
        model = AutoModelForCausalLM.from_config(shallow, dtype=numbers.weights).eval()
        ids = torch.randint(0, int(shallow.get_text_config().vocab_size), (rows, width))
    best = math.inf
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=_STEPS,
            min_new_tokens=_STEPS,
            do_sample=False,
            pad_token_id=0,
        )
        if numbers.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
