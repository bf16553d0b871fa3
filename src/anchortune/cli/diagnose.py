"""``anchortune diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json


def diagnose(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="A training's folder, a job's, or the record of a sweep's run."
        ),
    ],
    evaluation: Annotated[
        Path | None,
        typer.Option("--eval", help="The folder of an evaluation that asked a training's result."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Which of its models that is; unset: told by folder or hash.")
    ] = None,
    arm: Annotated[
        str | None, typer.Option(help="Which of a job's trainings; unset: its method's first.")
    ] = None,
    anchor: Annotated[
        Path | None, typer.Option(help="Hold the update against this anchor; unset: the run's own.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="OTHER", help="A run whose result this should repeat.")
    ] = None,
    gradients: Annotated[
        bool, typer.Option("--gradients", help="Load the start model; compute the task's gradient.")
    ] = False,
    refusals: Annotated[
        str | None, typer.Option(metavar="DATA", help="With --gradients: compare with theirs too.")
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(min=2, help="With --gradients: rows of each source, at most; unset: 32."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Say why a run lost safety or accuracy, or does not repeat: exit 0 no fault found, 3 some."""
    from anchortune.cli.stage import log_to_stderr
    from anchortune.errors import JobError
    from anchortune.jobs.diagnose import DEFAULT_ROWS, Asked, gather
    from anchortune.report.diagnosis.rules import diagnose as judge

    for value, option in ((refusals, "--refusals"), (rows, "--rows")):
        if value is not None and not gradients:
            raise JobError(f"{option} is of --gradients, which is not given; give that too")
    if model is not None and evaluation is None:
        raise JobError("--model is of --eval, which is not given; give that too")
    log_to_stderr()
    asked = Asked(
        evaluation=evaluation,
        model=model,
        arm=arm,
        anchor=anchor,
        against=against,
        gradients=gradients,
        refusals=refusals,
        rows=DEFAULT_ROWS if rows is None else rows,
    )
    found = judge(gather(run, asked))
    if as_json:
        say_json(found.to_json())
    else:
        say("\n".join(found.lines()))
    raise typer.Exit(found.exit_code)
