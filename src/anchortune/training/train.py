"""Fine-tuning with the AsFT penalty, or without it: ``anchortune train``."""

from __future__ import annotations

from anchortune.config import TrainConfig
from anchortune.record import Record
from anchortune.training.plan import Plan, plan_stage
from anchortune.training.stage import run_stage


def plan_training(config: TrainConfig) -> Plan:
    """Checks everything and estimates time, memory and disk; trains nothing.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return plan_stage(config, timed=True)


def train(config: TrainConfig) -> Record:
    """Fine-tunes as ``config`` says; a run cut short in its output folder is resumed.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return run_stage(plan_stage(config))
