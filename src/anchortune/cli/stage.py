"""What ``train`` and ``align`` share: plan, show, run, print the result."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import typer

from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import load_config
from anchortune.record import RECORD_FILE


def run(
    kind: type[TrainConfig] | type[AlignConfig],
    path: Path,
    overrides: Sequence[str],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Reads the config, plans, and trains unless ``dry_run``; the result goes to stdout."""
    config = load_config(path, kind, overrides)
    log_to_stderr()

    from anchortune.training.plan import plan_stage
    from anchortune.training.stage import run_stage

    screened = None
    if isinstance(config, TrainConfig) and config.screen is not None:
        from anchortune.evaluation.screen import screen_for_training

        screened = screen_for_training(config)
    plan = plan_stage(config, timed=dry_run, screened=screened)
    if dry_run:
        text = json.dumps(plan.summary(), indent=2) if as_json else "\n".join(plan.lines())
        typer.echo(text)
        return
    record = run_stage(plan)
    if as_json:
        typer.echo(json.dumps(record.model_dump(mode="json"), indent=2))
        return
    loss = record.metrics["loss_last_tenth"]
    typer.echo(f"{plan.folder.path / record.outputs['path']}")
    told = "" if loss is None else f", loss {loss:.4f} over the last tenth"
    if "trained" in record.outputs:
        typer.echo(
            "mended after training; as it was trained: "
            f"{plan.folder.path / record.outputs['trained']['path']}"
        )
    if "system_prompt" in record.outputs:
        typer.echo(
            "it needs a system prompt before every conversation: outputs.system_prompt in "
            f"{plan.folder.path / RECORD_FILE}"
        )
    typer.echo(f"{record.metrics['steps']} steps in {record.timings['train_s']:.0f} s{told}")


def log_to_stderr() -> None:
    """Our log at INFO on stderr; other libraries' warnings stay as they set them."""
    logger = logging.getLogger("anchortune")
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)
