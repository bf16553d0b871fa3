"""``anchortune align``."""

from __future__ import annotations

from anchortune.cli.train import AsJson, ConfigFile, DryRun, Overrides


def align(
    config: ConfigFile,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Align a model on refusals and benign answers, preferences (DPO) or rewards (GRPO)."""
    from anchortune.cli.stage import run
    from anchortune.config import AlignConfig

    run(AlignConfig, config, overrides or [], dry_run=dry_run, as_json=as_json)
