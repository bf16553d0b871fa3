"""Lisa (arXiv 2405.18641): blocks of steps on refusals and on the user's data, each held near."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from anchortune.config_defences import LisaSection
from anchortune.defences.base import Anchors, Curriculum, Defence, Need, Schedule, Term
from anchortune.defences.refusals import distinct, unordered
from anchortune.errors import DataError, TrainingError

if TYPE_CHECKING:
    from anchortune.data.conversations import Conversation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Blocks:
    """When Lisa is on which data: a function of the step alone.

    Attributes:
        user_steps: steps on the user's rows, in all.
        alignment_steps: length of a block on refusals; the run starts with one.
        finetune_steps: length of a block on the user's rows; the last may be shorter.
    """

    user_steps: int
    alignment_steps: int
    finetune_steps: int

    @property
    def total(self) -> int:
        """Optimizer steps of the run."""
        return self.user_steps + self.alignment_steps * -(-self.user_steps // self.finetune_steps)

    def aligns(self, step: int) -> bool:
        """Whether the step, from 0, is on refusals."""
        return step % (self.alignment_steps + self.finetune_steps) < self.alignment_steps

    def switches(self, step: int) -> bool:
        """Whether a block begins with the step, from 0; the first block's counts."""
        return step % (self.alignment_steps + self.finetune_steps) in (0, self.alignment_steps)


class Lisa(LisaSection, Defence):
    """Lisa, from the aligned model, or from the base with ``start="base"`` (lisa-base).

    The run starts with ``alignment_steps`` steps on refusals, goes on with ``finetune_steps`` on
    the user's rows, and so on in turn; each pool is shuffled anew for every pass over it. The
    user's rows are trained on for as many steps as the config asks for and the steps on refusals
    come on top (1,250 become 1,450 at 100 and 900), so that every defence sees the user's data
    equally often. In the authors' code they come out of one total, and the user's data are seen a
    tenth less.

    The proximal term ``ρ/2·‖w − w_last‖²`` is on the trained parameters as they are, A and B of
    LoRA and not their product, as in the authors' code; w_last is the weights at the last switch.
    It is left out in the first ``warmup_frac`` of all steps.

    The paper that compares lisa-base and lisa-aligned defines neither. Here lisa-base starts from
    the base model, its first block on refusals aligns it, and its adapter belongs on that model.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"refusals"})
    source: ClassVar[str] = "2405.18641"

    def needed(self) -> frozenset[Need]:
        """Refusals, and the base model where it starts from that."""
        return self.needs | ({"base"} if self.start == "base" else set())

    def start_from(self) -> Literal["aligned", "base"]:
        """As ``start`` says."""
        return self.start

    def blocks(self, schedule: Schedule) -> Blocks:
        """When which data are trained on, in a run of ``schedule.steps`` on the user's rows.

        Raises:
            TrainingError: the run is shorter than its first block on refusals and than a block
                on the user's rows, so that it would be Lisa in name only.
        """
        steps = schedule.steps
        if steps < self.finetune_steps and steps <= self.alignment_steps:
            cycle = max(2, min(steps, 100))
            share = max(1, cycle // 10)
            raise TrainingError(
                f"lisa: the run has {steps} steps on the user's rows, no more than its first block "
                f"on refusals (alignment_steps {self.alignment_steps}), and would never come back "
                f"to refusals (finetune_steps {self.finetune_steps}); lower both, to "
                f"{share} and {max(1, cycle - share)} for one."
            )
        return Blocks(steps, self.alignment_steps, self.finetune_steps)

    def curriculum(
        self,
        given: Curriculum,
        refusals: Sequence[Conversation],
        schedule: Schedule,
        tokenizer: Any,
    ) -> Curriculum:
        """The rows given, then the refusals that are used, and every step's batch.

        Raises:
            DataError: there are no refusals.
            TrainingError: the run is too short, or another defence has fixed the order already.
        """
        unordered(given, self.label)
        blocks = self.blocks(schedule)
        pool = distinct(refusals)
        if not pool:
            raise DataError("lisa: refusals holds none; name a source of them.")
        if schedule.steps < self.finetune_steps:
            logger.warning(
                "lisa: %d steps on the user's rows are fewer than finetune_steps (%d): one block "
                "on refusals, then the user's rows to the end; lower both keys to alternate",
                schedule.steps, self.finetune_steps,
            )  # fmt: skip
        users = _batches(len(given.rows), schedule.batch_size, f"lisa users {schedule.seed}")
        safe = _batches(len(pool), schedule.batch_size, f"lisa refusals {schedule.seed}")
        rows, order = list(given.rows), []
        places: dict[int, int] = {}
        for step in range(blocks.total):
            if not blocks.aligns(step):
                order.append(next(users))
                continue
            batch = next(safe)
            for index in batch:
                if index not in places:
                    places[index] = len(rows)
                    rows.append(pool[index])
            order.append([places[index] for index in batch])
        return Curriculum(rows, order, {**given.added, self.label: len(places)})

    def terms(self, model: Any, anchors: Anchors, schedule: Schedule) -> list[Term]:
        """The proximal term on ``model``; ``schedule`` as for ``curriculum``."""
        if not self.rho:
            return []
        blocks = self.blocks(schedule)
        return [Proximal(model, self.rho, blocks, round(self.warmup_frac * blocks.total))]


class Proximal:
    """``ρ/2·‖w − w_last‖²`` on a model's trained parameters; its gradient is ``ρ·(w − w_last)``.

    Args:
        model: whose parameters that require a gradient are held, each near its value at the last
            switch.
        rho: ρ.
        blocks: when the switches are.
        warmup_steps: steps, from the first, in which it is left out.
    """

    def __init__(self, model: Any, rho: float, blocks: Blocks, warmup_steps: int) -> None:
        self._model = model
        self._rho = rho
        self._blocks = blocks
        self._warmup = warmup_steps
        self._last: dict[str, torch.Tensor] = {}
        self._value = 0.0
        self._aligns = True
        self._keep()

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        # Looked up each time: some engines replace the parameters of a model.
        return ((n, p) for n, p in self._model.named_parameters() if p.requires_grad)

    def _keep(self) -> None:
        """Makes the weights as they are now the ones of the last switch."""
        self._last = {name: p.detach().clone() for name, p in self._trained()}

    @torch.no_grad()
    def add_gradient_(self, step: int, grad_scale: float) -> None:
        """Adds ``grad_scale·ρ·(w − w_last)``; at a switch, w_last becomes w first.

        Args:
            step: optimizer steps taken before this one, from 0.
            grad_scale: what the task's gradients were multiplied by.
        """
        if self._blocks.switches(step):
            self._keep()
        self._aligns = self._blocks.aligns(step)
        self._value = 0.0
        if step < self._warmup:
            return
        squares = []
        for name, parameter in self._trained():
            moved = parameter.detach() - self._last[name]
            squares.append(moved.float().square().sum())
            gradient = moved.mul_(self._rho * grad_scale)
            if parameter.grad is None:
                parameter.grad = gradient
            else:
                parameter.grad.add_(gradient)
        if squares:
            self._value = self._rho / 2 * float(torch.stack(squares).sum())

    def state_dict(self) -> dict[str, Any]:
        """The weights at the last switch; the phase follows from the step."""
        return {"w_last": dict(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from the weights at the last switch before the checkpoint.

        Raises:
            TrainingError: they are of other parameters.
        """
        saved: dict[str, torch.Tensor] = state["w_last"]
        now = dict(self._trained())
        if {n: t.shape for n, t in saved.items()} != {n: p.shape for n, p in now.items()}:
            raise TrainingError(
                "lisa: the checkpoint was trained on other parameters; resume with the same "
                "model and lora section, or start anew."
            )
        self._last = {
            name: tensor.to(device=now[name].device, dtype=now[name].dtype).clone()
            for name, tensor in saved.items()
        }

    def logs(self) -> dict[str, float]:
        """The term's value in the last step, 0 in the warm-up, and which data the step was on."""
        return {"lisa/proximal": self._value, "lisa/on_refusals": float(self._aligns)}


def _batches(rows: int, size: int, seed: str) -> Iterator[list[int]]:
    """Batches of indices below ``rows``, without end; a pass is shuffled, its last may be small."""
    generator = random.Random(seed)
    while True:
        order = list(range(rows))
        generator.shuffle(order)
        for start in range(0, rows, size):
            yield order[start : start + size]
