"""One batch of prompts continued token by token: finished rows leave it, near-ties are noted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anchortune.evaluation.items import Finish

#: Names under which models of transformers give and take their cache.
_CACHES = ("cache", "past_key_values", "cache_params")
#: The batch is made smaller once this share of its rows has finished: it costs a copy of the cache.
_DROP_FRAC = 1 / 8
#: A beginning of fewer tokens is no call of its own.
_SHORTEST = 8


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        index: whose it is; the caller's.
        ids: its tokens.
        limit: the most new tokens.
        draws: uniform numbers in [0, 1), shape (limit,), one for each token; None is greedy.
    """

    index: int
    ids: Sequence[int]
    limit: int
    draws: Tensor | None = None


@dataclass(frozen=True)
class NearTie:
    """A place where the two likeliest tokens were as good as equal.

    Attributes:
        at: the new token's number, from 0.
        gap: the difference of the two logits.
    """

    at: int
    gap: float


@dataclass(frozen=True)
class Continuation:
    """What follows a prompt: new tokens without the end token."""

    tokens: list[int]
    finish: Finish
    near_ties: list[NearTie]


@dataclass(frozen=True)
class Sampling:
    """How the next token is taken.

    Attributes:
        temperature: 0 is greedy.
        top_p: the likeliest tokens that make up this share are drawn from.
        tie: gaps below it are near-ties.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    tie: float = 0.0


@torch.inference_mode()
def decode(
    model: Any,
    rows: Sequence[Row],
    *,
    ends: Sequence[int],
    sampling: Sampling,
    on_row: Callable[[int, Continuation], None],
) -> None:
    """Continues every row, and tells of each as soon as it has ended.

    What all prompts begin with alike is run once. The rest is padded on its left; what is padding
    goes by the attention mask alone, for a model's end token may be its padding token. Positions
    count real tokens. Keys and values are cached. Rows that have ended are taken out of the batch
    and its cache.

    Args:
        model: a causal language model of transformers, in eval mode.
        rows: the batch.
        ends: tokens that end an answer.
        sampling: how the next token is taken.
        on_row: told a row's ``index`` and how it goes on.
    """
    accepted = inspect.signature(model.forward).parameters
    last = last_alone(model)
    shared, cache = begin(model, rows)
    ids, mask = _padded(rows, shared, ends[0])
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ids, positions = ids[:, shared:], positions[:, shared:]
    alive = list(rows)
    tokens: dict[int, list[int]] = {row.index: [] for row in rows}
    ties: dict[int, list[NearTie]] = {row.index: [] for row in rows}
    ended: set[int] = set()
    stops = set(ends)
    step = 0
    while True:
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        if "position_ids" in accepted:
            given["position_ids"] = positions
        output = model(**given, **last, **cache)
        name = next(n for n in _CACHES if n in accepted and output.get(n) is not None)
        cache = {name: output[name]}
        logits = output.logits[:, -1].float()
        picked, gaps = _pick(logits, alive, step, sampling)
        for at, row in enumerate(alive):
            if row.index in ended:
                continue
            if gaps[at] < sampling.tie:
                ties[row.index].append(NearTie(step, gaps[at]))
            stopped = picked[at] in stops
            if not stopped:
                tokens[row.index].append(picked[at])
            if stopped or len(tokens[row.index]) >= row.limit:
                ended.add(row.index)
                finish: Finish = "stop" if stopped else "length"
                on_row(row.index, Continuation(tokens[row.index], finish, ties[row.index]))
        step += 1
        keep = [at for at, row in enumerate(alive) if row.index not in ended]
        if not keep:
            return
        ids = torch.tensor(picked, device=ids.device)[:, None]
        mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=-1)
        positions = positions[:, -1:] + 1
        finished = len(alive) - len(keep)
        if finished >= max(1, _DROP_FRAC * len(alive)) and _can_drop(cache[name]):
            chosen = torch.tensor(keep, device=ids.device)
            ids, mask, positions = ids[chosen], mask[chosen], positions[chosen]
            cache[name].batch_select_indices(chosen)
            alive = [alive[at] for at in keep]


def last_alone(model: Any) -> dict[str, Any]:
    """The keyword that keeps the last position's logits alone; none where a model takes none."""
    accepted = inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}


def begin(model: Any, rows: Sequence[Row]) -> tuple[int, dict[str, Any]]:
    """Runs what all rows begin with alike, once.

    Args:
        model: a causal language model of transformers, in eval mode.
        rows: the batch; its limits count the tokens that will follow.

    Returns:
        The tokens that were run, 0 where nothing can be shared, and the cache from which every row
        goes on, by the name under which the model takes it.
    """
    shared = _shared_beginning(model, rows)
    if not shared:
        return 0, {}
    accepted = inspect.signature(model.forward).parameters
    start = torch.tensor([rows[0].ids[:shared]], device=model.device)
    begun = model(input_ids=start, use_cache=True, **last_alone(model))
    name = next(n for n in _CACHES if n in accepted and begun.get(n) is not None)
    if not _can_repeat(begun[name]):  # a state that would run on through padding
        return 0, {}
    begun[name].batch_repeat_interleave(len(rows))
    return shared, {name: begun[name]}


def _padded(rows: Sequence[Row], shared: int, pad: int) -> tuple[Tensor, Tensor]:
    """(tokens, mask) of all rows, padded behind the ``shared`` tokens that all begin with."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    mask[:, :shared] = 1
    for at, row in enumerate(rows):
        ids[at, :shared] = torch.tensor(row.ids[:shared])
        ids[at, width - len(row.ids) + shared :] = torch.tensor(row.ids[shared:])
        mask[at, width - len(row.ids) + shared :] = 1
    return ids, mask


def _shared_beginning(model: Any, rows: Sequence[Row]) -> int:
    """How many tokens all rows begin with alike, where a model can go on from them; each keeps one.

    Padding lies behind them, so what a window reaches back to must not depend on it, and the keys
    and values of the beginning must be all that there is to remember.
    """
    if len(rows) < 2:
        return 0
    config = model.config.get_text_config()
    # Padding counts: a short prompt is padded to a long one, and may be answered at length.
    longest = max(len(row.ids) for row in rows) + max(row.limit for row in rows)
    window = getattr(config, "sliding_window", None)
    if window is not None and window < longest:
        return 0
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        return 0
    least = min(len(row.ids) for row in rows) - 1
    first = rows[0].ids
    same = next((at for at in range(least) if any(row.ids[at] != first[at] for row in rows)), least)
    return same if same >= _SHORTEST else 0


def _can_repeat(cache: Any) -> bool:
    """Whether a cache is keys and values alone, which several rows can go on from."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(isinstance(layer, DynamicLayer) for layer in layers)


def _can_drop(cache: Any) -> bool:
    """Whether rows can be taken out of a cache; states of linear attention cannot."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(hasattr(layer, "batch_select_indices") for layer in layers)


def _pick(
    logits: Tensor, rows: Sequence[Row], step: int, sampling: Sampling
) -> tuple[list[int], list[float]]:
    """(next token, gap of the two likeliest) of each row.

    Args:
        logits: (rows, vocabulary), float32.
        rows: those of the batch; the ones that have ended are picked for too.
        step: the number of the token.
        sampling: how it is taken.
    """
    if sampling.temperature == 0:
        values, best = logits.topk(2, dim=-1)
        return best[:, 0].tolist(), (values[:, 0] - values[:, 1]).tolist()
    draws = torch.stack([_draw(row, step) for row in rows]).to(logits.device)
    return sample(logits / sampling.temperature, sampling.top_p, draws).tolist(), [
        float("inf")
    ] * len(rows)


def _draw(row: Row, step: int) -> Tensor:
    return row.draws[min(step, row.limit - 1)] if row.draws is not None else torch.tensor(0.5)


def sample(logits: Tensor, top_p: float, draws: Tensor) -> Tensor:
    """One token a row by its number in [0, 1): the inverse of the cumulated probabilities.

    One number a token, drawn beforehand for each prompt, makes an answer independent of the batch
    that it is sampled in.

    Args:
        logits: (rows, vocabulary), over the temperature.
        top_p: the likeliest tokens that make up this share take part; the likeliest always does.
        draws: (rows,), in [0, 1).

    Returns:
        (rows,) token ids.
    """
    shares = logits.softmax(-1)
    order = None
    if top_p < 1:
        shares, order = shares.sort(dim=-1, descending=True)
        before = shares.cumsum(-1) - shares
        shares = shares.masked_fill(before >= top_p, 0.0)
    sums = shares.cumsum(-1)
    # Below one by more than rounding, so that no token of probability 0 behind the last is hit.
    wanted = draws.clamp(max=1 - 2**-20).to(sums)[:, None] * sums[:, -1:]
    place = torch.searchsorted(sums, wanted, right=True).clamp(max=logits.shape[-1] - 1)
    return (place if order is None else order.gather(-1, place))[:, 0]
