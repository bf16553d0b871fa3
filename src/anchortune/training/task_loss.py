"""A loss in place of the token cross-entropy, which may look at the start model's logits."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from anchortune.training.mixins import put_in_front
from anchortune.training.template import IGNORE

if TYPE_CHECKING:
    from anchortune.defences.base import TaskLoss

T = TypeVar("T")


class TaskLossMixin:
    """Trains on ``loss(logits, labels, reference logits)``; ``eval_loss`` stays the cross-entropy.

    The loss is a mean over the tokens that carry a label. Each micro-batch's is weighted by its
    share of the step's tokens, so that neither accumulation nor uneven rows change the step.
    """

    _task_loss: TaskLoss
    _reference: Any

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch, scaled to its share of the step's tokens.

        Without a count of those the trainer itself divides by the accumulation steps.
        """
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs, num_items_in_batch
            )
        labels = inputs["labels"]
        rest = {key: value for key, value in inputs.items() if key != "labels"}
        with torch.no_grad(), self._as_reference(model) as reference:
            start = reference(**rest).logits
        outputs = model(**rest)
        loss = self._task_loss(outputs.logits, labels, start)
        learnt = labels[:, 1:].ne(IGNORE).sum()  # the first token of a row is never predicted
        weight = 1.0 if num_items_in_batch is None else learnt / num_items_in_batch
        # Nothing to learn here (a blank row): the mean over no token may be nan.
        scaled = loss * weight if learnt else outputs.logits.float().sum() * 0.0
        return (scaled, outputs) if return_outputs else scaled

    @contextlib.contextmanager
    def _as_reference(self, model: Any) -> Iterator[Any]:
        """The start model, without dropout: the adapter switched off, or the frozen copy."""
        trainer: Any = self
        if self._reference is not None:
            yield self._reference
            return
        bare = trainer.accelerator.unwrap_model(model)
        model.eval()
        try:
            with bare.disable_adapter():
                yield model
        finally:
            model.train()


def attach_task_loss(trainer: T, loss: TaskLoss) -> T:
    """Makes a trainer train on ``loss``, and returns that trainer.

    Args:
        trainer: with its model as it is at the start; where that is no PEFT model, a frozen copy of
            it is kept on the device, which takes as much memory again.
        loss: (logits (rows, tokens, vocabulary), labels (rows, tokens), reference logits) -> scalar
            mean over the tokens with a label; none of the three is shifted.
    """
    made: Any = trainer
    made._task_loss = loss
    made._reference = None
    if not hasattr(made.model, "disable_adapter"):
        made._reference = copy.deepcopy(made.model).eval().requires_grad_(False)
    put_in_front(made, TaskLossMixin, "TaskLoss")
    return trainer
