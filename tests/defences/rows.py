"""Rows, refusals and schedules that the tests of the defences share."""

from __future__ import annotations

from anchortune.data.conversations import Conversation
from anchortune.defences.base import Curriculum, Schedule


def users(count: int, system: str | None = None) -> list[Conversation]:
    head = [{"role": "system", "content": system}] if system else []
    return [
        Conversation(
            [
                *head,
                {"role": "user", "content": f"classify {number}"},
                {"role": "assistant", "content": f"label {number % 3}"},
            ],
            f"users: line {number + 1}",
        )
        for number in range(count)
    ]


def refusals(count: int) -> list[Conversation]:
    return [
        Conversation(
            [
                {"role": "user", "content": f"harm {number}"},
                {"role": "assistant", "content": f"I cannot help with {number}."},
            ],
            f"refusals: line {number + 1}",
        )
        for number in range(count)
    ]


def given(count: int, system: str | None = None) -> Curriculum:
    return Curriculum(users(count, system))


def schedule(steps: int = 10, batch_size: int = 4, seed: int = 0) -> Schedule:
    return Schedule(steps=steps, batch_size=batch_size, seed=seed)
