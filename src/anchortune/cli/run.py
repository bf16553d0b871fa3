"""``anchortune run``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anchortune.cli.card import BaseId
from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, Overrides


def run(
    job: Annotated[Path, typer.Argument(help="The job, in YAML.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, estimate the cost, do nothing.")
    ] = False,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Share what the gate let through, on the Hub."),
    ] = None,
    base_id: BaseId = None,
    as_json: AsJson = False,
) -> None:
    """Do a whole job: screen, anchor, train, evaluate, gate, report; what is done is skipped.

    The exit code is the gate's on the main method: 0 passed (or no limits), 3 failed, 4 too few
    prompts to tell. Only an adapter that passed lies in OUTPUT/adapter; others are in
    OUTPUT/rejected, and never pushed. A new repository is private.
    """
    from anchortune.cli.eval import show_results
    from anchortune.cli.stage import log_to_stderr
    from anchortune.config_io import load_config
    from anchortune.errors import ConfigError
    from anchortune.jobs.config import JobConfig

    if base_id is not None and push_to is None:
        raise ConfigError("--base-id is for --push-to; give that too, or leave it out.")
    config = load_config(job, JobConfig, overrides or [])
    log_to_stderr()
    if push_to is not None:
        from anchortune.jobs.share import check_push

        check_push(push_to, None if config.lora is None else config.model.path, base_id)
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
    pushed = None
    if push_to is not None and result.released:
        pushed = _push(result.folder, push_to, base_id)
    if as_json:
        say_json(result.to_json() | ({} if push_to is None else {"pushed": pushed}))
    else:
        show_results(result.folder / "eval")
        say("\n".join([*result.lines(), *([] if pushed is None else [f"pushed  {pushed}"])]))
    if result.exit_code:
        raise typer.Exit(result.exit_code)


def _push(folder: Path, repo_id: str, base_id: str | None) -> str:
    """Pushes what a job released; the commit's address."""
    from anchortune.jobs.share import plan_upload, push
    from anchortune.report.card import CardOptions
    from anchortune.report.card_source import read_made

    return push(plan_upload(read_made(folder), repo_id, CardOptions(base_id=base_id)))
