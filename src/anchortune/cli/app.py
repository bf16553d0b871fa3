"""The root of the command line: commands put together, and a user's mistakes told in one line."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from anchortune._version import __version__
from anchortune.cli.align import align
from anchortune.cli.anchor import app as anchor_app
from anchortune.cli.basin import basin
from anchortune.cli.card import card, push
from anchortune.cli.diagnose import diagnose
from anchortune.cli.doctor import doctor
from anchortune.cli.drift import drift, separate
from anchortune.cli.eval import evaluate
from anchortune.cli.gate import gate
from anchortune.cli.groups import STOPPED, Group
from anchortune.cli.init import init
from anchortune.cli.judge import app as judge_app
from anchortune.cli.mix import mix
from anchortune.cli.project import extrapolate, project
from anchortune.cli.run import run
from anchortune.cli.screen import screen
from anchortune.cli.status import status
from anchortune.cli.sweep import sweep
from anchortune.cli.table import plot, table
from anchortune.cli.train import train
from anchortune.deprecations import tell_with
from anchortune.errors import AnchortuneError, sentence
from anchortune.files import explained
from anchortune.progress import on_terminal
from anchortune.untrusted import inert, without_secrets

#: Other libraries draw bars into a file or a pipe too, unless these say that they must not.
_NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")

app = typer.Typer(
    name="anchortune",
    help="Fine-tune an aligned LLM without losing its safety.",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # Rich takes as long to load as all the rest of --help
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(init)
app.command()(doctor)
app.command()(train)
app.command()(align)
app.command()(screen)
app.command("eval")(evaluate)
app.command()(gate)
app.command()(diagnose)
app.command()(card)
app.command()(push)
app.command()(run)
app.command()(status)
app.command()(sweep)
app.command()(table)
app.command()(plot)
app.command()(mix)
app.command()(basin)
app.command()(drift)
app.command()(separate)
app.command()(extrapolate)
app.command()(project)
app.add_typer(anchor_app, name="anchor")
app.add_typer(judge_app, name="judge")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"anchortune {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fine-tune an aligned LLM without losing its safety."""


def main() -> None:
    """The entry point: exit code 0 is well, 1 a bug, 2 a mistake in what was given, 130 Ctrl-C."""
    if not on_terminal():
        os.environ.update({name: "1" for name in _NO_BARS if name not in os.environ})
    tell_with(_tell)
    try:
        app()
    except KeyboardInterrupt:  # before a command began; see Group.invoke
        sys.exit(STOPPED)
    except AnchortuneError as error:
        _tell(str(error) or type(error).__name__)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of stdout has gone; nobody made a mistake
        raise
    except OSError as error:
        _tell(explained(error))
        sys.exit(AnchortuneError.exit_code)


def _tell(problem: str) -> None:
    """One sentence on stderr, without secrets and without orders to a terminal or a pipeline."""
    typer.echo(inert(f"anchortune: {sentence(without_secrets(problem))}"), err=True)
