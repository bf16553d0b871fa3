"""The seam: λ·∇R is added once an optimizer step, after backward and before clipping.

One implementation, ``AsftMixin.training_step``, stands behind three doors: ``AsftTrainer`` (TRL's
SFTTrainer with it), ``AsftMixin`` for any other trainer class, and ``attach`` for a trainer that
exists already. The logged loss and ``eval_loss`` stay the task's own, the penalty's weight depends
neither on accumulation steps nor on the number of processes, and clipping sees the sum.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from transformers import TrainerCallback

from anchortune.anchor.asked import check_inside
from anchortune.anchor.penalty import DEFAULT_LAM, DEFAULT_OPERATOR, Movement, Penalty, bind
from anchortune.errors import TrainingError
from anchortune.files import write_json
from anchortune.maths.operators import LayerWeights, Operator, Side
from anchortune.training.mixins import (
    check_trainer,
    grad_scale,
    put_in_front,
    refuse_backends,
    refuse_forgetful,
)
from anchortune.training.probing import attach_probe
from anchortune.training.pull import Pull, is_logged
from anchortune.training.schedule import Schedule, Steer, make_schedule
from anchortune.training.watch import attach_health

if TYPE_CHECKING:
    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.binding import Coverage
    from anchortune.training.probe import Probe

logger = logging.getLogger(__name__)
T = TypeVar("T")
STATE_FILE = "asft_state.json"
_BEFORE = {"lam_inside": 0.0, "layer_weights": "none"}
"""What a checkpoint that does not say was trained with: these came later."""


class _State:
    """What the seam keeps for one trainer: the bound penalty, λ, and whether it has fired."""

    def __init__(
        self,
        trainer: Any,
        anchor: Anchor,
        options: dict[str, Any],
        lam: float | Literal["auto"],
        lam_inside: float,
        off_budget: float | None,
        steer: Steer | None,
        probe_target: float | None,
    ) -> None:
        self.anchor = anchor
        self.options = options
        self.lam: float | Literal["auto"] = lam
        check_inside(options["operator"], options["side"], lam_inside)
        self.lam_inside = lam_inside
        self.steering = (off_budget, steer, probe_target)
        self.start(trainer.model)

    def start(self, model: Any) -> None:
        """Binds ``model`` as it is now, with λ at its start and nothing fired yet."""
        self.model = model
        self.penalty: Penalty = bind(self.anchor, model, **self.options)
        budget, steer, target = self.steering
        self.schedule: Schedule = make_schedule(self.lam, budget, self.penalty, steer, target)
        self.fired = 0
        self.lam_used = self.schedule.lam
        self.pull: Pull | None = None

    def fingerprint(self) -> dict[str, Any]:
        """What a checkpoint must agree with to go on: the penalty, and where U is measured from."""
        start = self.penalty.start_fingerprint()
        return {**self.options, "lam_inside": self.lam_inside, "start": start}


class _Guard(TrainerCallback):  # type: ignore[misc]
    """Stops the training when a step has passed in which the penalty was not added."""

    def __init__(self, state: _State) -> None:
        self._state = state

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self._state.fired:
            names = ", ".join(t.label for t in self._state.penalty.coverage.targets[:4])
            raise TrainingError(
                f"an optimizer step has passed and the penalty was never added ({names} …): this "
                "trainer does not call training_step with synchronised gradients; use "
                "anchor.bind(model) in the loop itself"
            )


class AsftMixin:
    """Adds the AsFT penalty to any trainer class that descends from ``transformers.Trainer``.

    ``class MyAsftTrainer(AsftMixin, MyTrainer): ...`` takes the keywords below besides the
    parent's own. Defaults that are the library's and not the paper's are explained in
    ``docs/method.md``.

    Args:
        *args: the parent's.
        anchor: the anchor of the model that is trained.
        operator: what the update is measured against.
        lam: λ, or ``auto`` to hold the penalised share of the update's energy at ``off_budget``,
            or with a ``probe`` and no ``off_budget`` the probe's fall at ``probe_target``.
        side: ``off`` (AsFT) or ``along`` (AsFT-Alt, with a harmful anchor).
        scaled: penalise ``s·B·A``; False is the authors' ``B·A``.
        rank: singular triplets used at most; None for all that the anchor holds.
        off_budget: see ``lam``; a share in (0, 1).
        probe: watches the model's safety while it trains; see ``attach_probe``.
        probe_target: see ``lam``; nats above 0.
        lam_inside: the weight of what side ``off`` leaves free, a smaller λ of its own; 0 is the
            paper's. For operators that are projections.
        layer_weights: weigh each module's penalty, both parts of it, by its ``‖dW‖`` (``norm``)
            or ``‖dW‖²`` (``energy``) over the mean of all modules'; ``none`` is the paper's.
        **kwargs: the parent's.

    Raises:
        AnchorError: the anchor does not fit the model.
        TrainingError: the trainer's engine or optimizer cannot honour the penalty.
    """

    _asft: _State

    def __init__(
        self,
        *args: Any,
        anchor: Anchor,
        operator: Operator = DEFAULT_OPERATOR,
        lam: float | Literal["auto"] = DEFAULT_LAM,
        side: Side = "off",
        scaled: bool = True,
        rank: int | None = None,
        off_budget: float | None = None,
        probe: Probe | None = None,
        probe_target: float | None = None,
        lam_inside: float = 0.0,
        layer_weights: LayerWeights = "none",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        options = _options(operator, side, scaled, rank, layer_weights)
        _install(self, anchor, options, lam, lam_inside, off_budget, probe, probe_target)
        if probe is not None:
            attach_probe(self, probe)

    def call_model_init(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's new model, bound at once: before a checkpoint is loaded into it."""
        model = super().call_model_init(*args, **kwargs)  # type: ignore[misc]
        if hasattr(self, "_asft"):  # not yet where the parent's __init__ asks
            self._asft.start(model)
        return model

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's step, then ``λ·∇R`` on the gradients where an optimizer step follows."""
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        trainer: Any = self
        if trainer.accelerator.sync_gradients:
            state = self._asft
            if trainer.model is not state.model:
                raise TrainingError(
                    "the trainer's model is not the one that the penalty was bound to: give the "
                    "model, or a model_init, when the trainer is made and attach after that"
                )
            state.lam_used = state.schedule.lam
            moment, pull = None, None
            if state.schedule.needs_movement:
                moment = state.penalty.moment()
                state.schedule.update(state.penalty.movement(moment))
            if state.lam_used or state.lam_inside:
                scale = grad_scale(trainer)
                if is_logged(trainer):
                    moment = moment or state.penalty.moment()
                    terms = state.penalty.terms(state.lam_used, state.lam_inside)
                    pull = Pull(moment, terms, scale)
                state.penalty.add_gradient_(
                    state.lam_used, lam_inside=state.lam_inside, grad_scale=scale, moment=moment
                )
                if pull is not None:
                    pull.finish()
            state.pull = pull
            state.fired += 1
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the penalty, λ and the update's lie to the anchor to the training logs."""
        if "loss" in logs and self._asft.fired:
            logs.update(self._asft_logs())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _asft_logs(self) -> dict[str, float]:
        state = self._asft
        movement: Movement = state.penalty.movement()
        logs = {
            "asft/penalty": movement.penalised * movement.energy,
            "asft/lam": state.lam_used,
            "asft/update_energy": movement.energy,
            "asft/penalised_share": movement.penalised,
            "asft/inside_share": movement.inside,
            "asft/forwards_share": movement.forwards,
            "asft/backwards_share": movement.backwards,
        }
        if state.penalty.coverage.loose:
            logs["asft/unpenalised_energy"] = movement.unpenalised
        if state.pull is not None:
            logs |= state.pull.logs()
        return logs

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
        trainer: Any = self
        state = self._asft
        fingerprint = state.fingerprint()  # of a sharded model by all processes together
        if trainer.args.should_save:
            saved = {"schedule": state.schedule.state_dict(), "penalty": fingerprint}
            write_json(Path(output_dir) / STATE_FILE, saved)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            refuse_forgetful(self, Path(checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        path = Path(checkpoint) / STATE_FILE
        if not path.is_file():
            raise TrainingError(
                f"{checkpoint} was saved without a penalty (it has no {STATE_FILE}): resume from "
                "a checkpoint of an AsFT run, or start anew"
            )
        saved = json.loads(path.read_text(encoding="utf-8"))
        _check_resumed(saved["penalty"], self._asft.fingerprint())
        self._asft.schedule.load_state_dict(saved["schedule"])


def _check_resumed(saved: dict[str, Any], now: dict[str, Any]) -> None:
    for key, value in now.items():
        if key == "start":
            if saved.get(key) != value:
                raise TrainingError(
                    "the update is measured from other weights than when the checkpoint was saved: "
                    "make the trainer with the model that the training began from, then resume"
                )
        elif (old := saved.get(key, _BEFORE.get(key))) != value:
            raise TrainingError(
                f"the checkpoint was trained with {key}={old!r}, not {value!r}: resume with the "
                "same penalty, or start anew"
            )


def _refuse_empty(trainer: Any, coverage: Coverage) -> None:
    """Refuses to measure an update from weights that this process was never given."""
    plugin = getattr(getattr(trainer.accelerator, "state", None), "fsdp_plugin", None)
    measured = [t.label for t in coverage.targets if t.start_b is not None]
    measured += [loose.name for loose in coverage.loose]
    if measured and getattr(plugin, "cpu_ram_efficient_loading", False):
        raise TrainingError(
            f"the update of {measured[0]} is measured from its start, which with "
            "cpu_ram_efficient_loading only the first process has: set it to false"
        )


def _options(
    operator: Operator, side: Side, scaled: bool, rank: int | None, layer_weights: LayerWeights
) -> dict[str, Any]:
    """The keywords of ``bind``."""
    return {
        "operator": operator,
        "side": side,
        "scaled": scaled,
        "rank": rank,
        "layer_weights": layer_weights,
    }


def _install(
    trainer: Any,
    anchor: Anchor,
    options: dict[str, Any],
    lam: float | Literal["auto"],
    lam_inside: float,
    off_budget: float | None,
    probe: Probe | None,
    probe_target: float | None,
) -> None:
    refuse_backends(trainer, sharded=True)
    steered = lam == "auto" and probe is not None and off_budget is None
    state = _State(
        trainer, anchor, options, lam, lam_inside, off_budget,
        "probe" if steered else None, probe_target,
    )  # fmt: skip
    _refuse_empty(trainer, state.penalty.coverage)
    attach_health(trainer)
    trainer._asft = state
    trainer.add_callback(_Guard(state))
    coverage = state.penalty.coverage
    logger.info("AsFT penalty on %d modules", len(coverage.targets))
    for note in coverage.notes:
        logger.warning("AsFT: %s", note)
    if coverage.unpenalised:
        logger.warning(
            "AsFT: %d trained parameters move without a penalty: %s",
            len(coverage.unpenalised),
            ", ".join(coverage.unpenalised[:8]) + (" …" if len(coverage.unpenalised) > 8 else ""),
        )


def attach(
    trainer: T,
    anchor: Anchor,
    *,
    operator: Operator = DEFAULT_OPERATOR,
    lam: float | Literal["auto"] = DEFAULT_LAM,
    side: Side = "off",
    scaled: bool = True,
    rank: int | None = None,
    off_budget: float | None = None,
    probe: Probe | None = None,
    probe_target: float | None = None,
    lam_inside: float = 0.0,
    layer_weights: LayerWeights = "none",
) -> T:
    """Adds the AsFT penalty to a trainer that exists already, and returns that trainer.

    The one line before ``trainer.train()``, for ``transformers.Trainer`` and every TRL trainer
    that descends from it (SFT, DPO, GRPO, …). The trainer's class becomes a subclass of its own
    class with ``AsftMixin`` in front; nothing else about it changes.

    Args:
        trainer: a trainer with its PEFT or full model, before training.
        anchor: the anchor of that model.
        operator: see ``AsftMixin``.
        lam: see ``AsftMixin``.
        side: see ``AsftMixin``.
        scaled: see ``AsftMixin``.
        rank: see ``AsftMixin``.
        off_budget: see ``AsftMixin``.
        probe: see ``AsftMixin``.
        probe_target: see ``AsftMixin``.
        lam_inside: see ``AsftMixin``.
        layer_weights: see ``AsftMixin``.

    Raises:
        AnchorError: the anchor does not fit the model.
        TrainingError: the trainer is attached already, is no such trainer, or its engine or
            optimizer cannot honour the penalty.
    """
    if isinstance(trainer, AsftMixin):
        raise TrainingError("this trainer has a penalty already: attach once")
    check_trainer(trainer, "use penalty = anchor.bind(model) and add lam * penalty() to the loss")
    options = _options(operator, side, scaled, rank, layer_weights)
    _install(trainer, anchor, options, lam, lam_inside, off_budget, probe, probe_target)
    put_in_front(trainer, AsftMixin, "Asft")
    return trainer if probe is None else attach_probe(trainer, probe)
