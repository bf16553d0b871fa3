"""How hard the penalty pulls beside the task: the sizes of both gradients, and their angle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from anchortune.anchor.moment import Moment
from anchortune.maths.operators import Side

_TOLD_APART = 1e-3
"""Of a gradient this much smaller than the other, the angle is rounding."""


def is_logged(trainer: Any) -> bool:
    """Whether the optimizer step under way will be logged.

    Args:
        trainer: of transformers, in ``training_step``.
    """
    args, state = trainer.args, trainer.state
    step = state.global_step + 1
    if str(getattr(args.logging_strategy, "value", args.logging_strategy)) != "steps":
        return False
    first = step == 1 and bool(args.logging_first_step)
    return first or step >= state.max_steps or step % max(1, int(state.logging_steps)) == 0


class Pull:
    """The task's gradient of the penalised weights, and what the penalty adds to it.

    Made before the penalty's gradient is added and finished after it; what it holds stays on the
    device until it is logged.
    """

    def __init__(self, moment: Moment, terms: tuple[Side, float, float], grad_scale: float) -> None:
        """Takes the sizes before the penalty is added.

        Args:
            moment: the update as it is.
            terms: of the penalty at its λ.
            grad_scale: what the task's gradients were multiplied by.
        """
        self._scale = grad_scale
        self._parameters = [p for p in moment.parameters() if p.requires_grad]
        task = _size([p.grad for p in self._parameters if p.grad is not None])
        added = moment.gradients(*terms)
        kept = [g for p, g in zip(moment.parameters(), added, strict=True) if p.requires_grad]
        self._sizes = [task, _size(kept)]

    def finish(self) -> None:
        """Takes the size of the sum, once the penalty has been added."""
        self._sizes.append(_size([p.grad for p in self._parameters if p.grad is not None]))
        self._parameters = []

    def logs(self) -> dict[str, float]:
        """The norms ``asft/task_grad_norm`` and ``asft/penalty_grad_norm``, in one copy.

        And where it means something their cosine, ``asft/grad_cosine``: below 0 they pull against
        each other.
        """
        task, ours, both = torch.stack([size.to(self._sizes[0]) for size in self._sizes]).tolist()
        task, both = task / self._scale, both / self._scale
        logs = {"asft/task_grad_norm": task, "asft/penalty_grad_norm": ours}
        if _TOLD_APART * task < ours and _TOLD_APART * ours < task:
            cosine = (both**2 - task**2 - ours**2) / (2 * task * ours)
            if math.isfinite(cosine):
                logs["asft/grad_cosine"] = min(1.0, max(-1.0, cosine))
        return logs


def _size(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all of them together; of shards, over every process."""
    total: Any = torch.nn.utils.get_total_norm(list(gradients))
    if hasattr(total, "full_tensor"):
        total = total.full_tensor()
    found: Tensor = total.detach().double()
    return found
