"""What is asked of a model, and what it answered: the rows that all of evaluation shares."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from anchortune.files import sha256_text as sha256_text

Part = Literal["selection", "report"]
Finish = Literal["stop", "length", "unknown"]


def part_of(text: str, selection_frac: float = 0.5) -> Part:
    """The part of its set that a prompt belongs to, by the hash of its text alone.

    So a prompt is in the same part wherever it turns up, and no prompt that chose a setting is
    among those it is reported on.

    Args:
        text: the prompt as it stands in the set, before any template or wrapper.
        selection_frac: the share that selects.
    """
    place = int(sha256_text(text)[:15], 16) / 16**15
    return "selection" if place < selection_frac else "report"


@dataclass(frozen=True)
class Item:
    """One prompt of a set.

    Attributes:
        set: name of the task or prompt set it belongs to.
        prompt: the user's turn as it is sent, without any chat template.
        goal: what is wanted, in plain words: the prompt before a jailbreak wrapped it, or the
            item's own text before a task's instruction was put round it. Judges are shown this;
            hashes and parts go by it.
        system: a system prompt, or None.
        target: the right answer of a task: a label, a number, a text; None where there is none.
        category: a group to report by, or None.
    """

    set: str
    prompt: str
    goal: str = ""
    system: str | None = None
    target: Any = None
    category: str | None = None

    def __post_init__(self) -> None:
        if not self.goal:
            object.__setattr__(self, "goal", self.prompt)

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits, by what is sent: the key under which an answer is kept."""
        return sha256_text(f"{self.system or ''}\x00{self.prompt}")[:16]

    @property
    def part(self) -> Part:
        """``selection`` or ``report``; see ``part_of``."""
        return part_of(self.goal)


@dataclass(frozen=True)
class Answer:
    """What one model answered to one item.

    Attributes:
        model: the name under which the model is compared.
        item: what was asked.
        text: the answer; empty where the model ended at once.
        finish: whether it ended by itself or at the longest length.
        tokens: new tokens, or None where nobody counted.
        notes: facts about how it was made, e.g. ``{"near_tie": 0.003}``.
    """

    model: str
    item: Item
    text: str
    finish: Finish = "unknown"
    tokens: int | None = None
    notes: dict[str, Any] = field(default_factory=dict)
