"""``anchortune train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchortune.cli.complete import settings

if TYPE_CHECKING:
    from anchortune.sections import DataSection

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
HowRead = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="How the data is read, as in a training config, e.g. columns.output=target.",
    ),
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


def data_section(path: str, how: list[str] | None) -> DataSection:
    """A source of rows that the command line names, read as ``how``, its ``--set``, says.

    Raises:
        ConfigError: a key that there is not, or a value that it cannot have.
    """
    from anchortune.config_io import assign, validate
    from anchortune.sections import DataSection

    tree: dict[str, Any] = {}
    for item in how or []:
        assign(tree, item, DataSection)
    return validate(tree | {"path": path}, DataSection, "--set")
