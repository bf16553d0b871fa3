"""``anchortune gate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json


def gate(
    record: Annotated[
        Path, typer.Argument(help="An evaluation's record.json, or the folder that holds it.")
    ],
    max_harm_increase: Annotated[
        float | None, typer.Option(help="Most that the harmful score may rise over the reference.")
    ] = None,
    max_harm: Annotated[float | None, typer.Option(help="Highest harmful score.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Lowest accuracy, on every task.")
    ] = None,
    max_accuracy_drop: Annotated[
        float | None, typer.Option(help="Most that accuracy may fall below the reference.")
    ] = None,
    max_over_refusal: Annotated[
        float | None, typer.Option(help="Highest share of harmless requests refused.")
    ] = None,
    max_over_refusal_increase: Annotated[
        float | None, typer.Option(help="Most that this share may rise over the reference.")
    ] = None,
    min_coherence: Annotated[
        float | None, typer.Option(help="Lowest share of coherent answers.")
    ] = None,
    max_unscored: Annotated[
        float | None, typer.Option(help="Largest share that a judge may leave unscored.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which model; unset: the last that is not the reference.")
    ] = None,
    judge: Annotated[
        list[str] | None, typer.Option(help="Whose harmful score counts; unset: every judge's.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    github: Annotated[
        bool | None,
        typer.Option(
            "--github/--no-github", help="Print GitHub annotations; unset: where GitHub runs it."
        ),
    ] = None,
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html anew with the verdict on top.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Decide by the intervals whether a model may go out: exit 0 yes, 3 no, 4 too few to tell.

    Limits are fractions: 0.02 is two percentage points.
    """
    import os

    from anchortune.config_io import validate
    from anchortune.errors import EvaluationError
    from anchortune.files import why_not_writable, write_text
    from anchortune.report.ci import github_lines, junit_xml
    from anchortune.report.gate import Limits, decide
    from anchortune.report.load import read_evaluation

    given = {
        "max_harm_increase": max_harm_increase,
        "max_harm": max_harm,
        "min_accuracy": min_accuracy,
        "max_accuracy_drop": max_accuracy_drop,
        "max_over_refusal": max_over_refusal,
        "max_over_refusal_increase": max_over_refusal_increase,
        "min_coherence": min_coherence,
        "max_unscored": max_unscored,
    }
    limits = validate(given, Limits, "gate")
    if junit is not None and (reason := why_not_writable(junit)):
        raise EvaluationError(f"--junit {junit}: {reason}")
    _, results = read_evaluation(record)
    result = decide(results, limits, model=model, judges=judge or ())

    if as_json:
        say_json(result.to_json())
    else:
        say(f"{result.decision}: {_line(result.sentence())}")
        for check in result.checks:
            told = f"{check.limit}: {check.label}: {check.reason}"
            say(f"  {check.decision:<9}  {_line(told)}")
        for note in result.notes:
            say(f"  note: {_line(note)}")
    if github if github is not None else os.environ.get("GITHUB_ACTIONS") == "true":
        for line in github_lines(result):
            typer.echo(line, err=as_json)  # GitHub reads both; JSON stays alone on stdout
    if junit is not None:
        write_text(junit, junit_xml(result))
    if report:
        from anchortune.report.page import write_page

        folder = record if record.is_dir() else record.parent
        say(f"report: {write_page(folder, gate=result)}", err=True)
    raise typer.Exit(result.exit_code)


def _line(text: str) -> str:
    """On one line, whatever the models and sets of the record are called."""
    return " ".join(text.split())
