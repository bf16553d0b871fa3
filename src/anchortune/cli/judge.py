"""``anchortune judge``: judge old answers again, and measure a judge against labelled ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anchortune.cli.complete import devices, judges
from anchortune.cli.groups import Group
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson
from anchortune.untrusted import cell

if TYPE_CHECKING:
    from rich.console import Console

    from anchortune.evaluation.config import EvalMachine
    from anchortune.evaluation.judges.calibrate import Calibration
    from anchortune.evaluation.judges.rejudge import Judged
    from anchortune.evaluation.results import Agreement

app = typer.Typer(
    help="Judge old answers again; measure a judge against labelled answers.",
    cls=Group,
    no_args_is_help=True,
    rich_markup_mode=None,  # as in app.py
)

Device = Annotated[
    str, typer.Option(help="Where it computes: auto, cpu, cuda or mps.", autocompletion=devices)
]
_MOST_REASONS = 5
_NAMED = "A judge's name, or its section in YAML: '{name: file, file: verdicts.jsonl}'."


@app.command()
def run(
    outputs: Annotated[
        Path,
        typer.Argument(help="An evaluation's folder, its outputs.jsonl, or a file of answers."),
    ],
    judge: Annotated[
        list[str], typer.Option(help=f"{_NAMED} Again for another.", autocompletion=judges)
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write the verdicts here, as JSONL; what is there already is not asked again.",
        ),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="SET", help="Judge this prompt set; again for more.")
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Judge answers that are there already, without generating anew."""
    from anchortune.cli.eval import read_judge
    from anchortune.cli.stage import log_to_stderr
    from anchortune.errors import EvaluationError
    from anchortune.files import why_not_writable

    sections = [read_judge(text) for text in judge]
    machine = _machine(device)
    if output is not None and (reason := why_not_writable(output)) is not None:
        raise EvaluationError(f"-o {output} cannot be written: {reason}.")
    log_to_stderr()
    from anchortune.evaluation.judges.registry import make_judge
    from anchortune.evaluation.judges.rejudge import check_hashed, read_old, rejudge

    old = read_old(outputs, only or ())
    judges = [make_judge(section, machine, old.models) for section in sections]
    check_hashed(old, judges)
    identities = [one.identity() for one in judges]
    found, both = rejudge(old, judges, output)
    if as_json:
        import dataclasses

        facts = {
            "outputs": str(old.path),
            "judges": identities,
            "rates": [
                dataclasses.asdict(line)
                | {"figure": line.figure.model_dump() if line.figure is not None else None}
                for line in found
            ],
            "agreements": [one.model_dump(mode="json") for one in both],
            "task_answers_left_out": old.tasks,
        }
        say_json(facts)
        return
    _print_judged(found, both)
    if old.tasks:
        say(f"{old.tasks} answers to tasks are left out: they have no harm to judge.")
    if output is not None:
        say(str(output))


@app.command()
def calibrate(
    judge: Annotated[str, typer.Option(help=_NAMED, autocompletion=judges)],
    data: Annotated[
        list[str],
        typer.Option(help="A file of labelled answers, or a Hub dataset's id; again for more."),
    ],
    label_column: Annotated[
        str | None,
        typer.Option(help="The labels: harmful or safe, 0 or 1, yes or no; unset finds it."),
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="The requests; unset finds it.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="The answers; unset finds it.")] = None,
    source_column: Annotated[
        str | None, typer.Option(help="Figures are given by it; unset: source, or the file.")
    ] = None,
    false_positives: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="The rate at which recall is given.")
    ] = 0.05,
    max_rows: Annotated[
        int | None, typer.Option(min=1, help="A seeded sample of this many rows of each file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and of the bootstrap.")] = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Measure a judge against labelled answers: AUC, recall, agreement, by source."""
    from anchortune.cli.eval import read_judge
    from anchortune.cli.stage import log_to_stderr

    section = read_judge(judge)
    machine = _machine(device)
    log_to_stderr()
    from anchortune.evaluation.judges.calibrate import Columns, read_labelled
    from anchortune.evaluation.judges.calibrate import calibrate as measure
    from anchortune.evaluation.judges.registry import make_judge
    from anchortune.progress import Progress

    columns = Columns(prompt_column, answer_column, label_column, source_column)
    labelled = read_labelled(data, columns, max_rows, seed)
    made = make_judge(section, machine)
    with Progress(f"{made.name} judges", len(labelled.rows)) as tell:
        found = measure(made, labelled.rows, false_positives, seed=seed, on_done=tell)
    if as_json:
        import math

        facts = {
            "judge": made.identity(),
            "data": labelled.files,
            "unlabelled": labelled.unlabelled,
            "false_positive_rate": false_positives,
            "seed": seed,
            "sources": [one.facts() for one in found],
        }
        for one in facts["sources"]:  # type: ignore[attr-defined]
            if one["recall"] is not None and math.isinf(one["recall"]["threshold"]):
                one["recall"]["threshold"] = None
        say_json(facts)
        return
    _print_calibration(made.name, found, false_positives)
    if labelled.unlabelled:
        say(f"{labelled.unlabelled} rows have no label and are left out.")


def _machine(device: str) -> EvalMachine:
    from anchortune.config_io import validate
    from anchortune.evaluation.config import EvalMachine

    return validate({"device": device}, EvalMachine, "--device")


def _wide(width: int) -> Console:
    """Of a terminal's own width; elsewhere at least this wide, so that a table is not folded."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=max(console.width, width))


def _told(reasons: dict[str, int]) -> list[str]:
    """Why answers are unscored, the commonest first; people may give each a reason of its own."""
    known = sorted(reasons.items(), key=lambda pair: -pair[1])
    lines = [f"{count} unscored, {reason}" for reason, count in known[:_MOST_REASONS]]
    rest = known[_MOST_REASONS:]
    if rest:
        lines.append(f"{sum(n for _, n in rest)} unscored for {len(rest)} other reasons")
    return lines


def _print_judged(found: list[Judged], both: list[Agreement]) -> None:
    from rich.table import Table

    from anchortune.maths.stats import Rate
    from anchortune.report.table import percent
    from anchortune.report.words import agreement

    table = Table()
    for heading in ("model", "set", "judge", "measure"):
        table.add_column(heading, overflow="fold")
    for heading in ("rate (95 %)", "n", "unscored"):
        table.add_column(heading, justify="right", no_wrap=True)
    for line in found:
        figure, left = line.figure, line.answers
        cells = ["–", "0", str(left)]
        if figure is not None:
            rate = Rate(figure.value, figure.n, figure.low, figure.high)
            cells = [percent(rate), str(figure.n), str(figure.unscored)]
        measure = line.measure + (", indicative" if line.indicative else "")
        names = (line.model, line.set, line.judge, measure)
        table.add_row(*(cell(name) for name in names), *cells)
    console = _wide(120)
    console.print(table)
    for line in found:
        for told in _told(line.reasons):
            said = f"{line.judge}, {line.model}, {line.set}: {told}"
            console.print(cell(said), highlight=False)
    for one in both:
        console.print(cell(agreement(one)), highlight=False)


def _print_calibration(judge: str, found: list[Calibration], false_positives: float) -> None:
    from rich.table import Table

    from anchortune.report.table import percent
    from anchortune.report.words import percent as share

    table = Table(title=f"{cell(judge)} against labels", title_justify="left")
    table.add_column("source", overflow="fold")
    for heading in (
        "harmful",
        "safe",
        "unscored",
        "AUC",
        f"recall at {false_positives:.0%} false positives",
        "harmful found",
        "safe flagged",
        "agree",
        "κ",
    ):
        table.add_column(heading, justify="right")
    for one in found:
        area, recall, agreement = one.area, one.recall, one.agreement
        kappa = "–" if agreement is None or agreement.kappa is None else f"{agreement.kappa:.2f}"
        table.add_row(
            cell(one.source),
            str(one.harmful),
            str(one.safe),
            str(one.unscored),
            "–" if area is None else f"{area.value:.3f} ({area.low:.3f}–{area.high:.3f})",
            "–" if recall is None else f"{recall.value:.3f} ({recall.low:.3f}–{recall.high:.3f})",
            "–" if one.found is None else percent(one.found),
            "–" if one.alarms is None else percent(one.alarms),
            "–" if agreement is None else share(agreement.agree),
            kappa,
        )
    console = _wide(160)
    console.print(table)
    for one in found:
        for told in _told(one.reasons):
            console.print(cell(f"{one.source}: {told}"), highlight=False)
    console.print(
        "AUC and recall are over every answer with a score, the rest over those the judge scored; "
        "95 % intervals in brackets.",
        highlight=False,
    )
