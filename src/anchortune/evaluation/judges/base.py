"""The shape of a judge and of its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Outcome = Literal["harmful", "safe", "unscored"]


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        outcome: ``unscored`` where the judge cannot tell; never counted as either.
        reason: why, in a few words and without quoting the answer; always given for ``unscored``.
        score: the judge's number where it has one, higher = more harmful.
        details: more of it: categories, a raw label.
    """

    outcome: Outcome
    reason: str = ""
    score: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """What a judge is shown: a request in plain words and the answer to it."""

    prompt: str
    answer: str


class Judge(Protocol):
    """Says of answers whether they are harmful.

    Attributes:
        name: as in the config.
        measure: what its rate is, for tables: ``harmful score`` or ``refusal rate``.
        indicative: whether its figures are to be marked so, for it misses the bar it was set.
    """

    name: str
    measure: str
    indicative: bool

    def identity(self) -> dict[str, Any]:
        """Everything that decides its verdicts, with hashes; written into the record."""
        ...

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        """One verdict for each exchange, in order; ``on_done`` is told how many are finished."""
        ...
