"""The safety probe in a trainer: it looks every few steps, logs, warns, stops, and steers λ.

A run that is only watched takes the steps of one that is not, to the bit. What the model's margin
is compared with is the margin of the model before its training, of the aligned one.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainerCallback

from anchortune.errors import TrainingError
from anchortune.files import write_json
from anchortune.training.mixins import check_trainer, put_in_front
from anchortune.training.probe import Probe, Reading
from anchortune.training.schedule import ProbeLambda

logger = logging.getLogger(__name__)
T = TypeVar("T")
STATE_FILE = "probe_state.json"
STOPPED_FILE = "stopped.json"
"""In the folder of a run that the probe stopped: when and why."""


class ProbeStop(TrainingError):
    """The probe has stopped the training: the model refuses too much less than it did.

    Attributes:
        facts: plain values: ``step``, ``margin``, ``fall``, ``stop_below``.
    """

    exit_code = 3

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)
        super().__init__(
            f"the safety probe stopped the training at step {facts['step']}: its margin lies "
            f"{facts['fall']:.2f} nats below that of the model before training, and "
            f"probe.stop_below is {facts['stop_below']:g}; give the penalty more weight, or lower "
            "training.learning_rate."
        )


class _Watch:
    """What the seam keeps for one trainer: the probe and what it has found."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.before: float | None = None
        self.unlogged: dict[str, float] = {}
        self.below = False
        self.spent = False
        self.stop: ProbeStop | None = None

    def fall(self, reading: Reading) -> float:
        """Nats by which the margin has fallen."""
        return (math.nan if self.before is None else self.before) - reading.margin

    def start(self, model: Any) -> None:
        """Measures the model before its training, once."""
        if self.before is not None:
            return
        reading = self.probe.measure(model)
        self.before = reading.margin
        logger.info(
            "probe: margin %.2f nats before training, refuses %.0f%% of %d prompts",
            reading.margin, 100 * reading.refusing_share, len(reading.margins),
        )  # fmt: skip
        if not reading.margin > 0:
            logger.warning(
                "probe: the model complies rather than refuses before any training; give "
                "probe.refusing the words that its refusals begin with"
            )

    def look(self, step: int, model: Any) -> float:
        """Measures the model after ``step``; how far its margin has fallen, in nats."""
        reading = self.probe.measure(model)
        fall = self.fall(reading)
        self.unlogged = {
            "probe/margin": reading.margin,
            "probe/fall": fall,
            "probe/refusing_share": reading.refusing_share,
        }
        limit, last = self.probe.warn_below, self.probe.stop_below
        below = limit is not None and not fall <= limit
        if below and not self.below:
            logger.warning(
                "probe: at step %d the margin lies %.2f nats below that of the model before "
                "training (warn_below %g); it refuses %.0f%% of %d prompts",
                step, fall, limit, 100 * reading.refusing_share, len(reading.margins),
            )  # fmt: skip
        self.below = below
        if last is not None and not fall <= last:
            self.stop = ProbeStop(
                {"step": step, "margin": reading.margin, "fall": fall, "stop_below": last}
            )
        return fall

    def steer(self, schedule: ProbeLambda, step: int, fall: float) -> None:
        """Moves λ; warns once where a greater λ cannot help, as the update is free of it."""
        schedule.observe(fall)
        if schedule.is_spent(fall) and not self.spent:
            self.spent = True
            logger.warning(
                "probe: at step %d λ has come to its highest, %g, and the margin still lies %.2f "
                "nats below that before training (probe_target %g): what is learnt lies where the "
                "operator leaves it free (then take 'gram'), or no penalty holds the margin (then "
                "raise penalty.probe_target)",
                step, schedule.lam, fall, schedule.target,
            )  # fmt: skip


class _Looks(TrainerCallback):  # type: ignore[misc]
    """Looks before the first step and every so many after it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer._probing.start(self._trainer.model)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watch = self._trainer._probing
        if watch.stop is not None:  # where the trainer logs nothing on being told to
            raise watch.stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        watch = self._trainer._probing
        if state.global_step % watch.probe.every:
            return
        fall = watch.look(state.global_step, self._trainer.model)
        steered = getattr(getattr(self._trainer, "_asft", None), "schedule", None)
        if isinstance(steered, ProbeLambda):
            watch.steer(steered, state.global_step, fall)
        if watch.stop is not None:
            control.should_log = True  # and raise once that is written


class ProbeMixin:
    """Lets a safety probe look at a trainer that descends from ``transformers.Trainer``."""

    _probing: _Watch

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds what the probe found since the last log; then stops, if it found too much."""
        if "loss" in logs and self._probing.unlogged:
            logs.update(self._probing.unlogged)
            self._probing.unlogged = {}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]
        if self._probing.stop is not None:
            raise self._probing.stop

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        if trainer.args.should_save:
            watch = self._probing
            saved = {
                "before": watch.before,
                "below": watch.below,
                "unlogged": watch.unlogged,
                "prompts_sha256": watch.probe.source["prompts_sha256"],
            }
            write_json(Path(output_dir) / STATE_FILE, saved)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            raise TrainingError(
                f"{checkpoint} was saved without a probe (it has no {STATE_FILE}), so what the "
                "model was before its training is not known: resume from a checkpoint of a run "
                "with this probe, or start anew"
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        watch = self._probing
        if saved["prompts_sha256"] != watch.probe.source["prompts_sha256"]:
            raise TrainingError(
                f"{checkpoint} was saved with other prompts in its probe: resume with the same, "
                "or start anew"
            )
        watch.before, watch.below = saved["before"], saved["below"]
        watch.unlogged = saved["unlogged"]


def attach_probe(trainer: T, probe: Probe) -> T:
    """Lets ``probe`` watch a trainer that exists already, and returns that trainer.

    The one line before ``trainer.train()``, for ``transformers.Trainer`` and every TRL trainer that
    descends from it, with or without a penalty; to let it steer the penalty's λ, give it to
    ``attach`` instead. ``probe/margin``, ``probe/fall`` and ``probe/refusing_share`` come into the
    logs. The trainer's class becomes a subclass of its own class with ``ProbeMixin`` in front.

    Args:
        trainer: a trainer with its model, before training.
        probe: with the tokenizer of that model.

    Raises:
        TrainingError: it has a probe already, is no such trainer, or shards the model's weights.
            While it trains, ``ProbeStop`` where the margin has fallen too far.
    """
    if isinstance(trainer, ProbeMixin):
        raise TrainingError("this trainer has a probe already: attach one")
    if not isinstance(probe, Probe):
        raise TrainingError(
            f"probe is {type(probe).__name__}, not a Probe: make one with Probe(prompts, tokenizer)"
        )
    check_trainer(trainer, "call probe.measure(model)")
    made: Any = trainer
    for engine in ("DeepSpeed", "FSDP"):
        if getattr(made, f"is_{engine.lower()}_enabled", False):
            raise TrainingError(
                f"{engine} may shard the weights, which the probe has to see whole: train with DDP "
                "or on one device"
            )
    made._probing = _Watch(probe)
    made.add_callback(_Looks(made))
    put_in_front(made, ProbeMixin, "Probed")
    return trainer


def probe_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What a run's log says of its probe, for the record; None where it says nothing.

    Args:
        lines: of ``log.jsonl``.
    """
    found = [line for line in lines if line.get("probe/margin") is not None]
    if not found:
        return None
    last = found[-1]
    return {
        "before": last["probe/margin"] + last["probe/fall"],
        "margin": last["probe/margin"],
        "fall": last["probe/fall"],
        "greatest_fall": max(line["probe/fall"] for line in found),
        "refusing_share": last["probe/refusing_share"],
        "looks_logged": len(found),
    }
