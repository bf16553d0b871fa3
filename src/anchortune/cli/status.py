"""``anchortune status``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json
from anchortune.untrusted import inert


def status(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN", help="The output folder of a job, or a sweep's work or results."
        ),
    ],
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it anew every two seconds until it ends.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tell where a job is: its step, how far, how long it takes yet, whether it still lives.

    Of a sweep's folder: how many runs are done, failed and missing, and which are being done.
    """
    import time

    from anchortune.errors import JobError
    from anchortune.jobs.status import read_any

    if watch and as_json:
        raise JobError("--watch is for people and --json for programs; give one of them.")
    report = read_any(run)
    if as_json:
        say_json(report.to_json())
        return
    if not watch:
        say("\n".join(report.lines()))
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            live.update(Text(inert("\n".join(report.lines()))), refresh=True)
            if report.state != "running":
                return
            time.sleep(2)
            report = read_any(run)
