"""λ over training: fixed, or steered towards a budget a person understands."""

from __future__ import annotations

import math
from typing import Literal, Protocol

from anchortune.anchor.penalty import Movement, Penalty
from anchortune.errors import TrainingError

DEFAULT_OFF_BUDGET = 0.05
"""``lam="auto"``: the share of the update's energy ``Σ‖U‖²_F`` that may be what is penalised."""
DEFAULT_PROBE_TARGET = 1.0
"""Steered by the probe: nats by which its margin may lie below the aligned model's."""
Steer = Literal["budget", "probe"]


class Schedule(Protocol):
    """What λ is now, and how it moves after each optimizer step."""

    needs_movement: bool

    @property
    def lam(self) -> float:
        """λ for the step to come."""

    def update(self, movement: Movement) -> None:
        """Told how far the model had moved when the step's gradients were made."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Takes up what ``state_dict`` gave."""


class FixedLambda:
    """One λ for the whole training."""

    needs_movement = False

    def __init__(self, lam: float) -> None:
        self._lam = lam

    @property
    def lam(self) -> float:
        """λ for the step to come."""
        return self._lam

    def update(self, movement: Movement) -> None:
        """Does nothing: λ is fixed."""

    def state_dict(self) -> dict[str, float]:
        """λ, so that a checkpoint of another λ is noticed."""
        return {"lam": self._lam}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Refuses to go on from a checkpoint that was trained with another λ.

        Raises:
            TrainingError: the checkpoint's λ differs.
        """
        if state["lam"] != self._lam:
            raise TrainingError(
                f"the checkpoint was trained with lam={state['lam']:g}, not {self._lam:g}: "
                "resume with the same lam, or start anew"
            )


class _Steered:
    """A λ that is moved on a log scale and kept within its bounds."""

    def __init__(self, start: float, gain: float, lowest: float, highest: float) -> None:
        self._gain = gain
        self._lowest = lowest
        self._highest = highest
        self._lam = start

    @property
    def lam(self) -> float:
        """λ for the step to come."""
        return self._lam

    def _move(self, error: float) -> None:
        """``λ · exp(gain · clip(error, −1, 1))``; an error that is no number is the greatest."""
        clipped = 1.0 if math.isnan(error) else min(1.0, max(-1.0, error))
        factor = math.exp(self._gain * clipped)
        self._lam = min(self._highest, max(self._lowest, self._lam * factor))


class BudgetLambda(_Steered):
    """λ raised while more than ``off_budget`` of the update's energy is penalised, else lowered.

    After each step ``λ ← λ · exp(gain · clip(ln(share / budget), −1, 1))``, within
    [``lowest``, ``highest``]: a slow integral controller on a log scale, so that neither the
    scale of the loss nor that of the update matters. The first steps, when the update is still
    nothing, leave λ where it starts.
    """

    needs_movement = True

    def __init__(
        self,
        off_budget: float = DEFAULT_OFF_BUDGET,
        *,
        start: float = 1.0,
        gain: float = 0.2,
        lowest: float = 1e-3,
        highest: float = 1e3,
    ) -> None:
        if not 0 < off_budget < 1:
            raise TrainingError(
                f"off_budget is a share of the update's energy, between 0 and 1, not {off_budget:g}"
                "; give such a one"
            )
        super().__init__(start, gain, lowest, highest)
        self.off_budget = off_budget

    def update(self, movement: Movement) -> None:
        """Moves λ one step towards the budget."""
        if movement.energy <= 0 or not math.isfinite(movement.penalised):
            return
        error = math.log(max(movement.penalised, 1e-12) / self.off_budget)
        self._move(error)

    def state_dict(self) -> dict[str, float]:
        """λ as it stands."""
        return {"lam": self._lam}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from the λ of a checkpoint."""
        self._lam = float(state["lam"])


class ProbeLambda(_Steered):
    """λ raised while the safety probe has fallen by more than ``target``, else lowered.

    After each look ``λ ← λ · exp(gain · clip((fall − target) / target, −1, 1))``, within
    [``lowest``, ``highest``], so that λ at most doubles or halves with the default gain; a fall
    that is no number counts as the greatest. Between two looks λ stays.
    """

    needs_movement = False

    def __init__(
        self,
        target: float = DEFAULT_PROBE_TARGET,
        *,
        start: float = 1.0,
        gain: float = math.log(2.0),
        lowest: float = 1e-3,
        highest: float = 1e3,
    ) -> None:
        if not (math.isfinite(target) and target > 0):
            raise TrainingError(
                f"probe_target is a number of nats above 0, not {target!r}; give such a one"
            )
        super().__init__(start, gain, lowest, highest)
        self.target = target

    def update(self, movement: Movement) -> None:
        """Does nothing: λ moves when the probe has looked."""

    def observe(self, fall: float) -> None:
        """Moves λ by what the probe found.

        Args:
            fall: the aligned model's margin minus the model's now, in nats.
        """
        self._move((fall - self.target) / self.target)

    def is_spent(self, fall: float) -> bool:
        """Whether λ is as high as it goes and the margin has still fallen by more than asked."""
        return self._lam >= self._highest and not fall <= self.target

    def state_dict(self) -> dict[str, float]:
        """λ as it stands, and what it is steered to."""
        return {"lam": self._lam, "probe_target": self.target}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from the λ of a checkpoint.

        Raises:
            TrainingError: λ was fixed there, or steered to something else.
        """
        if state.get("probe_target") != self.target:
            raise TrainingError(
                f"the checkpoint was trained with probe_target={state.get('probe_target')}, not "
                f"{self.target:g}: resume with the same, or start anew"
            )
        self._lam = float(state["lam"])


def make_schedule(
    lam: float | Literal["auto"],
    off_budget: float | None,
    penalty: Penalty,
    steer: Steer | None = None,
    probe_target: float | None = None,
) -> Schedule:
    """The schedule that ``lam`` and what it is steered by ask for.

    Raises:
        TrainingError: λ is negative or not a number; what steers it is given with a fixed λ; or
            ``auto`` is asked of a penalty that λ cannot steer to a budget.
    """
    if steer not in (None, "budget", "probe"):
        raise TrainingError(f"steer is 'budget' or 'probe', not {steer!r}; choose one of them")
    if steer is not None and lam != "auto":
        raise TrainingError("steer goes with lam='auto': leave out one of the two")
    if probe_target is not None and steer != "probe":
        raise TrainingError("probe_target goes with lam='auto' and a probe: leave it out")
    if steer == "probe":
        if off_budget is not None:
            raise TrainingError("off_budget goes with steer='budget': leave out one of the two")
        return ProbeLambda(DEFAULT_PROBE_TARGET if probe_target is None else probe_target)
    if lam == "auto":
        if penalty.side == "along" or penalty.operator == "none":
            raise TrainingError(
                f"lam='auto' keeps a share of the update on the anchor, which operator "
                f"{penalty.operator!r} with side {penalty.side!r} cannot do: steer by a probe, or "
                "give lam as a number"
            )
        budget = DEFAULT_OFF_BUDGET if off_budget is None else off_budget
        floor = penalty.aligned_share()
        if floor > budget:
            raise TrainingError(
                f"operator {penalty.operator!r} punishes {floor:.0%} of even a move along dW "
                f"itself, so no lam can meet off_budget={budget:g}: use operator 'subspace', or "
                "raise off_budget"
            )
        return BudgetLambda(budget)
    if isinstance(lam, bool) or not isinstance(lam, (int, float)):
        raise TrainingError(f"lam is a number or 'auto', not {lam!r}; give one of them")
    if not math.isfinite(lam) or lam < 0:
        raise TrainingError(f"lam is a number of at least 0, not {lam!r}; give such a one")
    if off_budget is not None:
        raise TrainingError("off_budget goes with lam='auto': leave out one of the two")
    return FixedLambda(float(lam))
