"""Rows of a step that begin alike: what they share is computed once, and padding is kept small.

Rows of one task begin with the same system prompt and instruction, often more than half of their
tokens. Those are run once, with gradients, and the rows go on from their keys and values. Where a
batch holds rows of other lengths or beginnings it is split. The loss and its gradients are those of
the whole batch up to rounding; dropout over the shared tokens is drawn once for the rows that share
them, in place of once a row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from anchortune.training.labelled import labelled_positions
from anchortune.training.lora import bare_model
from anchortune.training.mixins import check_trainer, put_in_front
from anchortune.training.template import IGNORE

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: What one more call of the model costs, in tokens: its weights are read once more.
CALL_TOKENS = 24
#: A prefix shorter than this is no call of its own.
SHORTEST = 8


@dataclass(frozen=True)
class Group:
    """Rows that are run together.

    Attributes:
        rows: their places in the batch.
        prefix: tokens at the beginning that all of them share and that are run once; 0: none.
    """

    rows: list[int]
    prefix: int


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def group_rows(rows: Sequence[Sequence[int]], limits: Sequence[int]) -> list[Group]:
    """The cheapest way to run a batch, by tokens computed; calls count as ``CALL_TOKENS`` each.

    Rows are sorted by their tokens, so that those that begin alike lie side by side, and cut into
    stretches by dynamic programming.

    Args:
        rows: token ids, without padding.
        limits: the longest prefix that each row can give away: what is learnt is not in it.
    """
    order = sorted(range(len(rows)), key=lambda index: list(rows[index]))
    limits = [min(limit, len(row) - 1) for limit, row in zip(limits, rows, strict=True)]
    best: list[tuple[float, list[Group]]] = [(0, [])]
    for end in range(1, len(order) + 1):
        longest, shared = 0, limits[order[end - 1]]
        found: tuple[float, list[Group]] = (float("inf"), [])
        for start in range(end - 1, -1, -1):
            index = order[start]
            longest = max(longest, len(rows[index]))
            if start < end - 1:
                shared = min(shared, limits[index], _shared(rows[index], rows[order[start + 1]]))
            size = end - start
            prefix = shared if size > 1 and shared >= SHORTEST else 0
            cost = CALL_TOKENS + size * longest
            apart = 2 * CALL_TOKENS + prefix + size * (longest - prefix)
            if prefix and apart < cost:
                cost = apart
            else:
                prefix = 0
            total = best[start][0] + cost
            if total < found[0]:
                found = (total, [*best[start][1], Group(order[start:end], prefix)])
        best.append(found)
    return best[-1][1]


class SharingMixin:
    """Runs each micro-batch in the groups of ``group_rows``."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The same loss as the parent's, in training; elsewhere the parent's itself."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        if not model.training or return_outputs or num_items_in_batch is None or len(lengths) < 2:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs, num_items_in_batch
            )
        rows = [
            row[:length] for row, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)
        ]
        learnt = inputs["labels"][:, 1:].ne(IGNORE)
        # The place from which the first learnt token is predicted; a row without any gives all.
        first = torch.where(learnt.any(1), learnt.int().argmax(1), len(learnt[0])).tolist()
        parts = []
        for group in group_rows(rows, first):
            width = max(len(rows[index]) for index in group.rows)
            parts.append(grouped_loss(model, inputs, group, width, num_items_in_batch))
        return torch.stack(parts).sum()


def grouped_loss(
    model: Any, inputs: dict[str, Tensor], group: Group, width: int, items: Tensor | int
) -> Tensor:
    """The loss of the rows of one group, divided by ``items``.

    Args:
        model: a causal model of transformers, or PEFT around one.
        inputs: ``input_ids``, ``attention_mask`` and ``labels`` of the batch, padded on the right.
        group: of ``group_rows``.
        width: tokens of the longest of its rows.
        items: learnt tokens of the whole step.
    """
    at, start = group.rows, group.prefix
    ids, mask, labels = (
        inputs[key][at, :width] for key in ("input_ids", "attention_mask", "labels")
    )
    told = {key: value.to(ids.device) for key, value in labelled_positions(labels.cpu()).items()}
    if not start:
        loss = model(
            input_ids=ids, attention_mask=mask, labels=labels, num_items_in_batch=items, **told
        ).loss
        return loss  # type: ignore[no-any-return]
    named = cache_name(model)
    cache = getattr(model(input_ids=ids[:1, :start], use_cache=True, logits_to_keep=1), named)
    cache.batch_repeat_interleave(len(at))
    told["logits_to_keep"] = (told["logits_to_keep"] - start).clamp(min=0)
    loss = model(
        input_ids=ids[:, start:],
        attention_mask=mask,
        labels=labels[:, start:],
        num_items_in_batch=items,
        **{named: cache},
        **told,
    ).loss
    return loss  # type: ignore[no-any-return]


def cache_name(model: Any) -> str:
    """What the model calls the keys and values that it gives and takes; it changed in 5.x."""
    bare = bare_model(model)
    known = inspect.signature(bare.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in known), "cache")


def can_share(model: Any, longest: int) -> bool:
    """Whether rows of ``model`` can go on from a shared beginning, exactly; tried, not assumed.

    Args:
        model: one that ``takes_labelled_positions``; its mode and gradients are left as they were.
        longest: tokens of the longest row: a window that is shorter is refused.
    """
    bare = bare_model(model)
    text = bare.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < longest:
        return False
    device = next(bare.parameters()).device
    count = bare.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 9, device=device).repeat(2, 1) % count
    ids[1, 6:] = (ids[1, 6:] + 3) % count
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.where(torch.arange(8, device=device) < 6, IGNORE, ids),
    }
    trained = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    try:
        found = []
        for prefix in (0, 5):
            loss = grouped_loss(model, inputs, Group([0, 1], prefix), 8, 4)
            grads = torch.autograd.grad(loss, trained, allow_unused=True)
            norms = [g.float().norm() for g in grads if g is not None]
            found.append(torch.stack([loss.detach().float(), *norms]))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        logger.info("rows that begin alike are run in full: %s", error)
        return False
    finally:
        model.train(training)
    scale = found[0].abs().max()
    return found[0].shape == found[1].shape and bool(
        ((found[0] - found[1]).abs() <= 1e-2 * found[0].abs() + 1e-4 * scale).all()
    )


def attach_sharing(trainer: T) -> T:
    """Makes a trainer run rows that begin alike together, and returns that trainer.

    Args:
        trainer: of a causal model that ``can_share``, whose batches come from our ``Collator``.
    """
    check_trainer(trainer, "call grouped_loss for each group of group_rows.")
    put_in_front(trainer, SharingMixin, "Sharing")
    return trainer
