"""``anchortune train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.complete import settings

ConfigFile = Annotated[Path, typer.Argument(help="The run's config, in YAML.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one key, e.g. training.epochs=1.",
        autocompletion=settings,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check everything, estimate the cost, train nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune with the AsFT penalty, or without it; an unfinished run is resumed."""
    from anchortune.cli.stage import run
    from anchortune.config import TrainConfig

    run(TrainConfig, config, overrides or [], dry_run=dry_run, as_json=as_json)
