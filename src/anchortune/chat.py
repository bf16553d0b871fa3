"""The chat template that a model speaks: its own, or a plain stated one where it has none."""

from __future__ import annotations

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
