"""Rows of a step as one tree: what they begin with alike is computed once, and nothing is padded.

Rows of one task begin with the same system prompt and instruction, often more than half of their
tokens. A step's rows are laid out one after the other in a single row without what an earlier one
began with; an attention mask shows each token those that lead to it, and positions count along its
own row. So the loss and its gradients are those of the padded batch up to rounding. Dropout over
the shared tokens is drawn once for the rows that share them, in place of once a row.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from anchortune.training.lora import bare_model
from anchortune.training.mixins import check_trainer, put_in_front
from anchortune.training.template import IGNORE

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: What one more call of the model costs, in tokens: its weights are read once more.
CALL_TOKENS = 24


def _shared(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two rows begin with alike."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def pack_rows(rows: Sequence[Sequence[int]], hidden: int) -> list[list[int]]:
    """The cheapest way to run a batch: which rows go into one tree, by tokens computed.

    Rows are sorted by their tokens, so that those that begin alike lie side by side, and cut into
    stretches by dynamic programming. A call counts as ``CALL_TOKENS``, and attention, which sees
    every pair of a tree's n tokens, as ``n² / (3·hidden)``: it takes ``4·hidden·n²`` operations a
    layer where the weights take about ``24·hidden²·n``, and runs at half their speed.

    Args:
        rows: token ids, without padding.
        hidden: the width of the model.

    Returns:
        The places of the rows of each tree, sorted by their tokens.
    """
    order = sorted(range(len(rows)), key=lambda index: list(rows[index]))
    shared = [_shared(rows[a], rows[b]) for a, b in pairwise(order)]
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for end in range(1, len(order) + 1):
        tokens = 0
        found: tuple[float, list[list[int]]] = (float("inf"), [])
        for start in range(end - 1, -1, -1):
            tokens += len(rows[order[start]]) - (shared[start] if start < end - 1 else 0)
            total = best[start][0] + CALL_TOKENS + tokens + tokens**2 / (3 * hidden)
            if total < found[0]:
                found = (total, [*best[start][1], order[start:end]])
        best.append(found)
    return best[-1][1]


@dataclass(frozen=True)
class Tree:
    """Rows laid out in one.

    Attributes:
        ids: (n,) tokens.
        positions: (n,) of each token in the rows that it is of.
        visible: (n, n) whether a token (row of the matrix) sees another (column).
        paths: for each row the places of its tokens in ``ids``.
    """

    ids: Tensor
    positions: Tensor
    visible: Tensor
    paths: list[list[int]]


def lay_out(rows: Sequence[Sequence[int]]) -> Tree:
    """The tree of rows that are sorted by their tokens; each has at least one."""
    ids: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = []
    for number, row in enumerate(rows):
        known = _shared(rows[number - 1], row) if number else 0
        new = range(len(ids), len(ids) + len(row) - known)
        paths.append([*(paths[-1][:known] if number else []), *new])
        ids += row[known:]
        positions += range(known, len(row))
    visible = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for path in paths:
        place = torch.tensor(path)
        visible[place[:, None], place] |= torch.ones(len(path), len(path), dtype=torch.bool).tril()
    return Tree(torch.tensor(ids), torch.tensor(positions), visible, paths)


class SharingMixin:
    """Runs each micro-batch in the trees of ``pack_rows``."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The same loss as the parent's, in training; elsewhere the parent's itself."""
        if not model.training or return_outputs or num_items_in_batch is None:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs, num_items_in_batch
            )
        return shared_loss(model, inputs, num_items_in_batch)


def shared_loss(model: Any, inputs: dict[str, Tensor], items: Tensor | int) -> Tensor:
    """The loss of a batch, divided by ``items``.

    A row is run up to the last place from which a token is learnt: what follows changes nothing.

    Args:
        model: a causal model of transformers that ``can_share``, or PEFT around one.
        inputs: ``input_ids`` and ``labels`` of the batch, padded on the right.
        items: learnt tokens of the whole step.
    """
    rows, learnt = [], []
    for ids, labels in zip(inputs["input_ids"].tolist(), inputs["labels"].tolist(), strict=True):
        told = [(at - 1, label) for at, label in enumerate(labels) if at and label != IGNORE]
        if told:
            rows.append(ids[: told[-1][0] + 1])
            learnt.append(told)
    if not rows:  # a loss of 0 that has its gradients all the same
        rows, learnt = [inputs["input_ids"][0, :1].tolist()], [[(0, IGNORE)]]
    packs = pack_rows(rows, model.config.get_text_config().hidden_size)
    parts = [
        _tree_loss(model, lay_out([rows[i] for i in pack]), [learnt[i] for i in pack], items)
        for pack in packs
    ]
    return torch.stack(parts).sum()


def _tree_loss(
    model: Any, tree: Tree, learnt: Sequence[Sequence[tuple[int, int]]], items: Tensor | int
) -> Tensor:
    """The loss of one tree; ``learnt`` holds (place, label of the next token) for each row."""
    device = model.device
    pairs = [
        (path[at], label)
        for path, told in zip(tree.paths, learnt, strict=True)
        for at, label in told
    ]
    kept, labels = (torch.tensor(part, device=device) for part in zip(*pairs, strict=True))
    visible = tree.visible.to(device)
    if bare_model(model).config.get_text_config()._attn_implementation != "sdpa":
        least = torch.finfo(model.dtype).min  # an eager attention adds its mask
        visible = torch.zeros_like(visible, dtype=model.dtype).masked_fill(~visible, least)
    loss = model(
        input_ids=tree.ids[None].to(device),
        attention_mask=visible[None, None],
        position_ids=tree.positions[None].to(device),
        labels=labels[None],
        shift_labels=labels[None],
        logits_to_keep=kept,
        num_items_in_batch=items,
        use_cache=False,
    ).loss
    return loss  # type: ignore[no-any-return]


def can_share(model: Any, longest: int) -> bool:
    """Whether ``model`` computes the same from a tree of rows; tried, not assumed.

    Args:
        model: one that ``takes_labelled_positions``; its mode and gradients are left as they were.
        longest: tokens of the longest row: a window that is shorter is refused.
    """
    bare = bare_model(model)
    text = bare.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if window is not None and window < longest:
        return False
    if text._attn_implementation not in {"sdpa", "eager"}:  # others take no such mask
        return False
    device = next(bare.parameters()).device
    count = bare.get_input_embeddings().num_embeddings
    # Tokens from all over the vocabulary: its first ones are often special, of unusual size.
    ids = (torch.arange(1, 10, device=device) * 997).repeat(3, 1) % count
    ids[1, 6:] = (ids[1, 6:] + 3) % count
    ids[2, 2:] = (ids[2, 2:] + 5) % count
    labels = torch.where(torch.arange(9, device=device) < 5, IGNORE, ids)
    trained = [p for p in model.parameters() if p.requires_grad]
    training = model.training
    model.eval()
    try:
        found = []
        for loss in (
            lambda: (
                model(input_ids=ids, labels=labels, num_items_in_batch=12, use_cache=False).loss
            ),
            lambda: shared_loss(model, {"input_ids": ids, "labels": labels}, 12),
        ):
            value = loss()
            grads = torch.autograd.grad(value, trained, allow_unused=True)
            norms = [g.float().norm() for g in grads if g is not None]
            found.append(torch.stack([value.detach().float(), *norms]))
        heeds = bare.dtype.itemsize >= 4 or _heeds(model, sorted(ids.tolist()))
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        logger.info("rows that begin alike are run in full: %s", error)
        return False
    finally:
        model.train(training)
    if found[0].shape != found[1].shape:
        return False
    return heeds and _agree(found[0], found[1], bare.dtype)


def _heeds(model: Any, rows: list[list[int]]) -> bool:
    """Whether what a tree's tokens may see, and where they stand, changes the loss at all.

    Rounding hides in 16 bits whether a loss is the right one, but not that two are the same.
    """
    tree = lay_out(rows)
    learnt = [[(at, row[at + 1]) for at in range(4, len(row) - 1)] for row in rows]
    along = torch.arange(len(tree.ids))
    with torch.no_grad():
        right, *wrong = (
            _tree_loss(model, one, learnt, 12)
            for one in (
                tree,
                replace(tree, positions=along),
                replace(tree, visible=torch.ones_like(tree.visible).tril()),
            )
        )
    return all(bool(loss != right) for loss in wrong)


def _agree(wanted: Tensor, found: Tensor, dtype: torch.dtype) -> bool:
    """Whether a loss and the norms of its gradients are the same but for the rounding of ``dtype``.

    In 16 bits two kernels of one attention differ by a fifth in single gradients and by 3 % in nine
    of ten (SmolLM2-135M in bf16, on a CPU), so that it is nine in ten that decide.
    """
    apart = (wanted - found).abs()
    if dtype.itemsize >= 4:
        return bool((apart <= 1e-2 * wanted + 1e-4 * wanted.max()).all())
    moved = wanted > 0
    far = (apart[moved] > 0.1 * wanted[moved]).float().mean()
    return bool(far <= 0.1 and apart[0] <= 2e-2 * wanted[0])


def attach_sharing(trainer: T) -> T:
    """Makes a trainer run rows that begin alike together, and returns that trainer.

    Args:
        trainer: of a causal model that ``can_share``, whose batches come from our ``Collator``.
    """
    check_trainer(trainer, "call shared_loss on each batch.")
    put_in_front(trainer, SharingMixin, "Sharing")
    return trainer
