"""``anchortune eval``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchortune.cli.complete import judges
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, Overrides
from anchortune.untrusted import cell

if TYPE_CHECKING:
    from anchortune.evaluation.config import JudgeSection
    from anchortune.evaluation.plan import EvalPlan


def evaluate(
    config: Annotated[Path | None, typer.Argument(help="The evaluation's config, in YAML.")] = None,
    overrides: Overrides = None,
    outputs: Annotated[
        Path | None,
        typer.Option(help="Score the answers in this file instead of a config's models."),
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(
            help="With --outputs, again for each: a judge's name, or its section in YAML: "
            "'{name: file, file: verdicts.jsonl}'.",
            autocompletion=judges,
        ),
    ] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="With --outputs: the folder of the result.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate the cost, ask nobody.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Put models side by side: harmful score, refusals, coherence, accuracy, with intervals."""
    from anchortune.cli.stage import log_to_stderr

    log_to_stderr()
    plan = _plan(config, overrides or [], outputs, judge or [], output, timed=dry_run)
    if dry_run:
        if as_json:
            say_json(plan.summary())
        else:
            say("\n".join(plan.lines()))
        return

    from anchortune.evaluation.evaluate import run_eval
    from anchortune.report.page import write_page

    record = run_eval(plan)
    page = write_page(plan.folder.path)
    if as_json:
        say_json(record.model_dump(mode="json"))
        return
    show_results(plan.folder.path)
    say(str(page))


def _plan(
    config: Path | None,
    overrides: list[str],
    outputs: Path | None,
    judges: list[str],
    output: str | None,
    *,
    timed: bool,
) -> EvalPlan:
    """The plan of a config, or of a file of answers.

    Raises:
        ConfigError: neither or both are given, or an option that does nothing.
    """
    from anchortune.errors import ConfigError

    if (config is None) == (outputs is None):
        raise ConfigError("give a config, or a file of answers with --outputs; one of them.")
    if outputs is None and config is not None:
        for flag, given in (("--judge", judges), ("--output", output)):
            if given:
                raise ConfigError(
                    f"{flag} goes with --outputs; leave it out, for a config names its own."
                )
        from anchortune.config_io import load_config
        from anchortune.evaluation.config import EvalConfig
        from anchortune.evaluation.plan import plan_eval

        return plan_eval(load_config(config, EvalConfig, overrides), timed=timed)
    if not judges or output is None:
        raise ConfigError("--outputs needs --judge (a name; again for another) and --output.")
    from anchortune.config_io import assign
    from anchortune.evaluation.plan import plan_outputs

    settings: dict[str, Any] = {}
    for item in overrides:
        assign(settings, item)
    return plan_outputs(str(outputs), [read_judge(text) for text in judges], output, settings)


def read_judge(text: str) -> JudgeSection:
    """``--judge``: a name, or a judge's section of a config as YAML.

    Raises:
        ConfigError: not YAML, no such judge, or an unknown key.
    """
    from anchortune.config_io import parse_yaml, validate
    from anchortune.evaluation.config import JudgeSection

    value = parse_yaml(text, f"--judge {text}")
    section = value if isinstance(value, dict) else {"name": value}
    return validate(section, JudgeSection, f"--judge {text}")


def show_results(folder: Path) -> None:
    """The table of an evaluation, how judges agree, and what a reader must know, on stdout."""
    from rich.console import Console

    from anchortune.report.load import read_evaluation
    from anchortune.report.table import results_table
    from anchortune.report.words import agreement

    _, results = read_evaluation(folder)
    console = Console()
    console.print(results_table(results))
    for found in results.agreements:
        console.print(cell(agreement(found)), highlight=False)
    for warning in results.warnings:
        console.print(f"[yellow]![/yellow] {cell(warning)}", highlight=False)
