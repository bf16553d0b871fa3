"""Answers of a model to a list of prompts: greedy, batched, sorted by length, left-padded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from anchortune.chat import ensure_chat_template


def render_prompt(tokenizer: Any, prompt: str, system: str | None = None) -> str:
    """The text that the model is to continue, by its chat template (see ``anchortune.chat``)."""
    ensure_chat_template(tokenizer)
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@torch.inference_mode()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    system: str | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """One greedy answer for each prompt, in the order given.

    Prompts of like length share a batch, so that little is computed on padding; the padding goes
    by the attention mask alone, for a model's end token may be its padding token.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        prompts: the user's turns, without any template.
        max_new_tokens: the longest answer.
        batch_size: prompts at a time.
        system: a system prompt for all of them.
        on_batch: told the number of prompts done after each batch.
    """
    rendered = [render_prompt(tokenizer, prompt, system) for prompt in prompts]
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]), reverse=True)
    ends = _end_tokens(model, tokenizer)
    answers = [""] * len(prompts)
    training = model.training
    model.eval()
    for start in range(0, len(order), batch_size):
        picked = order[start : start + batch_size]
        width = max(len(encoded[i]) for i in picked)
        ids = torch.full((len(picked), width), ends[0], dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(picked):
            ids[row, width - len(encoded[i]) :] = torch.tensor(encoded[i])
            mask[row, width - len(encoded[i]) :] = 1
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends,
            pad_token_id=ends[0],
            use_cache=True,
        )
        for i, row_ids in zip(picked, output[:, width:].tolist(), strict=True):
            answers[i] = tokenizer.decode(_until(row_ids, ends), skip_special_tokens=True).strip()
        if on_batch is not None:
            on_batch(min(start + batch_size, len(order)))
    model.train(training)
    return answers


def _end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    found = [token for token in (tokenizer.eos_token_id, *listed) if token is not None]
    return list(dict.fromkeys(found)) or [0]


def _until(ids: list[int], ends: list[int]) -> list[int]:
    return ids[: next((at for at, token in enumerate(ids) if token in ends), len(ids))]
