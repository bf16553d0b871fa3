"""``anchortune doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson


def doctor(
    model: Annotated[
        str | None,
        typer.Option(help="A model to look at besides: can it be read, and does it fit?"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder that runs are written to.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Look at the environment: versions, device, memory, disk, the Hub; each line with its mend.

    Every line is ok, warn (slow, or something cannot be used) or bad (to be mended before
    anything runs). Exit code 3 where one is bad, else 0. Of keys and tokens it is told whether
    they are set, nothing else.
    """
    from anchortune.setup.doctor import examine

    found = examine(model, output)
    if as_json:
        say_json(found.summary())
    else:
        say("\n".join(found.lines()))
    if found.exit_code:
        raise typer.Exit(found.exit_code)
