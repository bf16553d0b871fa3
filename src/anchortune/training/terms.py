"""Terms added to the gradients once an optimizer step, after backward and before clipping.

The seam is that of the penalty (``anchortune.training.seam``), with which it can be stacked in
either order: the parent's ``training_step``, then each term's gradient where an optimizer step
follows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from transformers import TrainerCallback

from anchortune.errors import TrainingError
from anchortune.files import atomic_path, write_json
from anchortune.training.mixins import check_trainer, grad_scale, put_in_front, refuse_backends

if TYPE_CHECKING:
    from anchortune.defences.base import Term

T = TypeVar("T")
STATE_FILE = "terms_state.json"
TENSORS_FILE = "terms_state.safetensors"
_TENSOR = "tensor"


class _State:
    """What the seam keeps for one trainer: its terms, the model, and whether they have fired."""

    def __init__(self, terms: Sequence[Term], model: Any) -> None:
        self.terms = list(terms)
        self.model = model
        self.fired = 0


class _Guard(TrainerCallback):  # type: ignore[misc]
    """Stops the training when a step has passed in which the terms were not added."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._state.fired:
            raise TrainingError(
                "an optimizer step has passed and no term was added to its gradients: this trainer "
                "does not call training_step with synchronised gradients"
                ", so use one of transformers or TRL"
            )


class TermsMixin:
    """Adds terms to the gradients of a trainer that descends from ``transformers.Trainer``."""

    _terms: _State

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's step, then every term's gradient where an optimizer step follows."""
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if trainer.accelerator.sync_gradients:
            held = self._terms
            if trainer.model is not held.model:
                raise TrainingError(
                    "the trainer's model is not the one that the terms were made for: give the "
                    "model when the trainer is made, and attach after that"
                )
            scale = grad_scale(trainer)
            for term in held.terms:
                term.add_gradient_(trainer.state.global_step, scale)
            held.fired += 1
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds every term's figures to the training logs."""
        if "loss" in logs and self._terms.fired:
            for term in self._terms.terms:
                logs.update(term.logs())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            save_states(Path(output_dir), [term.state_dict() for term in self._terms.terms])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        states = load_states(Path(checkpoint))
        if len(states) != len(self._terms.terms):
            raise TrainingError(
                f"{checkpoint} was saved with {len(states)} terms and there are "
                f"{len(self._terms.terms)} now: resume with the same defences, or start anew"
            )
        for term, state in zip(self._terms.terms, states, strict=True):
            term.load_state_dict(state)


def attach_terms(trainer: T, terms: Sequence[Term]) -> T:
    """Adds terms to a trainer that exists already, and returns that trainer.

    Before ``trainer.train()``, for ``transformers.Trainer`` and every TRL trainer that descends
    from it; before or after ``attach`` of a penalty. The trainer's class becomes a subclass of its
    own class with ``TermsMixin`` in front. Clipping sees the sum, the logged loss stays the task's,
    and checkpoints hold the terms' state.

    Args:
        trainer: a trainer with its model, before training.
        terms: made for that model, e.g. by ``Lisa(...).terms(trainer.model, anchors, schedule)``.

    Raises:
        TrainingError: it has terms already, is no such trainer, or its engine or optimizer steps
            before they could be added.
    """
    if isinstance(trainer, TermsMixin):
        raise TrainingError("this trainer has terms already: attach all of them at once")
    check_trainer(trainer, "call term.add_gradient_(step, 1.0) after backward and before clipping")
    made: Any = trainer
    refuse_backends(made, "a term")
    state = _State(terms, made.model)
    made._terms = state
    made.add_callback(_Guard(state))
    put_in_front(made, TermsMixin, "Terms")
    return trainer


def save_states(folder: Path, states: Sequence[dict[str, Any]]) -> None:
    """Writes states of tensors and plain values, dicts and lists of them, without pickle.

    Args:
        folder: gets ``terms_state.json`` and, for the tensors in it, ``terms_state.safetensors``.
        states: one a term.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = str(len(tensors))
            tensors[name] = value.detach().clone().contiguous()
            return {_TENSOR: name}
        if isinstance(value, dict):
            return {"dict": {str(key): plain(item) for key, item in value.items()}}
        if isinstance(value, (list, tuple)):
            return {"list": [plain(item) for item in value]}
        return value

    tree = [plain(state) for state in states]
    if tensors:
        with atomic_path(folder / TENSORS_FILE) as temporary:
            save_file(tensors, temporary)
    write_json(folder / STATE_FILE, tree)


def load_states(folder: Path) -> list[dict[str, Any]]:
    """What ``save_states`` wrote.

    Raises:
        TrainingError: there is none.
    """
    from safetensors.torch import load_file

    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(
            f"{folder} was saved without terms (it has no {STATE_FILE}): resume from a checkpoint "
            "of the same defences, or start anew"
        )
    file = folder / TENSORS_FILE
    tensors = load_file(file) if file.is_file() else {}

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        [(kind, held)] = value.items()
        if kind == _TENSOR:
            return tensors[held]
        if kind == "list":
            return [whole(item) for item in held]
        return {key: whole(item) for key, item in held.items()}

    return [whole(state) for state in json.loads(path.read_text(encoding="utf-8"))]
