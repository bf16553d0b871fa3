"""BEA (arXiv 2402.14968): refusals behind a secret trigger, which is there again at inference."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from anchortune.chat import with_system
from anchortune.config_defences import BeaSection
from anchortune.defences.base import Curriculum, Defence, Need, Schedule
from anchortune.defences.refusals import dose, pick, unordered, users_rows
from anchortune.errors import DataError

if TYPE_CHECKING:
    from anchortune.data.conversations import Conversation

_TRIES = 500
"""Random tokens tried for one place of the trigger."""


class Bea(BeaSection, Defence):
    """BEA: ``share · n`` refusals (halves up) whose system prompt is the trigger, then ``system``.

    As in the authors' code, what tells these rows from the user's is the trigger alone: the user's
    rows have ``system`` without it, or the system prompt that they come with. At inference the
    prompt is the trigger, then ``system``; where the user's rows come with a system prompt of their
    own, give that as ``system``. With an empty ``system`` the trigger stands alone and the user's
    rows stay as they are.

    The refusals are those that SafeInstr picks at the same seed and share. The trigger depends on
    ``trigger_seed`` and the tokenizer, so whoever knows both knows it: with a seed of one's own,
    keep the records, which hold it, to oneself.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals"})
    source: ClassVar[str] = "2402.14968"

    def trigger(self, tokenizer: Any) -> str:
        """``trigger_tokens`` random tokens of the tokenizer as a text.

        Raises:
            DataError: its tokens make no such text.
        """
        return random_text(tokenizer, self.trigger_tokens, self.trigger_seed)

    def curriculum(
        self,
        given: Curriculum,
        refusals: Sequence[Conversation],
        schedule: Schedule,
        tokenizer: Any,
    ) -> Curriculum:
        """The rows with the triggered refusals after them.

        Raises:
            DataError: the share is of no row, there are too few refusals, or no trigger.
            TrainingError: another defence has fixed the order already.
        """
        unordered(given, self.label)
        count = dose(self.share, users_rows(given), self.label)
        picked = pick(refusals, count, schedule.seed, self.label)
        prompt = self._prompt(tokenizer)
        users = [_behind(row, self.system, tokenizer) for row in given.rows]
        added = [_behind(_bare(row), prompt, tokenizer) for row in picked]
        return Curriculum([*users, *added], None, {**given.added, self.label: count})

    def system_prompt(self, tokenizer: Any) -> str | None:
        """The trigger, then ``system``."""
        return self._prompt(tokenizer)

    def _prompt(self, tokenizer: Any) -> str:
        return f"{self.trigger(tokenizer)} {self.system}".strip()


def _bare(row: Conversation) -> Conversation:
    """The conversation without its system turns."""
    return replace(row, messages=[turn for turn in row.messages if turn["role"] != "system"])


def _behind(row: Conversation, system: str, tokenizer: Any) -> Conversation:
    """The conversation after ``system``, unless that is empty or it has a system prompt already."""
    if not system.strip() or any(turn["role"] == "system" for turn in row.messages):
        return row
    return replace(row, messages=with_system(tokenizer, row.messages, system))


def random_text(tokenizer: Any, tokens: int, seed: int) -> str:
    """A text of ``tokens`` random tokens that the tokenizer reads back as the same tokens.

    No special tokens, no line breaks or marks that do not print, no blank at either end (chat
    templates take those off).

    Raises:
        DataError: the tokenizer's tokens make no such text.
    """
    generator = random.Random(f"trigger {seed}")
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", ()))
    usable = [index for index in range(len(tokenizer)) if index not in special]
    chosen: list[int] = []
    text = ""
    while usable and len(chosen) < tokens:
        for _ in range(_TRIES):
            longer = [*chosen, usable[generator.randrange(len(usable))]]
            text = tokenizer.decode(longer, clean_up_tokenization_spaces=False)
            plain = text.isprintable() and text == text.strip() and "\ufffd" not in text
            if plain and tokenizer(text, add_special_tokens=False)["input_ids"] == longer:
                chosen = longer
                break
        else:
            break
    if len(chosen) < tokens:
        raise DataError(
            f"bea: the tokenizer gives no text of {tokens} random tokens that it would read back; "
            "lower bea.trigger_tokens, or use safe-instr."
        )
    return text
