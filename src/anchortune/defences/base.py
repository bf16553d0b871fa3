"""The one shape of a defence: hooks that do nothing, of which a method overrides what it is.

SFT is this class itself. The hooks are called in the order of the run: ``start``, ``before``,
``curriculum``, ``trained_layers``, ``terms``, ``task_loss``, ``after``, ``system_prompt``. A chain
of defences goes through each hook in the order in which the config lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from anchortune.sections import Section

if TYPE_CHECKING:
    from torch import Tensor

    from anchortune.anchor.anchor import Anchor
    from anchortune.data.conversations import Conversation
    from anchortune.maths.lowrank import Update

Need = Literal["anchor", "harmful_anchor", "refusals", "base"]


@dataclass(frozen=True)
class Anchors:
    """What the defences of one run measure against.

    Attributes:
        aligned: of ``aligned − base``; None where no defence asks for it.
        harmful: of ``harmful − aligned``; None likewise.
    """

    aligned: Anchor | None = None
    harmful: Anchor | None = None


@dataclass(frozen=True)
class Schedule:
    """How long a run is and in what batches, before its rows are changed.

    Attributes:
        steps: optimizer steps.
        batch_size: rows in one.
        seed: the run's.
    """

    steps: int
    batch_size: int
    seed: int


@dataclass(frozen=True)
class Curriculum:
    """The rows that are trained on, and their order where it is part of the method.

    Attributes:
        rows: conversations; the user's first, what a defence added after them.
        order: for each optimizer step the indices into ``rows`` of its batch; None leaves the
            order to the trainer's own seeded shuffling.
        added: rows by the name of the defence that added them, for the record.
    """

    rows: list[Conversation]
    order: list[list[int]] | None = None
    added: dict[str, int] = field(default_factory=dict)


class Term(Protocol):
    """Something added to the gradients once an optimizer step, before clipping."""

    def add_gradient_(self, step: int, grad_scale: float) -> None:
        """Adds ``grad_scale`` times its gradient to the trained parameters' ``.grad``.

        Args:
            step: optimizer steps taken before this one, from 0.
            grad_scale: what the task's gradients were multiplied by.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values that a resumed run needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state``."""
        ...

    def logs(self) -> dict[str, float]:
        """Figures of the last step, for the training log, e.g. ``{"lisa/proximal": 0.1}``."""
        ...


#: (logits (rows, tokens, vocabulary), labels (rows, tokens), reference logits) -> scalar loss.
TaskLoss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]


class Defence(Section):
    """A way to fine-tune without losing safety; this one, SFT, does nothing for it.

    Attributes:
        needs: what must be given: checked before any work.
        source: where the method is from, as an arXiv id.
    """

    needs: ClassVar[frozenset[Need]] = frozenset()
    source: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """Its name in configs, tables and records."""
        return str(getattr(self, "name", "sft"))

    def needed(self) -> frozenset[Need]:
        """What must be given with these settings; a method with choices overrides it."""
        return self.needs

    def start_from(self) -> Literal["aligned", "base"]:
        """The weights that training starts from."""
        return "aligned"

    def before(self, anchors: Anchors) -> Update | None:
        """What is added to the start weights before training; saved as part of the adapter."""
        return None

    def curriculum(
        self,
        given: Curriculum,
        refusals: Sequence[Conversation],
        schedule: Schedule,
        tokenizer: Any,
    ) -> Curriculum:
        """The rows to train on, and in what order."""
        return given

    def trained_layers(self, layers: int) -> list[int] | None:
        """The numbers of the layers that are adapted, of ``layers``; None: all."""
        return None

    def terms(self, model: Any, anchors: Anchors, schedule: Schedule) -> list[Term]:
        """What is added to the gradients in every step."""
        return []

    def task_loss(self) -> TaskLoss | None:
        """A loss in place of the token cross-entropy; None: that."""
        return None

    def after(self, update: Update, anchors: Anchors) -> Update:
        """The trained update, all of it relative to the start model, mended."""
        return update

    def system_prompt(self, tokenizer: Any) -> str | None:
        """What is put before every prompt at inference; None: nothing."""
        return None
