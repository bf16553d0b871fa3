"""The chat template that a model speaks: its own, or a plain stated one where it has none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from anchortune.errors import DataError

PLAIN_TEMPLATE = (
    "{% if add_bos %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}### Response:\n{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}"
    "{% else %}{{ message['content'] }}{% endif %}{{ '\n\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
"""For models without a chat template: headings on lines of their own, the answer ended by eos."""


class TemplateRefusal(DataError):
    """A chat template that refuses a conversation, or fails on it."""


def render_chat(tokenizer: Any, messages: Sequence[dict[str, str]], **options: Any) -> str:
    """The text of a conversation in the model's chat template.

    Args:
        tokenizer: with its chat template; see ``ensure_chat_template``.
        messages: the turns.
        options: further ones of ``apply_chat_template``.

    Raises:
        TemplateRefusal: the template refuses it (no system role, roles out of turn) or fails. It is
            a program that came with the model, run in Jinja's sandbox, and may fail in any way.
    """
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TemplateRefusal(f"the chat template refuses it ({reason[:200]})") from None


def ensure_chat_template(tokenizer: Any) -> bool:
    """Puts ``PLAIN_TEMPLATE`` into a tokenizer that has no chat template.

    It is saved with the tokenizer, so that training and generation use one template.

    Args:
        tokenizer: of the model; changed where it has no template.

    Returns:
        Whether the plain template was put in.

    Raises:
        DataError: it has neither a template nor an end token.
    """
    if tokenizer.chat_template:
        return False
    if tokenizer.eos_token is None:
        raise DataError(
            "the tokenizer has neither a chat template nor an end token, so an answer "
            "would have no end; set eos_token in its tokenizer_config.json."
        )
    begins = tokenizer("a", add_special_tokens=True)["input_ids"][:1]
    add_bos = tokenizer.bos_token is not None and begins == [tokenizer.bos_token_id]
    head = "{% set add_bos = " + ("true" if add_bos else "false") + " %}"
    tokenizer.chat_template = head + PLAIN_TEMPLATE
    return True


def with_system(
    tokenizer: Any, messages: Sequence[dict[str, str]], system: str
) -> list[dict[str, str]]:
    """The messages after ``system``, as generation puts it to the model.

    Where the chat template has no place for a system prompt, refused or passed over in silence, it
    stands before the first user's turn, with an empty line between.

    Args:
        tokenizer: with its chat template; see ``ensure_chat_template``.
        messages: without a system turn; left unchanged.
        system: the system prompt.
    """
    behind = [{"role": "system", "content": system}, *messages]
    with contextlib.suppress(TemplateRefusal):
        if system.strip() in render_chat(tokenizer, behind):
            return behind
    found = [dict(turn) for turn in messages]
    for turn in found:
        if turn["role"] == "user":
            turn["content"] = f"{system}\n\n{turn['content']}"
            break
    return found
