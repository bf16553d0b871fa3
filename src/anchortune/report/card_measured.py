"""What a model card says of safety and skill: figures with intervals, and what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from anchortune.evaluation.results import Measure, Results
from anchortune.report.card_source import Made
from anchortune.report.view import ordered
from anchortune.report.words import (
    KINDS,
    MISSING,
    markdown_text,
    measure_name,
    percent,
    points,
    points_span,
    span,
)

_WANTED = ("harm", "over_refusal", "accuracy", "coherence")


def decided(made: Made) -> str:
    """The gate's word, in a sentence that stands at the head of the card."""
    if made.results is None and made.gate is None:
        return (
            "**Nothing was measured of it**: not whether it kept its safety, nor whether it learnt "
            "its task. Evaluate it before you use it."
        )
    if made.gate is None:
        return "No gate held it against limits; the figures are below."
    sentence = markdown_text(str(made.gate["sentence"]))
    if made.stopped:
        return f"**The gate did not let it through.** {sentence} Do not deploy it."
    return f"The gate let it through: {sentence}"


def measured(made: Made) -> list[str]:
    """The sections of the card about the evaluation: figures, gate, judges, what is not known."""
    parts = ["## Safety and skill"]
    if made.results is None or made.model is None:
        told = [] if made.gate is None else _gate(made)
        missing = "Nothing was measured." if made.gate is None else "No evaluation lies beside it."
        return ["\n\n".join([*parts, missing, *told])]
    results = made.results
    parts += [_intro(results, made.model), _table(results, made.model), *_gate(made)]
    parts += [
        "### How far to trust this",
        "\n".join(f"* {line}" for line in _limits(made, results)),
    ]
    return ["\n\n".join(parts)]


def _intro(results: Results, model: str) -> str:
    part = {
        "report": "prompts that chose no setting",
        "selection": "the prompts that settings were chosen on",
        "all": "whole sets",
    }[results.part]
    told = f"Rates on {part}, with 95 % intervals and the number of scored answers"
    if model != results.reference:
        told += f"; the difference is to `{markdown_text(results.reference)}`, on the same prompts"
    return f"{told}. This adapter's column is **{markdown_text(model)}**."


def _table(results: Results, model: str) -> str:
    others = [name for name in results.models if name != model]
    heads = ["measured", f"**{markdown_text(model)}**"]
    differs = model != results.reference
    heads += [f"difference to {markdown_text(results.reference)}"] if differs else []
    heads += [markdown_text(name) for name in others]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    for _, measures in ordered(results.measures):
        for measure in measures:
            cells = [
                markdown_text(f"{measure_name(measure)}: {measure.set}"),
                _rate(measure, model),
            ]
            cells += [_difference(measure, model)] if differs else []
            cells += [_rate(measure, name) for name in others]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(measure: Measure, model: str) -> str:
    figure = measure.figures.get(model)
    if figure is None:
        return MISSING
    unscored = f" + {figure.unscored} unscored" if figure.unscored else ""
    return f"{percent(figure.value)} ({span(figure.low, figure.high)}), n {figure.n}{unscored}"


def _difference(measure: Measure, model: str) -> str:
    gap = measure.differences.get(model)
    if gap is None:
        return MISSING
    return f"{points(gap.value)} points ({points_span(gap.low, gap.high)})"


def _gate(made: Made) -> Iterator[str]:
    gate = made.gate
    if gate is None:
        yield "No gate was asked: the run set no limits."
        return
    yield f"### The gate: {markdown_text(str(gate['decision']))}"
    lines = []
    for model in gate["models"]:
        for check in model["checks"]:
            told = f"{check['limit']}: {check['label']}: {check['reason']}"
            lines.append(f"* {markdown_text(check['decision'])}: {markdown_text(told)}")
    yield "\n".join(lines)


def _limits(made: Made, results: Results) -> Iterator[str]:
    for judge in results.judges:
        yield markdown_text(_judge(judge))
    for warning in results.warnings:
        yield markdown_text(warning) + "."
    yield markdown_text(_missing(made, results))


def _judge(judge: dict[str, Any]) -> str:
    name = str(judge.get("name"))
    told = f"judge {name}: {judge.get('measure', 'a verdict')}"
    if name == "refusal":
        return f"{told}, by phrases; a refusal phrase is no judgement of harm."
    figures = judge.get("figures")
    if isinstance(figures, dict):
        sets = [
            f"AUC {one['auc']} on {name}"
            for name, one in figures.items()
            if isinstance(one, dict) and "auc" in one
        ]
        told += f", {', '.join(sets)}" if sets else ""
    return f"{told}; indicative only." if judge.get("indicative") else f"{told}."


def _missing(made: Made, results: Results) -> str:
    """What nobody looked at, as far as that can be told."""
    kinds = {m.kind for m in results.measures if made.model in m.figures}
    lacking = [KINDS[kind] for kind in _WANTED if kind not in kinds]
    sets = (made.evaluation.inputs.get("sets") or {}) if made.evaluation is not None else {}
    if not any(facts.get("wrapper") for facts in sets.values()):
        lacking.append("jailbreaks (no prompt was wrapped in one)")
    lacking += ["conversations of several turns", "what it does after more fine-tuning"]
    return f"Not measured: {', '.join(lacking)}, nor anything on other prompts than these."
