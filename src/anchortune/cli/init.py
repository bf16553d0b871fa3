"""``anchortune init``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.complete import judges
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson


def init(
    model: Annotated[
        str,
        typer.Option(
            help="The aligned model: a folder, .gguf file, Hub id, or LoRA adapter on its base."
        ),
    ],
    data: Annotated[
        str,
        typer.Option(
            help="What to train on: a .json, .jsonl, .csv or .parquet file, or a Hub dataset."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(help="What the model was aligned from; unset: as its adapter or card says."),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(metavar="FILE", help="A made anchor, instead of a base.")
    ] = None,
    harm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Harmful prompts to measure with; unset: jailbreakbench of the Hub.",
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Harmless prompts: does it refuse too much?"),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE|NAME", help="Rows with right answers, not trained on, or a known task."
        ),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="A judge's name, or its section in YAML; unset: those that are here.",
            autocompletion=judges,
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=NAME",
            help="What a column of the data is, e.g. prompt=ask or completion=reply.",
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train/--job", help="For anchortune train, or for a whole job.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", "-o", help="The config to write.")] = Path(
        "job.yaml"
    ),
    force: Annotated[
        bool, typer.Option("--force", help="Write over a file that is there.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Look at a model and a data file, and write a commented config that runs on them."""
    from anchortune.cli.eval import read_judge
    from anchortune.cli.stage import log_to_stderr
    from anchortune.errors import ConfigError

    columns = {}
    for item in column or []:
        field, equals, name = item.partition("=")
        if not equals or not field.strip() or not name:
            raise ConfigError(f"--column {item}: expected FIELD=NAME, e.g. prompt=question.")
        columns[field.strip()] = name
    asked = [read_judge(text) for text in judge or []]
    log_to_stderr()

    from anchortune.setup.draft import summary_of
    from anchortune.setup.init import Wish
    from anchortune.setup.init import init as write

    wish = Wish(
        model=model,
        data=data,
        out=out,
        base=base,
        anchor=anchor,
        harm=harm or [],
        benign=benign or [],
        test=test or [],
        judges=asked,
        columns=columns,
        train=train,
        force=force,
    )
    written = write(wish)
    if as_json:
        say_json({"path": str(out), "notes": written.notes, **summary_of(written.seen)})
        return
    say("\n".join(written.lines(out)))
