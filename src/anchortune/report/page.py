"""``report.html``: the whole evaluation on one page that asks nothing of the network."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from anchortune.evaluation.results import Results
from anchortune.files import write_text
from anchortune.record import Record
from anchortune.report import view
from anchortune.report.curves import HEIGHT, WIDTH, charts
from anchortune.report.examples import sample
from anchortune.report.gate import GateResult
from anchortune.report.load import read_evaluation
from anchortune.report.summary import summary
from anchortune.report.words import percent, shown

REPORT_FILE = "report.html"
_PARTS = {
    "report": "the report part of every set: none of these prompts chose a setting",
    "selection": "the selection part of every set: these prompts may have chosen a setting",
    "all": "whole sets: some of these prompts may have chosen a setting",
}
_SETTINGS = ("generation", "selection_frac", "bootstrap", "seed", "keep", "harm", "tasks")


def write_page(
    folder: str | Path,
    *,
    title: str | None = None,
    gate: GateResult | Sequence[GateResult] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Writes ``report.html`` beside an evaluation's ``record.json``, atomically.

    The same record, rows and gate give the same page, byte for byte.

    Args:
        folder: of the evaluation; its ``outputs.jsonl`` and ``verdicts.jsonl`` give the examples.
        title: of the page; unset: the models' names.
        gate: what the gate says, of one model or of several, shown first.
        notes: sentences to stand below the summary, such as what was found in the data.

    Returns:
        The page's path.

    Raises:
        DataError: no record.
        EvaluationError: the record of something else.
    """
    record, results = read_evaluation(folder)
    place = Path(folder)
    gates = [gate] if isinstance(gate, GateResult) else list(gate or ())
    context = _context(record, results, place, title, gates)
    path = place / REPORT_FILE
    write_text(path, _render(context | {"notes": [shown(note) for note in notes]}))
    return path


def environment() -> Environment:
    """Where the templates of pages are, and how they are filled: everything is escaped."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        # Names and texts of strangers; what a macro made is markup already.
        finalize=lambda value: shown(_whole(value)) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["tight"] = lambda text: text.replace(" %", "\u00a0%")
    return found


def _whole(text: str) -> str:
    """Without lone surrogates, which fit no file."""
    return text.encode("utf-8", errors="replace").decode()


def _render(context: dict[str, Any]) -> str:
    return _whole(environment().get_template("page.html.j2").render(**context))


def _context(
    record: Record, results: Results, folder: Path, title: str | None, gates: list[GateResult]
) -> dict[str, Any]:
    keep = str(record.config.get("keep", "text"))
    groups = view.groups(results)
    models = list(results.models)
    return {
        "title": shown(title or _title(results)),
        "record": record,
        "results": results,
        "colours": view.colours(results),
        "part": _PARTS[results.part],
        "gates": gates,
        "summary": summary(results),
        "groups": groups,
        "gaps": any(row.gap for group in groups for block in group.blocks for row in block.rows),
        "categories": view.categories(results),
        "arms": view.arms(results),
        "agreements": results.agreements,
        "judges": [_judge(judge) for judge in results.judges],
        "charts": charts(results.curves),
        "chart_size": (WIDTH, HEIGHT),
        "anchors": [(name, view.facts(value)) for name, value in results.anchors.items()],
        "examples": sample(folder, models, _sets(results), record.seed) if keep == "text" else [],
        "keep": keep,
        "models": [(name, view.facts(results.models[name])) for name in models],
        "settings": view.facts({k: record.config[k] for k in _SETTINGS if k in record.config}),
        "facts": view.facts(
            {"numbers": record.numbers, "platform": record.platform, "timings": record.timings}
        ),
        "versions": sorted(record.versions.items()),
        "command": _command(record),
        "percent": percent,
    }


def _title(results: Results) -> str:
    others = [name for name in results.models if name != results.reference]
    if not others:
        return results.reference
    if len(others) > 3:
        return f"{len(others)} models against {results.reference}"
    told = ", ".join(others[:-1]) + (" and " if len(others) > 1 else "") + others[-1]
    return f"{told} against {results.reference}"


def _judge(identity: dict[str, Any]) -> dict[str, Any]:
    """A judge's name, its figures by source, and everything else about it."""
    rest = {k: v for k, v in identity.items() if k not in {"name", "calibration", "figures"}}
    calibration = identity.get("calibration") or identity.get("figures")
    table = view.grid(calibration)
    return {
        "name": str(identity.get("name", "judge")),
        "calibration": table,
        "figures": [] if table else view.facts(calibration),
        "facts": view.facts(rest),
    }


def _sets(results: Results) -> dict[str, bool]:
    """The sets in the order of the page, each with whether its prompts are malicious."""
    return {
        name: any(measure.kind in {"harm", "refusal"} for measure in measures)
        for name, measures in view.ordered(results.measures)
    }


def _command(record: Record) -> str:
    """What makes this evaluation again, in another folder."""
    output = str(record.config.get("output", "."))
    return f"anchortune eval {shlex.quote(output + '/config.yaml')} --set output=NEW_FOLDER"
