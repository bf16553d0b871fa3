"""Fine-tuning with the AsFT penalty, or without it: ``anchortune train``."""

from __future__ import annotations

from anchortune.config import TrainConfig
from anchortune.data.screened import Screened
from anchortune.record import Record
from anchortune.training.plan import Plan, plan_stage
from anchortune.training.stage import run_stage


def plan_training(config: TrainConfig, screened: Screened | None = None) -> Plan:
    """Checks everything and estimates time, memory and disk; trains nothing.

    Args:
        config: of the run.
        screened: what a judge found in the data; see ``plan_stage``.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return plan_stage(config, timed=True, screened=screened)


def train(config: TrainConfig, screened: Screened | None = None) -> Record:
    """Fine-tunes as ``config`` says; a run cut short in its output folder is resumed.

    Args:
        config: of the run.
        screened: what a judge found in the data; see ``plan_stage``.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return run_stage(plan_stage(config, screened=screened))
