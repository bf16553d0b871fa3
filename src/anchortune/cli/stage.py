"""What ``train`` and ``align`` share: plan, show, run, print the result."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from anchortune.cli.say import say, say_json
from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import load_config
from anchortune.errors import AnchortuneError, sentence
from anchortune.record import RECORD_FILE
from anchortune.untrusted import inert, without_secrets

logger = logging.getLogger(__name__)


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

    from anchortune.report.card import write_cards
    from anchortune.training.plan import plan_stage
    from anchortune.training.stage import run_stage

    screened = None
    if isinstance(config, TrainConfig) and config.screen is not None:
        from anchortune.evaluation.screen import screen_for_training

        screened = screen_for_training(config)
    plan = plan_stage(config, timed=dry_run, screened=screened)
    if dry_run:
        if as_json:
            say_json(plan.summary())
        else:
            say("\n".join(plan.lines()))
        return
    record = run_stage(plan)
    try:
        write_cards(plan.folder.path)
    except (OSError, AnchortuneError) as error:  # a complete run may lie where none may write
        logger.warning("no card was written beside the result: %s", sentence(error))
    if as_json:
        say_json(record.model_dump(mode="json"))
        return
    loss = record.metrics["loss_last_tenth"]
    say(f"{plan.folder.path / record.outputs['path']}")
    told = "" if loss is None else f", loss {loss:.4f} over the last tenth"
    if "trained" in record.outputs:
        say(
            "mended after training; as it was trained: "
            f"{plan.folder.path / record.outputs['trained']['path']}"
        )
    if "system_prompt" in record.outputs:
        say(
            "it needs a system prompt before every conversation: outputs.system_prompt in "
            f"{plan.folder.path / RECORD_FILE}"
        )
    say(f"{record.metrics['steps']} steps in {record.timings['train_s']:.0f} s{told}")


class _Harmless(logging.Formatter):
    """What is logged names files, sets and texts of strangers, and may name a server's key."""

    def format(self, record: logging.LogRecord) -> str:
        """The message, without orders to a terminal and without secrets."""
        return inert(without_secrets(super().format(record)))


# Python 3.10 does not take its type argument at run time.
if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:
    _TextHandler = logging.StreamHandler


class _Stderr(_TextHandler):
    """To what is stderr now: above a bar that is shown there, not through it."""

    @property
    def stream(self) -> TextIO:
        """Where a line goes."""
        return sys.stderr

    @stream.setter
    def stream(self, _: TextIO) -> None:
        """Nothing is kept."""


def log_to_stderr() -> None:
    """Our log at INFO on stderr; other libraries' warnings stay as they set them."""
    logger = logging.getLogger("anchortune")
    if not logger.handlers:
        handler = _Stderr()
        handler.setFormatter(_Harmless("%(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", category=FutureWarning)
