"""A trainer's health watched while it trains: what must stop it does, the rest is said once.

On a CPU every step is looked at as it is made. On a device nothing is read but where the trainer
reads its loss anyway, at logged steps and before a checkpoint is saved, so that no checkpoint ever
holds a weight that is no number. A run that is healthy takes the steps of one that is not watched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import TrainerCallback

from anchortune.anchor.binding import clean_name
from anchortune.errors import TrainingError
from anchortune.training.health import Finding, Health, Seen
from anchortune.training.mixins import check_trainer, put_in_front, steps_in_backward
from anchortune.training.order import OrderMixin
from anchortune.training.task_loss import TaskLossMixin
from anchortune.training.template import IGNORE

logger = logging.getLogger(__name__)
T = TypeVar("T")
_HELD = 256
"""Losses that wait to be read, at most: each is a number on the device."""
_SAMPLED, _SAMPLE = 16, 4096
"""Weights of which a copy of the beginning is kept until they have moved, and its numbers."""


class HealthStop(TrainingError):
    """The training was stopped, for going on would be of no use.

    Attributes:
        finding: why.
    """

    def __init__(self, finding: Finding, checkpoint: str | None = None) -> None:
        self.finding = finding
        self._checkpoint = checkpoint
        told = finding.told
        if checkpoint is not None:
            told = f"{told.rstrip('.')}; the last checkpoint before it is {checkpoint}."
        super().__init__(told)

    def __reduce__(self) -> Any:
        return type(self), (self.finding, self._checkpoint)  # for errors that cross processes


class _Start:
    """What the trained weights were, to see whether they have moved: all B of LoRA, or samples.

    Of LoRA the update is nothing while B is 0, whatever A does.

    Attributes:
        frozen: every B is 0 and none is trained, so that nothing can move.
    """

    def __init__(self, model: Any) -> None:
        trained = _trained(model)
        of_lora = {name: p for name, p in model.named_parameters() if ".lora_B." in name}
        watched = {name: p for name, p in of_lora.items() if p.requires_grad}
        self.frozen = bool(of_lora) and not watched and not _any_entry(of_lora)
        self._zero = bool(watched) and not _any_entry(watched)
        names = sorted(watched or trained)
        if not self._zero:
            names = names[:: max(1, len(names) // _SAMPLED)]
        self._watched = {name: trained[name] for name in names}
        self._copies = {} if self._zero else {n: _head(p).clone() for n, p in self._watched.items()}

    def moved(self) -> bool:
        """Whether anything has."""
        if self._zero:
            return _any_entry(self._watched)
        return any(not torch.equal(_head(p), self._copies[n]) for n, p in self._watched.items())


class _Watch:
    """What is kept for one trainer: its health, and what waits to be looked at."""

    def __init__(self) -> None:
        self.health = Health()
        self.stop: HealthStop | None = None
        self.labelled = False
        self.steps = 0
        self.rated_steps = 0
        self._start: _Start | None = None
        self._losses: list[Tensor] = []
        self._items: list[Any] = []
        self._bad = False
        self._blank = False

    def begin(self, trainer: Any) -> None:
        """Called before the first step, or the first after a resume.

        Raises:
            HealthStop: what is trained cannot move.
        """
        own_loss = isinstance(trainer, TaskLossMixin) or getattr(trainer, "compute_loss_func", None)
        words = None if own_loss else _vocabulary(trainer.model)
        self.health = Health(
            chance=math.log(words) if words else None,
            comparable=not isinstance(trainer, OrderMixin),
            scaled=getattr(trainer.accelerator, "scaler", None) is not None,
        )
        self.catch_up(trainer.state.log_history)
        self.stop, self._bad, self._blank = None, False, False
        self._losses, self._items = [], []
        self.steps = self.rated_steps = 0
        self._start = None
        # DeepSpeed may hold the weights elsewhere and leave nothing in their place.
        if not trainer.state.global_step and not getattr(trainer, "is_deepspeed_enabled", False):
            self._start = _Start(trainer.model)
            told = _cannot_move(trainer, self._start)
            if told is not None:
                raise HealthStop(Finding("unmoved", 0, told, True))

    def catch_up(self, history: Iterable[Mapping[str, Any]]) -> None:
        """Takes what a checkpoint says was logged before it, without saying it again."""
        for line in history:
            if int(line.get("step", 0)) > self.health.last_step:
                self.health.take(_known(line))
        # What went on all the same was mended; where it was not, it comes again and stops then.
        self.health.findings = [one for one in self.health.findings if not one.stops]

    def saw(self, loss: Tensor, items: Any) -> None:
        """Keeps the loss of a micro-batch, and how many tokens it or its step had to learn."""
        self._losses.append(loss.detach().reshape(()))
        if items is not None:
            self.labelled = True
            self._items.append(items)
        if loss.device.type == "cpu" or len(self._losses) >= _HELD:
            self._read()

    def _read(self) -> None:
        """One copy from the device for all that waits."""
        if not self._losses:
            return
        device = self._losses[0].device
        counts = [torch.as_tensor(one, device=device).max().float() for one in self._items]
        held = [loss.float() for loss in self._losses]
        numbers = torch.stack([*held, *counts]).tolist()
        self._bad |= not all(map(math.isfinite, numbers[: len(held)]))
        self._blank |= 0 in numbers[len(held) :]
        self._losses, self._items = [], []

    def bad(self, trainer: Any) -> bool:
        """Whether a loss was no number since the last look, in any process."""
        self._read()
        return _anywhere(trainer, self._bad)

    @property
    def troubled(self) -> bool:
        """Whether that is known of this process without a look."""
        return self._bad

    def look(self, trainer: Any) -> Seen:
        """All that is to be known at a logged step."""
        bad = self.bad(trainer)
        if self._start is not None and _anywhere(trainer, self._start.moved()):
            self._start = None
        seen = Seen(
            bad_loss=bad,
            bad_start=_not_finite(_frozen(trainer.model)) if bad else None,
            blank=_anywhere(trainer, self._blank),
            labelled=self.labelled,
            steps=None if self._start is None else self.steps,
            rated_steps=self.rated_steps,
        )
        self._bad = self._blank = False
        return seen


class _Judge(TrainerCallback):  # type: ignore[misc]
    """Looks at each logged step, and stops the training where it must be."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def _watch(self) -> _Watch:
        watch: _Watch = self._trainer._health
        return watch

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._watch.begin(self._trainer)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        groups = getattr(kwargs.get("optimizer"), "param_groups", [])
        # A rate that lies on the device is not read, and one that is None is the optimizer's own.
        rates = [group.get("lr") for group in groups]
        rated = any(not isinstance(rate, int | float) or rate > 0 for rate in rates)
        self._watch.steps += 1
        self._watch.rated_steps += rated

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._watch.stop is not None:  # where the trainer logs nothing on being told to
            raise self._watch.stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._watch.troubled and args.world_size == 1:  # all processes log, or none does
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if "loss" not in logs:
            return
        watch = self._watch
        line = {**_known(logs), "step": state.global_step}
        self._say(watch.health.take(line, watch.look(self._trainer)), args)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watch = self._watch
        check_weights(self._trainer)
        self._say(watch.health.end(state.global_step, watch.look(self._trainer)), args)

    def _say(self, findings: list[Finding], args: Any) -> None:
        for finding in findings:
            if finding.stops:
                self._watch.stop = HealthStop(finding, _last_checkpoint(args.output_dir))
                raise self._watch.stop
            logger.warning("caution: %s", finding.told)


class HealthMixin:
    """Watches the health of a trainer that descends from ``transformers.Trainer``."""

    _health: _Watch

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's step; its loss and its labels are kept to be looked at."""
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._health.saw(loss, _labels_of(args, kwargs))
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, unless a weight is no number: the last good checkpoint stays the last."""
        check_weights(self)
        return super()._save_checkpoint(*args, **kwargs)  # type: ignore[misc]


def attach_health(trainer: T) -> T:
    """Watches a trainer that exists already, and returns that trainer.

    Before ``trainer.train()``, for ``transformers.Trainer`` and every TRL trainer that descends
    from it; ``attach`` does it too. The trainer's class becomes a subclass of its own class with
    ``HealthMixin`` in front. A trainer that is watched already stays as it is.

    Args:
        trainer: a trainer with its model, before training.

    Raises:
        TrainingError: it is no such trainer. While it trains, ``HealthStop`` where going on would
            be of no use.
    """
    if isinstance(trainer, HealthMixin):
        return trainer
    check_trainer(trainer, "give the logged figures to anchortune.training.health.Health.")
    made: Any = trainer
    made._health = _Watch()
    made.add_callback(_Judge(made))
    put_in_front(made, HealthMixin, "Watched")
    return trainer


def health_findings(trainer: Any) -> list[Finding]:
    """What was found in a watched trainer, also where its training had ended before."""
    watch: _Watch = trainer._health
    watch.catch_up(trainer.state.log_history)
    return watch.health.findings


def check_weights(trainer: Any) -> None:
    """Raises where a trained weight of a watched trainer holds what is no number.

    Raises:
        HealthStop: naming the weight, or the loss that was none.
    """
    watch: _Watch = trainer._health
    trained = _trained(trainer.model)
    bad = _anywhere(trainer, not all(map(math.isfinite, _largest(trained.values()))))
    lost = watch.bad(trainer)
    if not bad and not lost:
        return
    name = _not_finite(trained) or "a weight"
    seen = replace(watch.look(trainer), bad_weights=name)
    [finding] = Health().take({"loss": 0.0, "step": trainer.state.global_step}, seen)
    raise HealthStop(finding, _last_checkpoint(trainer.args.output_dir))


def _labels_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Tokens to learn: of the step, where the trainer has counted them, else of the micro-batch."""
    items = args[2] if len(args) > 2 else kwargs.get("num_items_in_batch")
    if items is not None:
        return items
    inputs = args[1] if len(args) > 1 else kwargs.get("inputs")
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    if not isinstance(labels, Tensor):
        return None
    # One label a row is a class, not a token; the first token of a row is never learnt.
    return (labels[..., 1:] if labels.dim() > 1 else labels).ne(IGNORE).sum()


def _known(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as a trainer logs it, without what it could not tell (a norm that nobody took)."""
    return {key: value for key, value in line.items() if value is not None}


def _cannot_move(trainer: Any, start: _Start) -> str | None:
    """Why nothing that is trained can move, which is known before the first step."""
    if start.frozen:
        return (
            "LoRA's B is 0 and frozen, so that the update stays nothing whatever else is trained: "
            "set requires_grad of the lora_B weights before the trainer is made."
        )
    groups = getattr(trainer.optimizer, "param_groups", [])
    held = {id(parameter) for group in groups for parameter in group["params"]}
    # These hold other tensors than the model: shards, or nothing but a dummy.
    elsewhere = getattr(trainer, "is_fsdp_enabled", False) or steps_in_backward(trainer)
    if held and not elsewhere and not held & {id(p) for p in _trained(trainer.model).values()}:
        return (
            "the optimizer holds none of the trained weights: make it from the model as it is "
            "trained, with its adapter, or let the trainer make it."
        )
    return None


def _trained(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _frozen(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if not p.requires_grad}


def _local(tensor: Tensor) -> Tensor:
    """What of a tensor this process holds: of a DTensor (FSDP2) its part."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _head(tensor: Tensor) -> Tensor:
    return _local(tensor).flatten()[:_SAMPLE]


def _largest(tensors: Iterable[Tensor]) -> list[float]:
    """The greatest ``|entry|`` of tensors by device and dtype, nan where one is; one copy each."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in map(_local, tensors):
        # Of 8-bit floats there is no norm, and what was offloaded is not here.
        here = tensor.numel() and not tensor.is_meta
        if here and tensor.is_floating_point() and tensor.element_size() > 1:
            kinds.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return [
        float(torch.stack(torch._foreach_norm(some, math.inf)).float().max())
        for some in kinds.values()
    ]


def _any_entry(tensors: Mapping[str, Tensor]) -> bool:
    """Whether any entry is something other than 0."""
    return any(size != 0 for size in _largest(tensors.values()))


def _not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first that holds what is no number."""
    for name, tensor in tensors.items():
        if not all(map(math.isfinite, _largest([tensor]))):
            return clean_name(name)
    return None


def _vocabulary(model: Any) -> int | None:
    text = getattr(getattr(model, "config", None), "get_text_config", None)
    return None if text is None else getattr(text(), "vocab_size", None)


def _anywhere(trainer: Any, flag: bool) -> bool:
    """Whether it holds in any process; all of them have to ask."""
    if trainer.args.world_size == 1:
        return flag
    told = trainer.accelerator.gather(torch.tensor([flag], device=trainer.accelerator.device))
    return bool(told.any())


def _last_checkpoint(folder: str) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    try:
        found: str | None = get_last_checkpoint(folder)
    except OSError:  # nothing was saved yet
        return None
    return found
