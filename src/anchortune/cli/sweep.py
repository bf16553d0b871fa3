"""``anchortune sweep``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anchortune.cli.say import say, say_json
from anchortune.cli.train import AsJson, Overrides

if TYPE_CHECKING:
    from anchortune.jobs.sweep import Sweep

FAILED = 3
"""Exit code where runs failed, as the gate's."""


def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The sweep, in YAML.")],
    overrides: Overrides = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every cell, list the runs, do nothing.")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Tell how far it is, and do nothing.")
    ] = False,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="AXIS=LABEL[,LABEL]", help="Only these runs; repeatable."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do runs again that failed before.")
    ] = False,
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Processes, which share the machine and its GPU.")
    ] = 1,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray", metavar="ADDRESS", help="Ray tasks instead: an address, auto, local."
        ),
    ] = None,
    gpus_per_run: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-run", min=0, help="With --ray; a fraction shares a GPU. Unset: 1, or none."
        ),
    ] = None,
    cpus_per_run: Annotated[float, typer.Option("--cpus-per-run", min=0, help="With --ray.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Do the runs of a grid that are missing or stale, one record each; a kill loses none.

    Several processes, on one machine or many, may be given the same FILE and share its runs.
    Exit code 3: some runs failed; they are recorded as such, and run again with --retry-failed.
    """
    import time

    from anchortune.cli.stage import log_to_stderr
    from anchortune.config_io import load_config
    from anchortune.errors import ConfigError
    from anchortune.jobs.sweep import Run, Sweep
    from anchortune.jobs.sweep_config import SweepConfig
    from anchortune.jobs.sweep_plan import check_reported, check_sweep
    from anchortune.jobs.sweep_status import list_runs
    from anchortune.progress import duration
    from anchortune.report.runs import RunRecord

    if ray is not None and jobs > 1:
        raise ConfigError("--jobs is for this machine and --ray for a cluster; give one of them.")
    chosen = _chosen(only or [])
    found = Sweep(load_config(file, SweepConfig, overrides or []), chosen)
    if dry_run or status:
        if dry_run:
            log_to_stderr()
            notes = check_sweep(found)
        else:
            notes = []
        _show(found, as_json=as_json, every=dry_run, notes=notes)
        return
    log_to_stderr()
    check_reported(found)
    list_runs(found)
    found.adopt()
    total, counts = len(found.runs), found.counts()
    done, ended, began = counts["complete"], 0, time.monotonic()
    waiting = total - done - (0 if retry_failed else counts["failed"])

    def told(run: Run, record: RunRecord) -> None:
        nonlocal done, ended
        done += record.state == "complete"
        ended += 1
        what = record.error or f"{record.timings.get('all_s', 0):.0f} s"
        if waiting > ended:  # at the pace of those that ended here
            left = (time.monotonic() - began) / ended * (waiting - ended)
            what += f"; about {duration(left)} left"
        say(f"[{done}/{total}] {run.line()}: {record.state}, {what}", err=True)

    before = time.time() if retry_failed else None
    if ray is not None or jobs > 1:
        from anchortune.jobs.pool import Order, in_processes, on_ray

        order = Order.of(found, chosen, before)
        if ray is not None:
            on_ray(found, order, ray, gpus=gpus_per_run, cpus=cpus_per_run, told=told)
        else:
            in_processes(found, order, jobs, told)
    else:
        from anchortune.jobs.pool import in_this_process

        in_this_process(found, before, told)
    _show(found, as_json=as_json, every=False, notes=[])
    if found.counts()["failed"]:
        raise typer.Exit(FAILED)


def _chosen(only: list[str]) -> dict[str, list[str]]:
    from anchortune.errors import ConfigError

    found: dict[str, list[str]] = {}
    for item in only:
        axis, equals, labels = item.partition("=")
        if not equals or not axis or not labels:
            raise ConfigError(f"--only {item}: expected AXIS=LABEL or AXIS=LABEL,LABEL.")
        found.setdefault(axis, []).extend(labels.split(","))
    return found


def _show(found: Sweep, *, as_json: bool, every: bool, notes: list[str]) -> None:
    """The runs by state; each one with ``every``, else only those that failed."""
    states = {run.digest: found.state(run) for run in found.runs}
    counts = {
        state: list(states.values()).count(state)
        for state in ("complete", "failed", "running", "missing")
    }
    stale = found.stale()
    if as_json:
        runs: list[dict[str, Any]] = [
            {
                "labels": run.labels,
                "seed": run.seed,
                "digest": run.digest,
                "state": states[run.digest],
                "record": str(found.path(run)),
            }
            for run in found.runs
        ]
        summary = {"sweep": found.config.name, "counts": counts, "stale": len(stale), "runs": runs}
        say_json(summary | {"notes": notes})
        return
    for run in found.runs if every else ():
        say(f"{states[run.digest]:<9} {run.line()}  {run.digest[:12]}")
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    late = f"; {len(stale)} stale records" if stale else ""
    say(f"{found.config.name}: {len(found.runs)} runs: {told}{late}; {found.results}")
    for run, error in found.failures():
        say(f"failed    {run.line()}: {error}")
    for note in notes:
        say(f"note      {note}")
