"""What is asked of the hardware, and how long that may take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from anchortune import hardware

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    hardware._cpu_bf16_speedup.cache_clear()
    yield
    hardware._cpu_bf16_speedup.cache_clear()


@pytest.mark.parametrize(
    ("speedups", "dtype"),
    [
        ({32: 0.03}, torch.float32),  # no units for bf16: the whole product is not waited for
        ({32: 0.9, 512: 1.2}, torch.float32),
        ({32: 0.9, 512: 1.3}, torch.bfloat16),
    ],
)
def test_bf16_on_a_cpu_is_for_those_that_are_fast_in_it(
    monkeypatch: pytest.MonkeyPatch, speedups: dict[int, float], dtype: torch.dtype
) -> None:
    asked = []

    def speedup(rows: int) -> float:
        asked.append(rows)
        return speedups[rows]

    monkeypatch.setattr(hardware, "_bf16_speedup", speedup)
    assert hardware.pick_dtype("auto", CPU) == dtype
    assert hardware.pick_dtype("auto", CPU) == dtype
    assert asked == list(speedups)


def test_a_product_is_measured_in_both() -> None:
    assert hardware._bf16_speedup(2) > 0
