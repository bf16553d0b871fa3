"""Prompt and answer -> the states of a frozen language model, pooled over parts of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anchortune.errors import EvaluationError
from anchortune.evaluation.judges.base import Exchange

_CHARACTERS_A_TOKEN = 24  # of a long text, this much is tokenised; the rest could not be seen


@dataclass(frozen=True)
class Form:
    """How an exchange is written for the backbone, and how much of it is read.

    Attributes:
        before: text before the prompt.
        between: text between prompt and answer.
        bos: whether the tokenizer's beginning-of-sequence token comes first.
        prompt_tokens: longest prompt; of a longer one the first and the last half of this.
        window_tokens: length of the windows into which an answer is cut.
        windows: how many of them are read; the rest of the answer is not.
    """

    before: str
    between: str
    bos: bool
    prompt_tokens: int
    window_tokens: int
    windows: int

    @property
    def answer_tokens(self) -> int:
        """The longest answer that is read whole."""
        return self.window_tokens * self.windows


class Encoded(NamedTuple):
    """Tokens of one exchange; ``prompt`` and ``answer`` are (first, one past the last).

    ``cut`` says that the answer is longer than what is read of it.
    """

    ids: list[int]
    prompt: tuple[int, int]
    answer: tuple[int, int]
    cut: bool


class Features(NamedTuple):
    """The states of n exchanges, float32 on the CPU; states of several layers side by side.

    Attributes:
        prompt: the mean over the prompt, and the last token before the answer, (n, 2 * width).
        windows: the mean over each window of the answer, (n, windows, width); unused ones zero.
        counts: tokens in each window, (n, windows).
    """

    prompt: Tensor
    windows: Tensor
    counts: Tensor

    @property
    def answer(self) -> Tensor:
        """The mean over the answer, (n, width)."""
        weight = self.counts / self.counts.sum(1, keepdim=True).clamp(min=1)
        return (self.windows * weight.unsqueeze(2)).sum(1)


def encode(tokenizer: Any, form: Form, exchange: Exchange) -> Encoded:
    """The tokens of an exchange, cut to what is read; text cannot pass for a special token."""

    def tokens(text: str, *, plain: bool = False) -> list[int]:
        options = {"split_special_tokens": True} if plain else {}
        return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    half = form.prompt_tokens // 2
    most = half * _CHARACTERS_A_TOKEN
    prompt = _unicode(exchange.prompt)
    if len(prompt) > 2 * most:
        prompt = prompt[:most] + prompt[-most:]
    asked = tokens(prompt, plain=True)
    if len(asked) > form.prompt_tokens:
        asked = asked[:half] + asked[-half:]
    answer = _unicode(exchange.answer.strip())[: form.answer_tokens * _CHARACTERS_A_TOKEN]
    whole = tokens(answer, plain=True)
    said = whole[: form.answer_tokens]
    start = ([tokenizer.bos_token_id] if form.bos else []) + tokens(form.before)
    middle = tokens(form.between)
    first = len(start) + len(asked) + len(middle)
    return Encoded(
        [*start, *asked, *middle, *said],
        (len(start), len(start) + len(asked)),
        (first, first + len(said)),
        len(whole) > len(said),
    )


def _unicode(text: str) -> str:
    """``text`` with lone surrogates, which no tokenizer takes, as question marks."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


class Reader:
    """Reads the inner states of a frozen causal language model, which generates nothing here.

    Args:
        model: as transformers loads it; its layers above the deepest one read are dropped.
        tokenizer: its tokenizer.
        form: how exchanges are written.
        layers: after which layers states are read, from 1.

    Raises:
        EvaluationError: the model has fewer layers.
    """

    def __init__(self, model: Any, tokenizer: Any, form: Form, layers: Sequence[int]) -> None:
        self._layers = tuple(layers)
        self._decoder = model.get_decoder().eval().requires_grad_(False)
        found = len(self._decoder.layers)
        if min(layers) < 1 or max(layers) > found:
            raise EvaluationError(
                f"the judge builtin reads layer {max(layers)} and the model given for it has "
                f"{found}; take the backbone that its card names."
            )
        self._decoder.layers = self._decoder.layers[: max(layers)]
        self._tokenizer, self._form = tokenizer, form
        self._states: dict[int, Tensor] = {}
        for layer in layers:
            self._decoder.layers[layer - 1].register_forward_hook(self._keep(layer))

    @property
    def width(self) -> int:
        """Of the states of all layers that are read, side by side."""
        return len(self._layers) * int(self._decoder.config.hidden_size)

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self._states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def encode(self, exchange: Exchange) -> Encoded:
        """The tokens of an exchange."""
        return encode(self._tokenizer, self._form, exchange)

    @torch.inference_mode()
    def read(self, batch: Sequence[Encoded]) -> Features:
        """The pooled states of one batch."""
        device = next(self._decoder.parameters()).device
        longest = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            mask[place, : len(row.ids)] = 1
        try:
            self._decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            states = torch.cat([self._states[layer] for layer in self._layers], 2)
        finally:
            self._states.clear()
        size, many = self._form.window_tokens, self._form.windows
        prompt = torch.zeros(len(batch), 2 * self.width)
        windows = torch.zeros(len(batch), many, self.width)
        counts = torch.zeros(len(batch), many)
        for place, row in enumerate(batch):
            own, (first, last) = states[place], row.answer
            asked = own[slice(*row.prompt)].float()
            mean = asked.mean(0) if len(asked) else torch.zeros(self.width, device=device)
            prompt[place] = torch.cat([mean, own[first - 1].float()]).cpu()
            for window, start in enumerate(range(first, last, size)):
                said = own[start : min(start + size, last)].float()
                windows[place, window], counts[place, window] = said.mean(0).cpu(), len(said)
        return Features(prompt, windows, counts)
