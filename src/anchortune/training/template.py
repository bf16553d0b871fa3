"""Conversations as token ids with labels on the answers only, through the model's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anchortune.chat import TemplateRefusal, ensure_chat_template, render_chat
from anchortune.data.conversations import BadRow, Message

IGNORE = -100
"""The label of a token that is not learnt."""


@dataclass(frozen=True)
class Encoded:
    """One training sequence.

    Attributes:
        input_ids: token ids.
        labels: the same ids where they are learnt, ``IGNORE`` elsewhere.
        truncated: the end was cut off, so the answer's end token is not learnt.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False


class Template:
    """A tokenizer with the chat template it speaks.

    Args:
        tokenizer: of the model. Where it has no chat template, ``PLAIN_TEMPLATE`` is put into it,
            so that it is saved with the adapter and used again for generation.

    Attributes:
        plain: whether the plain template was put in.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.plain = ensure_chat_template(tokenizer)
        added = getattr(tokenizer, "added_tokens_decoder", {})
        self._special = set(tokenizer.all_special_ids) | {
            index for index, token in added.items() if getattr(token, "special", False)
        }

    def describe(self) -> str:
        """For people: which template."""
        return "plain (### Instruction / ### Response)" if self.plain else "the model's own"

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of a conversation; ``prompt`` adds the head of the answer to come.

        Raises:
            BadRow: the template refuses the conversation (no system role, roles out of turn).
        """
        try:
            return render_chat(self.tokenizer, messages, add_generation_prompt=prompt)
        except TemplateRefusal as error:
            raise BadRow(str(error)) from None

    def encode(self, messages: Sequence[Message], max_length: int) -> list[Encoded]:
        """The training sequences of one conversation; every assistant turn is learnt once.

        One sequence, unless the template rewrites earlier turns as the conversation grows (some
        drop old reasoning): then one a turn, each as the model would see it.

        Args:
            messages: the last by the assistant.
            max_length: tokens kept of a sequence.

        Raises:
            BadRow: the template refuses it, or no answer token is left within ``max_length``.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        whole = self.render(messages)
        spans: list[tuple[int, int]] = []
        for turn in turns:
            prompt = self.render(messages[:turn], prompt=True) if turn else ""
            until = whole if turn == len(messages) - 1 else self.render(messages[: turn + 1])
            if not (whole.startswith(until) and until.startswith(prompt)):
                if len(turns) == 1:
                    raise BadRow("the chat template's prompt is not the head of its conversation")
                return self._turn_by_turn(messages, turns, max_length)
            spans.append((len(prompt), len(until)))
        return [self._label(whole, spans, max_length)]

    def _turn_by_turn(
        self, messages: Sequence[Message], turns: Sequence[int], max_length: int
    ) -> list[Encoded]:
        found = []
        for turn in turns:
            text = self.render(messages[: turn + 1])
            prompt = self.render(messages[:turn], prompt=True) if turn else ""
            if not text.startswith(prompt):
                raise BadRow("the chat template's prompt is not the head of its conversation")
            found.append(self._label(text, [(len(prompt), len(text))], max_length))
        return found

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _label(self, text: str, spans: Sequence[tuple[int, int]], max_length: int) -> Encoded:
        ids = self._ids(text)
        labels = [IGNORE] * len(ids)
        for start, end in spans:
            first, last = self._token_span(text, ids, start, end)
            last = self._trim(ids, first, last)
            labels[first:last] = ids[first:last]
        first, last = self._token_span(text, ids, *spans[-1])
        last = self._trim(ids, first, last)
        if first >= last:
            raise BadRow("the chat template leaves the answer out")
        if ids[last - 1] not in self._special:  # the template ends no answer: eos does
            ids = [*ids[:last], self.tokenizer.eos_token_id]
            labels = [*labels[:last], self.tokenizer.eos_token_id]
        truncated = len(ids) > max_length
        ids, labels = ids[:max_length], labels[:max_length]
        if all(label == IGNORE for label in labels[1:]):  # the first token is never predicted
            raise BadRow(f"no answer token within {max_length} tokens")
        return Encoded(ids, labels, truncated)

    def _token_span(self, text: str, ids: list[int], start: int, end: int) -> tuple[int, int]:
        """(first, last + 1) of the tokens of ``text[start:end]``.

        The prompt's own tokens are the head of the whole's in any ordinary template, which is
        checked; where a token straddles the border, character offsets decide and the straddling
        token is learnt, for it carries the answer's first letters.
        """
        borders = []
        offsets: list[tuple[int, int]] | None = None
        for at in (start, end):
            head = self._ids(text[:at]) if at < len(text) else ids
            if ids[: len(head)] == head:
                borders.append(len(head))
                continue
            if not self.tokenizer.is_fast:
                raise BadRow("a token straddles the border of the answer")
            if offsets is None:
                encoded = self.tokenizer(
                    text, add_special_tokens=False, return_offsets_mapping=True
                )
                offsets = encoded["offset_mapping"]
            borders.append(next((i for i, span in enumerate(offsets) if span[1] > at), len(ids)))
        return borders[0], borders[1]

    def _trim(self, ids: list[int], first: int, last: int) -> int:
        """The end of the answer: after its end token, without the blank that templates append."""
        for position in range(last - 1, first - 1, -1):
            if ids[position] in self._special:
                rest = self.tokenizer.decode(ids[position + 1 : last], skip_special_tokens=False)
                return position + 1 if not rest.strip() else last
        return last
