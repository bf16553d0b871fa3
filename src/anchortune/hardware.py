"""Which dtype and device this machine is fast with: asked of the hardware, never assumed."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; ``auto`` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


@functools.cache
def _cpu_bf16_speedup() -> float:
    """Seconds of a fp32 matrix product over those of the same in bf16.

    Few rows are tried first: a processor without units for bf16 is 20 to 60 times slower in it, and
    the whole product would take it seconds.
    """
    few = _bf16_speedup(32)
    return few if few < 0.2 else _bf16_speedup(512)


def bf16_speedup() -> float:
    """How many times as fast as in fp32 this processor multiplies matrices in bf16, measured."""
    return _cpu_bf16_speedup()


def _bf16_speedup(rows: int) -> float:
    """The speed-up of a product of (``rows``, 576) and (576, 1536), by the median of five each."""
    times: dict[torch.dtype, float] = {}
    for dtype in (torch.float32, torch.bfloat16):
        left = torch.ones(rows, 576, dtype=dtype)
        right = torch.ones(576, 1536, dtype=dtype)
        left @ right
        samples = []
        for _ in range(5):
            started = time.perf_counter()
            left @ right
            samples.append(time.perf_counter() - started)
        times[dtype] = sorted(samples)[2]
    return times[torch.float32] / times[torch.bfloat16]


def pick_dtype(name: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """The dtype called ``name`` (float32, bfloat16, float16).

    ``auto`` takes bf16 on a GPU that has it, and on a CPU only where a bf16 matrix product was
    just measured at least 1.3 times as fast as the same in fp32.
    """
    if name != "auto":
        return {
            "float32": torch.float32,
            "bfloat16": torch.bfloat16,
            "float16": torch.float16,
        }[name]
    device = device or pick_device()
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if device.type == "cpu":
        return torch.bfloat16 if _cpu_bf16_speedup() >= 1.3 else torch.float32
    return torch.float32


#: Rows at a time beyond which nothing is gained, by kind of device.
_MOST_ROWS = {"cuda": 256, "mps": 64, "cpu": 64}
#: The share of the free memory that a batch may plan with; the rest is for what it cannot foresee.
_USED_FRAC = {"cuda": 0.7, "mps": 0.5, "cpu": 0.4}


def free_bytes(device: torch.device) -> int:
    """Memory that is free on ``device`` now; 4 GiB where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 4 * 2**30


def batch_rows(model: Any, tokens: int, free: int, kind: str | None = None) -> int:
    """How many sequences a model can hold at once in inference, and gains by holding.

    Counted are keys and values of every layer (twice, for they are copied as they grow), the
    activations of one layer and the logits of one token in float32, several copies.

    Args:
        model: of transformers; its config and dtype are read.
        tokens: the length of a sequence, prompt and answer.
        free: bytes on its device.
        kind: of the device; None takes the model's own. A model that is only planned with has none.
    """
    config = model.config.get_text_config()
    hidden, layers = int(config.hidden_size), int(config.num_hidden_layers)
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    wide = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    size = model.dtype.itemsize
    cache = 2 * 2 * layers * kv_heads * head * size
    activations = (6 * hidden + 3 * wide) * size
    logits = 4 * 4 * int(config.vocab_size)
    row = tokens * (cache + activations) + logits
    kind = kind or model.device.type
    fits = int(free * _USED_FRAC.get(kind, 0.4) / row)
    return max(1, min(fits, _MOST_ROWS.get(kind, 64)))
