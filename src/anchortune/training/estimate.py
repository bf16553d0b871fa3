"""What a run will take: time from timed steps of a shallow copy, memory and disk from shapes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anchortune.config import LoraSection
from anchortune.models.load import Numbers
from anchortune.models.shallow import shallow_config
from anchortune.training.lora import add_lora


@dataclass(frozen=True)
class Estimate:
    """About what a run takes, within a factor of two.

    Attributes:
        seconds: of training, without loading and evaluation; None where it was not timed.
        memory_bytes: on the device, at the longest batch.
        disk_bytes: under the output folder at most.
    """

    seconds: float | None
    memory_bytes: int
    disk_bytes: int

    def lines(self) -> list[str]:
        """For people."""
        timed = [] if self.seconds is None else [f"time    about {_duration(self.seconds)}"]
        return [
            *timed,
            f"memory  about {self.memory_bytes / 2**30:.2f} GiB",
            f"disk    at most about {self.disk_bytes / 2**20:.0f} MiB",
        ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def time_row(
    config: Any,
    lora: LoraSection | None,
    numbers: Numbers,
    shape: tuple[int, int],
    checkpointing: bool,
    reference: bool = False,
) -> float | None:
    """Seconds that one row takes, forwards and backwards.

    The model's first one and two layers are made with random weights and timed on the device, in
    the dtype and at the batch shape of the run; every further layer costs what the second did.

    Args:
        config: of the model.
        lora: the adapter, or None where every weight is trained.
        numbers: device and dtypes.
        shape: (rows, tokens) of a batch.
        checkpointing: activations are computed twice.
        reference: a forward pass of the start model comes on top.

    Returns:
        None where the architecture cannot be cut to two layers.
    """
    layers = int(config.get_text_config().num_hidden_layers)
    try:
        times = [_time_shallow(config, depth, lora, numbers, shape) for depth in (1, 2)]
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        return None
    more = max(0.0, times[1] - times[0])
    passes = 2 if lora is not None else 3
    again = (passes + checkpointing + reference) / passes
    return (times[0] + (layers - 1) * more) * again / shape[0]


def _time_shallow(
    config: Any, depth: int, lora: LoraSection | None, numbers: Numbers, shape: tuple[int, int]
) -> float:
    from transformers import AutoModelForCausalLM

    shallow = shallow_config(config, depth)
    with torch.random.fork_rng(devices=[]), torch.device(numbers.device):
        model = AutoModelForCausalLM.from_config(shallow, dtype=numbers.weights)
        if lora is not None:
            model = add_lora(model, lora, seed=0)
        ids = torch.randint(0, int(shallow.get_text_config().vocab_size), shape)
    model.train()
    narrow = numbers.compute != torch.float32
    best = float("inf")
    for _ in range(3):  # the first one warms up
        started = time.perf_counter()
        with torch.autocast(numbers.device.type, numbers.compute, enabled=narrow):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        loss.item()
        if numbers.device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def padded_tokens(lengths: Sequence[int], micro: int, seed: int) -> tuple[float, int]:
    """(mean padded tokens a row in shuffled batches of ``micro``, the longest row)."""
    order = list(lengths)
    random.Random(seed).shuffle(order)
    batches = [order[at : at + micro] for at in range(0, len(order), micro)]
    return sum(max(batch) * len(batch) for batch in batches) / len(order), max(order)


def estimate(
    skeleton: Any,
    trainable: int,
    lengths: Sequence[int],
    *,
    numbers: Numbers,
    micro: int,
    rows_seen: float,
    lora: LoraSection | None,
    checkpointing: bool,
    checkpoints: int,
    seed: int,
    timed: bool,
    reference: bool = False,
) -> Estimate:
    """What training takes.

    Args:
        skeleton: the model, on the meta device or not.
        trainable: trained parameters.
        lengths: tokens of each sequence.
        numbers: device and dtypes.
        micro: rows held at once.
        rows_seen: rows over all epochs.
        lora: the adapter, or None where every weight is trained.
        checkpointing: activations are computed twice.
        checkpoints: how many lie on disk at once.
        seed: of the shuffle.
        timed: whether to time it, which takes seconds.
        reference: the loss looks at the start model's logits too: one more forward pass, and
            where there is no adapter to switch off, a copy of the model.
    """
    config = skeleton.config.get_text_config()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    total = sum(p.numel() for p in skeleton.parameters())
    mean, longest = padded_tokens(lengths, micro, seed)
    seconds = None
    if timed:
        shape = (micro, round(mean))
        row = time_row(skeleton.config, lora, numbers, shape, checkpointing, reference)
        seconds = None if row is None else rows_seen * row

    size = numbers.compute.itemsize
    held = 0.6 if lora is not None and lora.qlora else float(numbers.weights.itemsize)
    tokens = micro * longest
    # A layer keeps about 16 hidden-wide and 4 MLP-wide activations; the head its logits, twice
    # in float32 and once in the pass's dtype.
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    kept = hidden if checkpointing else 16 * hidden + 4 * wide
    logits = int(config.vocab_size) * (8 + size)
    activations = tokens * (layers * kept * size + logits * (2 if reference else 1))
    # The trained weights' gradients and AdamW's two moments, float32; an adapter itself besides.
    copies = 2 if reference and lora is None else 1
    memory = int(total * held * copies + trainable * (16 if lora is not None else 12) + activations)
    disk = trainable * 4 * (1 + 3 * checkpoints)
    return Estimate(seconds, memory, disk)
