"""``anchortune table`` and ``anchortune plot``: what a sweep found, from its records alone."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson

Results = Annotated[
    list[Path],
    typer.Argument(metavar="RESULTS...", help="Records of runs, or folders that hold them."),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="AXIS=VALUE[,VALUE]",
        help="Only these runs (again for another axis; `seed` too); rows keep the order given.",
    ),
]
Judge = Annotated[
    str | None, typer.Option(help="Whose verdicts count, where several judges were asked.")
]


class Format(str, Enum):
    """What a table is written in."""

    markdown = "markdown"
    latex = "latex"
    csv = "csv"
    json = "json"


class Interval(str, Enum):
    """How an interval is written."""

    span = "span"
    half = "half"


class Kind(str, Enum):
    """What is drawn."""

    pareto = "pareto"
    curve = "curve"
    epl = "epl"
    map = "map"


def table(
    results: Results,
    rows: Annotated[
        str, typer.Option(metavar="AXIS[,AXIS]", help="The axes that name a row.")
    ] = "defence",
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS", help="The axis of the columns; unset: the one other that varies."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            metavar="MEASURE[:SET],...",
            help="harm, refusal, accuracy, over_refusal, coherence, win_rate; "
            "unset: harm,accuracy.",
        ),
    ] = None,
    judge: Judge = None,
    where: Where = None,
    reference: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Add each cell's paired difference to this row."),
    ] = None,
    average: Annotated[
        bool, typer.Option("--average", help="Add the mean over the columns.")
    ] = False,
    non_inferior: Annotated[
        str | None,
        typer.Option(metavar="ROW", help="Tell whether this row is at most a margin worse than"),
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="ROW,...", help="these, one for each measure,")
    ] = None,
    margins: Annotated[
        str | None, typer.Option(metavar="FRACTION,...", help="by these; 0.05 is five points.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="What to write.")] = Format.markdown,
    interval: Annotated[
        Interval, typer.Option(help="`4.0 (2.2–7.2)` or `4.0 ± 2.5`.")
    ] = Interval.span,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A file; unset: standard output.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="As --format json; with -o, say as JSON what is written.")
    ] = False,
) -> None:
    """Make a table of a sweep's results: means over seeds with intervals, bold only beyond chance.

    A row's name is its labels joined by `/`: `asft`, or `asft/gram` with `--rows defence,operator`.
    """
    from anchortune.files import write_text
    from anchortune.report.sweep_format import render
    from anchortune.report.sweep_load import SweepError, parse_where, read_runs
    from anchortune.report.sweep_table import TableOptions, build

    _check_output(output)
    if as_json and output is None:
        if form not in {Format.markdown, Format.json}:
            raise SweepError(f"--json is not --format {form.value}: leave one of them out.")
        form = Format.json
    if form is Format.csv and non_inferior is not None:
        raise SweepError("A statement of non-inferiority has no place in CSV; use --format json.")
    asked = {
        "--rows": None if rows == "defence" else rows,
        "--columns": columns,
        "--measure": measure,
        "--judge": judge,
        "--where": where,
        "--reference": reference,
        "--average": average,
        "--non-inferior": non_inferior,
        "--against": against,
        "--margins": margins,
        "--format": None if form is Format.markdown else form.value,
        "--interval": None if interval is Interval.span else interval.value,
    }
    options = TableOptions(
        rows=_words(rows),
        column=columns,
        measures=_words(measure),
        judge=judge,
        where=parse_where(where or ()),
        reference=reference,
        average=average,
        non_inferior=non_inferior,
        against=_words(against),
        margins=_fractions(margins),
        command=_command("table", asked),
    )
    text = render(build(read_runs(results), options), form.value, interval.value)
    if output is None:
        say(text, nl=False)
    else:
        write_text(output, text)
        if as_json:
            say_json({"table": str(output), "format": form.value})
        else:
            say(f"table: {output}", err=True)


def plot(
    results: Results,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The picture: FILE.png, .svg or .pdf.")
    ],
    kind: Annotated[
        Kind | None,
        typer.Option(
            help="`pareto` (unset): harmful score against accuracy; `curve`: both over an axis. "
            "Of a basin.json: `curve` (unset), `epl` or `map`."
        ),
    ] = None,
    x: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS", help="The axis of a curve; of `pareto` the axis that a path runs along."
        ),
    ] = None,
    series: Annotated[
        str, typer.Option(metavar="AXIS[,AXIS]", help="The axes that name a line or a point.")
    ] = "defence",
    measure: Annotated[
        str | None,
        typer.Option(metavar="MEASURE[:SET],...", help="Unset: harm,accuracy."),
    ] = None,
    judge: Judge = None,
    where: Where = None,
    as_json: AsJson = False,
) -> None:
    """Draw a sweep's results (Pareto, or curves over λ, p, n, the learning rate) or a basin's."""
    from anchortune.report.basin_page import holds_basin, read_basin
    from anchortune.report.sweep_load import SweepError, parse_where, read_runs
    from anchortune.report.sweep_plots import PlotOptions, draw

    _check_output(output)
    if len(results) == 1 and holds_basin(results[0]):
        from anchortune.report.basin_plots import draw_as

        basin = read_basin(results[0])
        _drawn([*draw_as(basin, (kind or Kind.curve).value, output)], as_json)
        return
    if kind in {Kind.epl, Kind.map}:
        raise SweepError(f"--kind {kind.value} is drawn of one basin.json; name it as RESULTS.")
    options = PlotOptions(
        kind="curve" if kind is Kind.curve else "pareto",
        x=x,
        series=_words(series),
        measures=_words(measure),
        judge=judge,
        where=parse_where(where or ()),
    )
    draw(read_runs(results), options, output)
    _drawn([output], as_json)


def _drawn(pictures: list[Path], as_json: bool) -> None:
    if as_json:
        say_json({"pictures": [str(path) for path in pictures]})
        return
    for path in pictures:
        say(f"plot: {path}", err=True)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _fractions(text: str | None) -> tuple[float, ...]:
    from anchortune.report.sweep_load import SweepError

    try:
        return tuple(float(word) for word in _words(text))
    except ValueError:
        raise SweepError(f"--margins {text}: write fractions, such as 0.05,0.03.") from None


def _check_output(output: Path | None) -> None:
    """Refuses a place that cannot be written, before any work."""
    from anchortune.files import why_not_writable
    from anchortune.report.sweep_load import SweepError

    if output is not None and (reason := why_not_writable(output)):
        raise SweepError(f"--output {output}: {reason}.")


def _command(name: str, asked: dict[str, object]) -> str:
    """The command again, with RESULTS for the paths, which are nobody's business."""
    import shlex

    words = ["anchortune", name, "RESULTS"]
    for flag, value in asked.items():
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, str):
            words += [flag, shlex.quote(value)]
        elif isinstance(value, list):
            for one in value:
                words += [flag, shlex.quote(one)]
    return " ".join(words)
