"""``anchortune run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, Overrides


def run(
    job: Annotated[Path, typer.Argument(help="The job, in YAML.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate the cost, do nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Do a whole job: screen, anchor, train, evaluate, gate, report; what is done is skipped.

    The exit code is the gate's on the main method: 0 passed (or no limits), 3 failed, 4 too few
    prompts to tell. Only an adapter that passed lies in OUTPUT/adapter; others are in
    OUTPUT/rejected.
    """
    from anchortune.cli.eval import show_results
    from anchortune.cli.stage import log_to_stderr
    from anchortune.config_io import load_config
    from anchortune.jobs.config import JobConfig

    config = load_config(job, JobConfig, overrides or [])
    log_to_stderr()
    if dry_run:
        from anchortune.jobs.plan import plan_job

        plan = plan_job(config, timed=True)
        if as_json:
            say_json(plan.summary())
        else:
            say("\n".join(plan.lines()))
        return
    from anchortune.jobs.run import run_job

    result = run_job(config)
    if as_json:
        say_json(result.to_json())
    else:
        show_results(result.folder / "eval")
        say("\n".join(result.lines()))
    if result.exit_code:
        raise typer.Exit(result.exit_code)
