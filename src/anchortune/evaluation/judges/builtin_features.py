"""Prompt and answer -> the states of a frozen language model, pooled over parts of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from anchortune.errors import EvaluationError
from anchortune.evaluation.judges.base import Exchange

#: What a feature is taken over: the mean over the prompt, the last token before the answer, the
#: mean over the answer's first tokens, the mean over the answer, the token that ends it.
Span = Literal["prompt", "ask", "start", "answer", "end"]
SPANS: tuple[Span, ...] = ("prompt", "ask", "start", "answer", "end")
START_TOKENS = 12
_CHARACTERS_A_TOKEN = 24  # of a long text, this much is tokenised; the rest could not be seen


@dataclass(frozen=True)
class Form:
    """How an exchange is written for the backbone, and how much of it is read.

    Attributes:
        before: text before the prompt.
        between: text between prompt and answer.
        after: text after the answer; its last token is the ``end``.
        bos: whether the tokenizer's beginning-of-sequence token comes first.
        prompt_tokens: longest prompt; of a longer one the first and the last half of this.
        answer_tokens: longest answer; the rest is not read.
    """

    before: str
    between: str
    after: str
    bos: bool
    prompt_tokens: int
    answer_tokens: int


class Encoded(NamedTuple):
    """Tokens of one exchange; ``prompt`` and ``answer`` are (first, one past the last)."""

    ids: list[int]
    prompt: tuple[int, int]
    answer: tuple[int, int]


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
    said = tokens(answer, plain=True)[: form.answer_tokens]
    start = ([tokenizer.bos_token_id] if form.bos else []) + tokens(form.before)
    middle = tokens(form.between)
    first = len(start) + len(asked) + len(middle)
    return Encoded(
        [*start, *asked, *middle, *said, *tokens(form.after)],
        (len(start), len(start) + len(asked)),
        (first, first + len(said)),
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
        spans: over which parts of the text they are pooled.

    Raises:
        EvaluationError: the model has fewer layers.
    """

    def __init__(
        self, model: Any, tokenizer: Any, form: Form, layers: Sequence[int], spans: Sequence[Span]
    ) -> None:
        self._layers, self._spans = tuple(layers), tuple(spans)
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
    def shape(self) -> tuple[int, int, int]:
        """Of one exchange's features: spans, layers, width of the model."""
        return len(self._spans), len(self._layers), int(self._decoder.config.hidden_size)

    def _keep(self, layer: int) -> Callable[..., None]:
        def hook(_module: Any, _inputs: Any, output: Any) -> None:
            self._states[layer] = output[0] if isinstance(output, tuple) else output

        return hook

    def encode(self, exchange: Exchange) -> Encoded:
        """The tokens of an exchange."""
        return encode(self._tokenizer, self._form, exchange)

    @torch.inference_mode()
    def read(self, batch: Sequence[Encoded]) -> Tensor:
        """The pooled states of one batch, float32 on the CPU, (n, spans, layers, width).

        The mean over an empty prompt or answer is zero.
        """
        device = next(self._decoder.parameters()).device
        longest = max(len(row.ids) for row in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(batch):
            ids[place, : len(row.ids)] = torch.tensor(row.ids)
            mask[place, : len(row.ids)] = 1
        try:
            self._decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
            states = torch.stack([self._states[layer] for layer in self._layers], 1)
        finally:
            self._states.clear()
        pooled = [
            torch.stack([_pool(states[place], row, span) for span in self._spans])
            for place, row in enumerate(batch)
        ]
        return torch.stack(pooled).cpu()


def _pool(states: Tensor, row: Encoded, span: Span) -> Tensor:
    """States (layers, tokens, width) over one span, (layers, width) in float32."""
    first, last = {
        "prompt": row.prompt,
        "ask": (row.answer[0] - 1, row.answer[0]),
        "start": (row.answer[0], min(row.answer[1], row.answer[0] + START_TOKENS)),
        "answer": row.answer,
        "end": (len(row.ids) - 1, len(row.ids)),
    }[span]
    if first == last:
        return torch.zeros(states.shape[0], states.shape[2], device=states.device)
    return states[:, first:last].float().mean(1)
