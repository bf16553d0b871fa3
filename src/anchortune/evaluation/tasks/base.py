"""The shapes of a task: how an answer was read, and the task with its items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.judges.refusal import has_refusal

TaskKind = Literal["accuracy", "over_refusal", "win_rate"]
Read = Literal["right", "wrong", "tie", "unparsed"]
#: Why an answer to a task with right answers could not be parsed: it declines to give one.
REFUSED = "a refusal"


@dataclass(frozen=True)
class Reading:
    """How one answer was read.

    Attributes:
        outcome: ``right`` or ``wrong``; ``unparsed`` where no answer was found in the text. Of an
            over-refusal task ``right`` is answered and ``wrong`` refused; of a win rate ``right``
            is won, ``wrong`` lost, and only there it may be a ``tie``.
        parsed: what was read, in short (a class, a number), or empty.
        why: the reason of what is not ``right``, without quoting the answer at length.
    """

    outcome: Read
    parsed: str = ""
    why: str = ""


Matcher = Callable[[str, Any], Reading]


class Pairs(Protocol):
    """Reads answers beside other answers to the same items."""

    def __call__(
        self,
        answers: Sequence[Answer],
        references: Mapping[str, str],
        on_done: Callable[[int], None] | None,
    ) -> list[Reading]:
        """One reading for each answer, in order."""
        ...

    def check(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Refuses a judge that is one of the candidates or cannot be reached."""
        ...


@dataclass(frozen=True)
class LoadedTask:
    """A task whose items are ready to be asked.

    Attributes:
        name: what the report calls it.
        kind: what its rate is.
        items: what is asked.
        max_new_tokens: the longest answer.
        source: where the rows came from, with hashes, and how they are asked and matched.
        matcher: reads one answer; None where answers are read in pairs.
        pairs: reads answers beside the reference's; None where each stands alone.
        needs_reference: whether the reference model must answer too, for the file brings no
            answers to compare with.
    """

    name: str
    kind: TaskKind
    items: list[Item]
    max_new_tokens: int
    source: dict[str, Any]
    matcher: Matcher | None = None
    pairs: Pairs | None = None
    needs_reference: bool = False

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which way the rate is good."""
        return "lower" if self.kind == "over_refusal" else "higher"

    def identity(self) -> dict[str, Any]:
        """Everything that decides what is asked and how it is read; goes into the record."""
        return dict(self.source)

    def check(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        """Checks before any long work what reads the answers.

        Args:
            candidates: identities of the models under test, as ``make_judge`` takes them.

        Raises:
            EvaluationError: a win rate's judge is one of them, or its server does not answer.
        """
        if self.pairs is not None:
            self.pairs.check(candidates)

    def read(self, answer: Answer) -> Reading:
        """One answer held against its item's target."""
        return self.read_all([answer])[0]

    def read_all(
        self,
        answers: Sequence[Answer],
        references: Mapping[str, str] | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> list[Reading]:
        """Every answer read, in order.

        Args:
            answers: of one model.
            references: the reference model's answers by item id, for a task that
                ``needs_reference``.
            on_done: told how many are finished.

        Raises:
            EvaluationError: a win rate's judge cannot be reached.
        """
        if self.pairs is not None:
            return self.pairs(answers, references or {}, on_done)
        matcher = self.matcher or unreadable
        readings = [matcher(answer.text, answer.item.target) for answer in answers]
        if self.kind == "accuracy":
            readings = [
                replace(reading, why=REFUSED)
                if reading.outcome == "unparsed" and has_refusal(answer.text)
                else reading
                for reading, answer in zip(readings, answers, strict=True)
            ]
        if on_done is not None:
            on_done(len(readings))
        return readings

    def counts(self, reading: Reading) -> float | None:
        """What a reading adds to the numerator of the task's rate; None leaves it out of n.

        An answer that could not be parsed is no right answer, and stays in the n of an accuracy.
        """
        if self.kind == "over_refusal":
            return {"right": 0.0, "wrong": 1.0}.get(reading.outcome)
        if self.kind == "win_rate":
            return {"right": 1.0, "tie": 0.5, "wrong": 0.0}.get(reading.outcome)
        return float(reading.outcome == "right")


def unreadable(text: str, target: Any) -> Reading:
    """For a task that says nothing of how to read its answers."""
    return Reading("unparsed", why="nothing says how an answer is read")
