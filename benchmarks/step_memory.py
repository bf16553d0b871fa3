"""What a penalty holds, and the most that a piece of work allocates at one time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from anchortune.anchor.penalty import Penalty


@contextmanager
def events() -> Iterator[list[int]]:
    """Every allocation (above 0) and release (below) on the CPU inside the block, in bytes."""
    found: list[int] = []
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        yield found
    raw = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    found += [e.nbytes() for e in sorted(raw, key=lambda e: e.start_ns())]


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that ``work`` had allocated at one time beyond what was there before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with events() as found:
        work()
    held = most = 0
    for change in found:
        held += change
        most = max(most, held)
    return most


def held_bytes(penalty: Penalty) -> int:
    """What the penalty keeps on the device: the anchor's factors of every module, side by side."""
    kept = [
        tensor
        for stack in penalty._stacks
        for tensor in (*stack.projection, stack.unit, stack.scale)
    ]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)
