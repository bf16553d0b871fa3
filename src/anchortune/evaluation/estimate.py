"""What asking takes: time from timed steps of a shallow copy, memory from shapes."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from anchortune.evaluation.candidates import Candidate
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.decode import Row, Sampling, decode
from anchortune.evaluation.engine import numbers_of
from anchortune.evaluation.plan import Asked
from anchortune.hardware import batch_rows, free_bytes
from anchortune.models.load import Numbers
from anchortune.models.shallow import shallow_config
from anchortune.progress import duration

_STEPS = 8
_NO_TOKEN = -1
_TOKEN_BYTES = 8  # of text, at the most, and of what stands beside it in the files


@dataclass(frozen=True)
class Estimate:
    """About what an evaluation takes.

    Attributes:
        seconds: at most, to generate; None where that cannot be timed. 0 where nothing runs here.
        reading_s: of those, to read the prompts: what it takes at the least.
        memory_bytes: of the largest model, batches besides.
        disk_bytes: of the answers and verdicts at most.
    """

    seconds: float | None
    memory_bytes: int
    disk_bytes: int
    reading_s: float = 0.0

    def lines(self) -> list[str]:
        """For people; none where no model runs here."""
        if not self.memory_bytes:
            return []
        told = [
            f"memory  about {self.memory_bytes / 2**30:.2f} GiB for the largest model, batches "
            "besides"
        ]
        if self.seconds is not None:
            told.insert(
                0,
                f"time    at most about {duration(self.seconds)} to generate, were every answer as "
                f"long as it may be; {duration(self.reading_s)} of it reads the prompts; judging "
                "besides",
            )
        return told


def estimate(
    candidates: Mapping[str, Candidate],
    asked: Sequence[Asked],
    lengths: Mapping[str, Sequence[Sequence[int]]],
    machine: EvalMachine,
) -> Estimate:
    """Time, memory and disk of asking the models that run here.

    The time is that of answers which all reach their longest, on a machine as busy as it is now;
    answers that end earlier leave their batch and take less. Judging comes on top.

    Args:
        candidates: by name.
        asked: every set.
        lengths: by model, for each set, the tokens of each prompt.
        machine: where it runs.
    """
    numbers = numbers_of(machine)
    total, reading, largest, known = 0.0, 0.0, 0, True
    for name, sets in lengths.items():
        skeleton = candidates[name].skeleton.to(numbers.weights)
        weights = sum(parameter.numel() for parameter in skeleton.parameters())
        # An adapter is merged in float32, before the model is narrowed.
        wide = 4 if candidates[name].section.adapter else numbers.weights.itemsize
        largest = max(largest, weights * wide)
        for one, tokens in zip(asked, sets, strict=True):
            longest = max(tokens) + one.max_new_tokens
            rows = machine.batch_size or batch_rows(
                skeleton, longest, free_bytes(numbers.device), numbers.device.type
            )
            rows = min(rows, len(tokens))
            mean = round(sum(tokens) / len(tokens))
            paces = pace(skeleton.config, numbers, rows, mean, one.max_new_tokens)
            if paces is None:
                known = False
                continue
            batches = math.ceil(len(tokens) / rows)
            reading += batches * paces.read_s
            total += batches * (paces.read_s + one.max_new_tokens * paces.token_s)
    longest = sum(len(one.items) * one.max_new_tokens for one in asked) * len(candidates)
    return Estimate(
        total if known else None, largest, longest * _TOKEN_BYTES, reading if known else 0.0
    )


class Pace(NamedTuple):
    """How fast a batch goes.

    Attributes:
        read_s: seconds to read its prompts.
        token_s: seconds for one new token of each row, the cache half full.
    """

    read_s: float
    token_s: float


def pace(config: Any, numbers: Numbers, rows: int, width: int, new_tokens: int) -> Pace | None:
    """How fast a batch of ``rows`` prompts goes on this machine, now.

    The model's first one and two layers are made with random weights and timed; every further
    layer costs what the second did.

    Args:
        config: of the model.
        numbers: device and dtypes.
        rows: of the batch.
        width: tokens of a prompt.
        new_tokens: the longest answer.

    Returns:
        None where the architecture cannot be cut to two layers.
    """
    middle = width + new_tokens // 2
    try:
        timed = [_time_shallow(config, depth, numbers, rows, middle) for depth in (1, 2)]
    except (
        AttributeError,
        IndexError,
        KeyError,
        RuntimeError,
        StopIteration,
        TypeError,
        ValueError,
    ):
        return None
    layers = int(config.get_text_config().num_hidden_layers)
    read, token = (
        one + (layers - 1) * max(0.0, two - one) for one, two in zip(*timed, strict=True)
    )
    return Pace(read * width / middle, token)


@torch.inference_mode()
def _time_shallow(
    config: Any, depth: int, numbers: Numbers, rows: int, width: int
) -> tuple[float, float]:
    """Seconds to read ``rows`` prompts of ``width`` tokens, and for a new token of each."""
    from transformers import AutoModelForCausalLM

    shallow = shallow_config(config, depth)
    with torch.random.fork_rng(devices=[]), torch.device(numbers.device):
        model = AutoModelForCausalLM.from_config(shallow, dtype=numbers.weights).eval()
        ids = torch.randint(0, int(shallow.get_text_config().vocab_size), (width,)).tolist()

    def seconds(new_tokens: int) -> float:
        batch = [Row(index, ids, new_tokens) for index in range(rows)]
        started = time.perf_counter()
        # No token ends an answer, so that all of them are as long as that.
        decode(model, batch, ends=[_NO_TOKEN], sampling=Sampling(), on_row=lambda *_: None)
        return time.perf_counter() - started

    seconds(1)  # warms up
    reading = min(seconds(1) for _ in range(2))
    both = min(seconds(1 + _STEPS) for _ in range(2))
    return reading, max(0.0, both - reading) / _STEPS
