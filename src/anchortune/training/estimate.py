"""What a run will take: time, memory and disk, from a measured matrix product and from shapes."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anchortune.training.model import Numbers

_EFFICIENCY = 0.5
"""A training step's share of the speed of a bare matrix product: measured 0.4 to 0.6."""


@dataclass(frozen=True)
class Estimate:
    """About what a run takes, within a factor of two.

    Attributes:
        seconds: of training, without loading and evaluation.
        memory_bytes: on the device, at the longest batch.
        disk_bytes: under the output folder at most.
        flops_per_s: of the matrix product that was timed.
    """

    seconds: float
    memory_bytes: int
    disk_bytes: int
    flops_per_s: float

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"time    about {_duration(self.seconds)}",
            f"memory  about {self.memory_bytes / 2**30:.2f} GiB",
            f"disk    at most about {self.disk_bytes / 2**20:.0f} MiB",
        ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def matmul_speed(numbers: Numbers, width: int) -> float:
    """Floating-point operations a second of a (512 × width) by (width × 2·width) product."""
    left = torch.ones(512, width, dtype=numbers.compute, device=numbers.device)
    right = torch.ones(width, 2 * width, dtype=numbers.compute, device=numbers.device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = left @ right
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2.0 * 512 * width * 2 * width / best


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
    lora: bool,
    four_bit: bool,
    checkpointing: bool,
    checkpoints: int,
    seed: int,
) -> Estimate:
    """What training takes.

    Args:
        skeleton: the model, on the meta device or not.
        trainable: trained parameters.
        lengths: tokens of each sequence.
        numbers: device and dtypes.
        micro: rows held at once.
        rows_seen: rows over all epochs.
        lora: only the adapter is trained, so the frozen weights need no gradient.
        four_bit: frozen weights in NF4.
        checkpointing: activations are computed twice.
        checkpoints: how many lie on disk at once.
        seed: of the shuffle.
    """
    config = skeleton.config.get_text_config()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    vocab = int(config.vocab_size)
    total = sum(p.numel() for p in skeleton.parameters())
    embedding = skeleton.get_input_embeddings().weight.numel()
    tied = skeleton.get_output_embeddings() is not None and bool(config.tie_word_embeddings)
    matrices = total - (0 if tied else embedding)
    mean, longest = padded_tokens(lengths, micro, seed)
    passes = (2 if lora else 3) + (1 if checkpointing else 0)
    per_token = passes * (2.0 * matrices + 4.0 * layers * mean * hidden)
    speed = matmul_speed(numbers, min(4096, max(64, hidden)))
    seconds = rows_seen * mean * per_token / (speed * _EFFICIENCY)

    size = numbers.compute.itemsize
    held = 0.6 if four_bit else float(numbers.weights.itemsize)
    tokens = micro * longest
    # A layer keeps about 16 hidden-wide and 4 MLP-wide activations; the head its logits, twice
    # in float32 and once in the pass's dtype.
    wide = int(getattr(config, "intermediate_size", 4 * hidden))
    kept = hidden if checkpointing else 16 * hidden + 4 * wide
    activations = tokens * (layers * kept * size + vocab * (8 + size))
    memory = int(total * held + trainable * (16 if lora else 12) + activations)
    disk = trainable * 4 * (1 + 3 * checkpoints)
    return Estimate(seconds, memory, disk, speed)
