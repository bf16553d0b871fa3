"""``anchortune screen``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anchortune.cli.complete import devices, judges
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, HowRead, data_section

if TYPE_CHECKING:
    from anchortune.data.screened import ScreenedSource


def screen(
    data: Annotated[
        str, typer.Argument(help="A .json, .jsonl, .csv or .parquet file, or a Hub dataset's id.")
    ],
    judge: Annotated[
        str,
        typer.Option(
            help="The judge's name, or its section in YAML: '{name: file, file: verdicts.jsonl}'.",
            autocompletion=judges,
        ),
    ] = "builtin",
    drop: Annotated[
        Path | None,
        typer.Option(metavar="CLEANED", help="Write the data without the harmful rows here."),
    ] = None,
    how_read: HowRead = None,
    device: Annotated[
        str,
        typer.Option(
            help="Where the judge computes: auto, cpu, cuda or mps.", autocompletion=devices
        ),
    ] = "auto",
    as_json: AsJson = False,
) -> None:
    """Tell which rows of training data look harmful, by number and without their text."""
    from anchortune.cli.eval import read_judge
    from anchortune.cli.stage import log_to_stderr
    from anchortune.config_io import validate
    from anchortune.evaluation.config import EvalMachine

    section = data_section(data, how_read)
    machine = validate({"device": device}, EvalMachine, "--device")
    asked = read_judge(judge)
    log_to_stderr()

    from anchortune.data.clean import check_clean, write_clean
    from anchortune.evaluation.judges.registry import make_judge
    from anchortune.evaluation.screen import screen_source

    if drop is not None:
        check_clean(section, drop)
    made = make_judge(asked, machine)
    found = screen_source(section, made)
    dropped = None
    if drop is not None:
        dropped = write_clean(section, {row.place for row in found.harmful}, drop)
    if as_json:
        facts = found.summary() | {"judge": made.identity()}
        if drop is not None:
            facts |= {"cleaned": str(drop), "dropped": dropped}
        say_json(facts)
        return
    say("\n".join(lines(found)))
    if made.indicative:
        say(f"indicative only: the judge {made.name} misses the bar that was set for it")
    if drop is not None:
        say(f"{drop}: written without {dropped} rows")


def lines(found: ScreenedSource) -> list[str]:
    """For people: the counts, then the rows, those of one category together."""
    told = [found.line()]
    groups: dict[str, list[str]] = {}
    for row in found.harmful:
        score = "" if row.score is None else f" ({row.score:.2f})"
        for name in row.categories or [""]:
            groups.setdefault(name, []).append(row.place + score)
    for name in sorted(groups):
        told.append(f"{name or 'harmful'}: {', '.join(groups[name])}")
    return told
