"""A run whose every optimizer step has its batch laid down: honoured exactly, resumed or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, Sampler

from anchortune.training.mixins import put_in_front
from anchortune.training.template import IGNORE

T = TypeVar("T")
BLANK = -1
"""In place of a row: the dataset's first, with nothing to learn from it."""


class MicroBatches(Sampler[list[int]]):
    """Each step's batch in ``pieces`` parts, as the trainer's accumulation wants it.

    A batch of fewer rows than pieces is filled up with ``BLANK``, whose loss is nothing: a trainer
    counts its micro-batches and steps after every ``pieces`` of them.

    Args:
        order: for each optimizer step the indices of its rows.
        pieces: micro-batches to a step.
    """

    def __init__(self, order: Sequence[Sequence[int]], pieces: int) -> None:
        self._order = order
        self._pieces = pieces

    def __len__(self) -> int:
        return len(self._order) * self._pieces

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._order:
            yield from split(batch, self._pieces)


def split(batch: Sequence[int], pieces: int) -> list[list[int]]:
    """``batch`` in its order, in ``pieces`` parts as even as can be; an empty one is a blank."""
    small, larger = divmod(len(batch), pieces)
    parts, at = [], 0
    for piece in range(pieces):
        size = small + (piece < larger)
        parts.append(list(batch[at : at + size]) or [BLANK])
        at += size
    return parts


class _WithBlank(Dataset[dict[str, list[int]]]):
    def __init__(self, rows: Any) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if index != BLANK:
            row: dict[str, list[int]] = self._rows[index]
            return row
        first: dict[str, list[int]] = self._rows[0]
        return {**first, "labels": [IGNORE] * len(first["labels"])}


class OrderMixin:
    """Trains on the batches of an order in place of a shuffle."""

    _order: Sequence[Sequence[int]]

    def get_train_dataloader(self) -> Any:
        """Batches in the order's order, prepared as the parent's are."""
        trainer: Any = self
        args = trainer.args
        loader = DataLoader(
            _WithBlank(trainer.train_dataset),
            batch_sampler=MicroBatches(self._order, args.gradient_accumulation_steps),
            collate_fn=trainer.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
        )
        return trainer.accelerator.prepare(loader)


def attach_order(trainer: T, order: Sequence[Sequence[int]]) -> T:
    """Makes a trainer on one device train on ``order``, and returns that trainer.

    Args:
        trainer: with its dataset, and ``max_steps`` of ``len(order)``.
        order: for each optimizer step the indices into the dataset of its batch.
    """
    made: Any = trainer
    made._order = [list(batch) for batch in order]
    put_in_front(made, OrderMixin, "Ordered")
    return trainer
