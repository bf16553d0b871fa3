"""``anchortune mix``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, Overrides


def mix(
    config: Annotated[Path, typer.Argument(help="The mix's settings, a YAML file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write, JSON lines.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Of the draw and the order; the same for all compared runs.")
    ] = 0,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Mix benign rows with a share of harmful ones, none of them from an evaluation set."""
    from anchortune.config_io import load_config
    from anchortune.config_mix import MixSection
    from anchortune.data.mix import make_mix

    facts = make_mix(load_config(config, MixSection, overrides or []), seed, output)
    if as_json:
        say_json(facts.summary())
        return
    say("\n".join([str(output), *facts.lines()]))
