"""Whether each answer is language at all, kept beside what the judges said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anchortune.errors import EvaluationError
from anchortune.evaluation.ask import free_memory
from anchortune.evaluation.coherence import Coherence, coherence, likelihoods, unlikely_below
from anchortune.evaluation.engine import make_engine
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judging import Answers, Row, in_chunks
from anchortune.evaluation.measure import figure
from anchortune.evaluation.outputs import answer_of
from anchortune.evaluation.plan import COHERENCE, Asked, EvalPlan
from anchortune.evaluation.verdicts import VerdictLog

#: Likelihoods while they are being measured; they end up as the scores of coherence.
LIKELIHOODS_FILE = "likelihoods.jsonl"
_LIKELIHOOD = "likelihood"


def look_at_answers(plan: EvalPlan, answers: Answers, verdicts: VerdictLog) -> None:
    """Says of every answer to a prompt set whether it is coherent, and why not.

    How likely an answer is under the reference is measured where that model runs here; it is
    loaded once more, for the answers of the others were not there before. Elsewhere the text
    alone tells.

    Raises:
        CheckpointError: the reference cannot be loaded again.
    """
    left = [
        (asked, model)
        for asked in plan.asked
        if asked.task is None
        and not all(
            verdicts.find(row, COHERENCE) for model in plan.candidates
            for row in answers.to(asked, model)
        )
        for model in plan.candidates
    ]  # fmt: skip
    path = plan.folder.path / LIKELIHOODS_FILE
    if not left:
        path.unlink(missing_ok=True)
        return
    with VerdictLog(path) as known:
        _measure(plan, [row for asked, model in left for row in answers.to(asked, model)], known)
        for asked, model in left:
            _say(plan, asked, model, answers, known, verdicts)
    path.unlink()


def _measure(plan: EvalPlan, rows: Sequence[Row], known: VerdictLog) -> None:
    """Fills ``known`` with the mean log-likelihood of each answer under the reference."""
    reference = plan.candidates[plan.reference]
    rows = [row for row in rows if known.find(row, _LIKELIHOOD) is None]
    if not rows or not reference.runs_here:
        return
    engine = make_engine(reference.section, plan.config.generation, plan.config.machine)
    rows = sorted(rows, key=lambda row: -len(row["answer"]))
    for chunk, tell in in_chunks(rows, f"likelihood under {plan.reference}"):
        told = [answer_of(row) for row in chunk]
        exchanges = [Exchange(answer.item.prompt, answer.text) for answer in told]
        values = likelihoods(engine.model, engine.tokenizer, exchanges, on_done=tell)  # type: ignore[attr-defined]
        for row, value in zip(chunk, values, strict=True):
            known.append(row, _LIKELIHOOD, "measured", score=value)
    del engine
    free_memory()


def _say(
    plan: EvalPlan,
    asked: Asked,
    model: str,
    answers: Answers,
    known: VerdictLog,
    verdicts: VerdictLog,
) -> None:
    rows = answers.to(asked, model)
    values = _scores(rows, known)
    own = _scores(answers.to(asked, plan.reference), known)
    try:
        threshold = unlikely_below(own)
    except EvaluationError:  # the reference said nothing, or does not run here
        threshold = None
    found = coherence([str(row["answer"]) for row in rows], values, threshold)
    for row, reason, value in zip(rows, found.reasons, values, strict=True):
        outcome = "coherent" if reason is None else "broken"
        verdicts.append(row, COHERENCE, outcome, reason=reason or "", score=value)


def _scores(rows: Sequence[Row], known: VerdictLog) -> list[float | None]:
    found = [known.find(row, _LIKELIHOOD) for row in rows]
    return [None if row is None else row["score"] for row in found]


def coherence_of(rows: Sequence[Row], verdicts: VerdictLog) -> Coherence:
    """One model's answers to one set, as ``look_at_answers`` found them.

    Raises:
        EvaluationError: it has not looked at them.
    """
    found = list(_found(rows, verdicts))
    rate = figure(float(row["outcome"] == "coherent") for row in found)
    if rate is None:
        raise EvaluationError(
            "no answers whose coherence is known: the set is empty; name one that holds prompts."
        )
    scores = [row["score"] for row in found if row["score"] is not None]
    mean = sum(scores) / len(scores) if scores else None
    return Coherence(rate, [row["reason"] or None for row in found], mean)


def _found(rows: Sequence[Row], verdicts: VerdictLog) -> Iterator[Row]:
    for row in rows:
        said = verdicts.find(row, COHERENCE)
        if said is None:
            raise EvaluationError(
                f"nobody has looked whether answer {row['id']} is coherent; measure it first."
            )
        yield said
