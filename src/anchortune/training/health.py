"""Whether a training goes well, read off its log: what must stop it, and what has to be known.

Rules over logged lines and counts, without torch; ``anchortune.training.watch`` puts them into a
trainer. What each threshold rests on is in ``docs/training.md``, "When training goes wrong".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median, stdev
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchortune.data.screened import Screened

#: Optimizer steps in which something must have moved; with a GradScaler, which skips some at first.
MOVES_WITHIN, MOVES_WITHIN_SCALED = 10, 30
#: Logged gradients that are no number in a row, after which a GradScaler will not find a scale.
OVERFLOWS = 10
#: Times the task's gradient that the penalty's may be; lines over which the median is taken.
SWAMPED, SWAMPED_LINES = 30.0, 10
#: Nats above guessing, and above the start, at which a model has been lost; lines of it in a row.
LOST_NATS, LOST_LINES = 2.0, 5
#: The mean of as many lines, over that of the first; and the least rise, in nats.
RISEN, RISEN_NATS, RISEN_LINES = 2.0, 0.5, 15
#: The least fall of the loss from the first pass over the data to a later one; lines of a pass.
FALLEN_FRAC, PASS_LINES = 0.02, 5
#: Of one long pass: lines before it is judged, and standard errors by which it must have fallen.
LONG_LINES, FALLEN_ERRORS = 600, 1.0
#: Lines at the start, and standard errors by which they lie above what was learnt in few steps.
FIRST_LINES, FIRST_ERRORS = 5, 2.0
#: A loss below which there was nothing to learn.
LEARNT = 0.05
#: The share of harmful rows, and of rows that were cut, above which it is said.
MOSTLY_HARMFUL, MANY_CUT = 0.5, 0.2

_LOWER = "lower training.learning_rate, or set machine.dtype to float32."


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a training.

    Attributes:
        kind: a short name: ``not-finite``, ``no-labels``, ``unmoved``, ``lost``, ``rising``,
            ``flat``, ``swamped``, ``harmful-data``, ``cut-rows``.
        step: the optimizer step at which it was noticed; 0: before the training.
        told: a sentence for people, with the mend.
        stops: whether going on would be of no use.
    """

    kind: str
    step: int
    told: str
    stops: bool = False

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Seen:
    """What a trainer knows at a logged step beside the line itself.

    Attributes:
        bad_loss: a loss since the last look was no number.
        bad_weights: the name of a trained weight that holds what is no number.
        bad_start: the same of a weight that is not trained, so that the start model is broken.
        blank: a step since the last look had no token to learn.
        labelled: batches have labels, so that a step without a gradient is a mistake.
        steps: taken so far without anything having moved; None once something has.
        rated_steps: those of them whose learning rate was above 0.
    """

    bad_loss: bool = False
    bad_weights: str | None = None
    bad_start: str | None = None
    blank: bool = False
    labelled: bool = True
    steps: int | None = None
    rated_steps: int = 0


def _number(line: Mapping[str, Any], key: str) -> float:
    """The value of a key that is there; one that is no number is None in ``log.jsonl``."""
    value = line.get(key)
    return math.nan if value is None else float(value)


class Health:
    """Takes the lines of a training's log in their order, and says what is wrong, each once.

    Args:
        chance: the cross-entropy of guessing every token alike, ``ln`` of the vocabulary's size;
            None where the loss is another.
        comparable: losses of different steps can be compared: neither the order of the rows nor
            what is optimised changes on the way.
        scaled: a GradScaler looks after gradients that overflow.

    Attributes:
        findings: so far.
        last_step: of the last line taken.
    """

    def __init__(
        self, *, chance: float | None = None, comparable: bool = True, scaled: bool = False
    ) -> None:
        self.findings: list[Finding] = []
        self.last_step = 0
        self._chance = chance
        self._scaled = scaled
        self._losses: list[float] = []
        self._ratios: list[float] = []
        self._passes: list[list[float]] = []
        self._overflows = 0
        self._judges_losses = comparable

    def take(self, line: Mapping[str, Any], seen: Seen | None = None) -> list[Finding]:
        """What is wrong at this line and was not before.

        Args:
            line: as logged, with its ``step``; without ``loss`` it says nothing.
            seen: what the trainer knows besides; None for a line read from a file.
        """
        if "loss" not in line:
            return []
        step = self.last_step = int(line.get("step", self.last_step + 1))
        seen = seen or Seen()
        found = self._stopping(line, step, seen)
        if found is None:
            self._remember(line)
            candidates = [
                _unmoved(step, seen, self._scaled),
                Finding("no-labels", step, _NO_LABELS.format(step)) if seen.blank else None,
                *(self._of_losses(step, seen) if self._judges_losses else ()),
                self._swamped(line, step),
            ]
        else:
            candidates = [found]
        return self._new(candidates)

    def end(self, step: int, seen: Seen) -> list[Finding]:
        """What is known at the end of the training: of the last pass, and that nothing has moved.

        Args:
            step: the last.
            seen: what the trainer knows.
        """
        told = (
            f"after {seen.steps} steps every trained weight is what it was at the start: the "
            "result does nothing; raise training.learning_rate, or train for longer."
        )
        return self._new(
            [
                self._flat_passes(self._passes, step) if self._judges_losses else None,
                Finding("unmoved", step, told) if seen.steps else None,
            ]
        )

    def _new(self, candidates: Sequence[Finding | None]) -> list[Finding]:
        # What was a caution may stop later on.
        known = {(finding.kind, finding.stops) for finding in self.findings}
        new = [one for one in candidates if one is not None and (one.kind, one.stops) not in known]
        self.findings.extend(new)
        return new

    def _remember(self, line: Mapping[str, Any]) -> None:
        if "reward" in line:  # GRPO: rewards are the aim, and the loss says little
            self._judges_losses = False
        self._losses.append(_number(line, "loss"))
        epoch = line.get("epoch")
        if epoch is not None:
            number = max(0, math.ceil(float(epoch) - 1e-9) - 1)
            while len(self._passes) <= number:
                self._passes.append([])
            self._passes[number].append(self._losses[-1])
        ours, tasks = line.get("asft/penalty_grad_norm"), line.get("asft/task_grad_norm")
        # Some steps have nothing to learn (GRPO) or overflow (a GradScaler's), whatever λ is.
        if ours is not None and tasks and math.isfinite(tasks):
            self._ratios.append(float(ours) / float(tasks))

    def _stopping(self, line: Mapping[str, Any], step: int, seen: Seen) -> Finding | None:
        """What makes every further step useless: numbers that are none."""
        loss = _number(line, "loss")
        if seen.bad_loss or not math.isfinite(loss):
            if seen.blank:
                return Finding("no-labels", step, _NO_LABELS.format(step), True)
            what = f"the loss is {'inf' if math.isinf(loss) else 'nan'} at step {step}"
            if seen.bad_start is not None:
                told = (
                    f"{what}, for the model's {seen.bad_start}, which is not trained, holds "
                    "numbers that are not finite: the checkpoint is broken; get it again."
                )
            else:
                told = f"{what}; {_LOWER}"
            return Finding("not-finite", step, told, True)
        for key in ("asft/penalty", "asft/penalty_grad_norm"):
            if key in line and not math.isfinite(_number(line, key)):
                lam = line.get("asft/lam")
                told = (
                    f"the penalty or its gradient is no finite number at step {step}, with a loss "
                    f"that is one: lower lam{'' if lam is None else f', which is {lam:g}'}."
                )
                return Finding("not-finite", step, told, True)
        if seen.bad_weights is not None:
            told = f"{seen.bad_weights} holds numbers that are not finite after step {step}"
            return Finding("not-finite", step, f"{told}; {_LOWER}", True)
        return self._bad_gradient(line, step)

    def _bad_gradient(self, line: Mapping[str, Any], step: int) -> Finding | None:
        # In log.jsonl one that is no number is null; what a trainer could not tell is not there.
        bad = "grad_norm" in line and not math.isfinite(_number(line, "grad_norm"))
        self._overflows = self._overflows + 1 if bad else 0
        if not bad or (self._scaled and self._overflows < OVERFLOWS):
            return None
        told = f"the gradients are no finite numbers at step {step}, with a loss that is one"
        if self._scaled:
            told += f", and were none {OVERFLOWS} times in a row, whatever they were scaled by"
        return Finding("not-finite", step, f"{told}; {_LOWER}", True)

    def _of_losses(self, step: int, seen: Seen) -> list[Finding | None]:
        lost = self._lost(step) if seen.labelled else None
        return [lost, self._rising(step), self._flat(step)]

    def _lost(self, step: int) -> Finding | None:
        if self._chance is None or len(self._losses) <= LOST_LINES:
            return None
        start, now = self._losses[0], fmean(self._losses[-LOST_LINES:])
        # A loss that starts higher is no mean of cross-entropies, or of a model that knows nothing.
        if start > self._chance + LOST_NATS or now <= max(start, self._chance) + LOST_NATS:
            return None
        told = (
            f"the loss is {now:.1f} by step {step}, from {start:.1f} at first: guessing every "
            f"token alike would give {self._chance:.1f}, so the model is lost; lower "
            "training.learning_rate, or set training.max_grad_norm."
        )
        return Finding("lost", step, told, True)

    def _rising(self, step: int) -> Finding | None:
        if len(self._losses) < 2 * RISEN_LINES:
            return None
        first, now = fmean(self._losses[:RISEN_LINES]), fmean(self._losses[-RISEN_LINES:])
        if now <= RISEN * first or now - first < RISEN_NATS:
            return None
        told = (
            f"the loss rises: {now:.2f} by step {step}, from {first:.2f} over the first "
            f"{RISEN_LINES} logged steps; lower training.learning_rate, or add warm-up."
        )
        return Finding("rising", step, told)

    def _flat(self, step: int) -> Finding | None:
        """A loss that has not fallen, where a pass has just ended, or in one long pass."""
        if len(self._passes) > 1 and len(self._passes[0]) >= PASS_LINES:
            ended = len(self._passes[-1]) == 1
            return self._flat_passes(self._passes[:-1], step) if ended else None
        count = len(self._losses)
        if count < LONG_LINES or count % (LONG_LINES // 3):
            return None
        early, late = self._losses[: count // 3], self._losses[-(count // 3) :]
        first, now = fmean(early), fmean(late)
        error = math.hypot(stdev(early), stdev(late)) / math.sqrt(count // 3)
        if first <= LEARNT or first - now >= min(FALLEN_ERRORS * error, FALLEN_FRAC * first):
            return None
        if self._fell_at_once(late):
            return None
        return Finding("flat", step, _flat_told(f"{step} steps", first, now, step))

    def _flat_passes(self, passes: Sequence[Sequence[float]], step: int) -> Finding | None:
        """Passes are compared as wholes, for they hold the same rows; one cut short is left out."""
        whole = [one for one in passes if len(one) >= max(PASS_LINES, 0.9 * len(passes[0]))]
        if len(whole) < 2 or len(whole[0]) < PASS_LINES:
            return None
        first, now = fmean(whole[0]), fmean(whole[-1])
        if first <= LEARNT or now <= (1 - FALLEN_FRAC) * first or self._fell_at_once(whole[-1]):
            return None
        return Finding("flat", step, _flat_told(f"{len(whole)} passes", first, now, step))

    def _fell_at_once(self, late: Sequence[float]) -> bool:
        """Whether the first steps lie surely above the late ones: a form is learnt in a few."""
        error = stdev(late) / math.sqrt(FIRST_LINES)
        return fmean(self._losses[:FIRST_LINES]) - fmean(late) > FIRST_ERRORS * error

    def _swamped(self, line: Mapping[str, Any], step: int) -> Finding | None:
        if len(self._ratios) < SWAMPED_LINES:
            return None
        ratio = median(self._ratios[-SWAMPED_LINES:])
        if ratio <= SWAMPED:
            return None
        lam = line.get("asft/lam")
        told = (
            f"the penalty swamps the task: its gradient is {ratio:.0f} times the task's by step "
            f"{step}{'' if lam is None else f', with a lam of {lam:g}'}, and the steps go to it; "
            "lower lam, or loosen what steers it (off_budget, probe_target)."
        )
        return Finding("swamped", step, told)


_NO_LABELS = (
    "a step up to step {} had no token to learn: every label is left out; look at the labels, at "
    "what the length limit cuts (training.max_length_tokens) and at the chat template."
)


def _flat_told(over: str, first: float, now: float, step: int) -> str:
    how = "has risen" if now > first else f"has fallen by {(first - now) / first:.1%}"
    return (
        f"the loss {how} in {over} ({first:.3f} to {now:.3f}, by step {step}): the task is not "
        "being learnt; raise training.learning_rate, lower lam, and see whether the data "
        "(screened, or cut) leaves anything to learn."
    )


def _unmoved(step: int, seen: Seen, scaled: bool) -> Finding | None:
    """Nothing has moved in as many steps as it takes to tell."""
    within = MOVES_WITHIN_SCALED if scaled else MOVES_WITHIN
    if seen.steps is None or seen.steps < within:
        return None
    if not seen.rated_steps:
        why = "the learning rate was 0 in each of them; raise it, or let the schedule begin above 0"
    elif seen.rated_steps < within:
        return None
    elif seen.blank:
        why = "no token had a label; look at the labels and at what the length limit cuts"
    else:
        why = (
            "no gradient reaches them; look whether the trained layers are in use, whether rows "
            "have labels, and whether the learning rate is more than nothing"
        )
    told = f"every trained weight is what it was, {seen.steps} steps after the start: {why}."
    return Finding("unmoved", step, told, seen.labelled)


def review(lines: Sequence[Mapping[str, Any]], **settings: Any) -> list[Finding]:
    """What the lines of a ``log.jsonl`` say, as if they were logged now.

    Args:
        lines: in their order.
        **settings: of ``Health``.
    """
    health = Health(**settings)
    for line in lines:
        health.take(line)
    health.end(health.last_step, Seen())
    return health.findings


def of_data(summary: Mapping[str, Any], screened: Screened | None) -> list[Finding]:
    """What is wrong with a run's data before any step.

    Args:
        summary: of ``TokenisedData`` or another kind of data.
        screened: what a judge found in it; None where nobody looked.
    """
    found = []
    if screened is not None and screened.harmful_frac > MOSTLY_HARMFUL:
        judged = sum(source.judged for source in screened.sources)
        told = f"{screened.harmful} of {judged} rows look harmful"
        if screened.action == "drop":
            told += (
                f" and were left out: {summary['sequences']} sequences remain to learn from; see "
                "whether the judge errs, or find other data."
            )
        else:
            told += (
                ": most of what this data teaches is what the penalty holds back, so that little "
                "is left to learn; set screen.action to drop, or clean the data. A higher lam does "
                "not mend it."
            )
        found.append(Finding("harmful-data", 0, told))
    cut, whole = summary.get("truncated", 0), summary.get("sequences", 0)
    if cut > MANY_CUT * whole:
        told = (
            f"{cut} of {whole} sequences are cut at {summary['max_length_tokens']} tokens, so the "
            "ends of their answers are not learnt; raise training.max_length_tokens."
        )
        found.append(Finding("cut-rows", 0, told))
    return found
