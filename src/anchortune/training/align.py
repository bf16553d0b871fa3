"""The alignment stage, for those who start from a model without one: ``anchortune align``.

Supervised on refusals and benign answers (``method: sft``), on preferences (``method: dpo``, TRL's
``DPOTrainer``) or by rewards for the model's own answers (``method: grpo``, TRL's ``GRPOTrainer``);
as a LoRA adapter or with every weight trained. The result and the model it
started from are the aligned/base pair that an anchor is built from.
"""

from __future__ import annotations

from anchortune.config import AlignConfig
from anchortune.record import Record
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage


def align(config: AlignConfig) -> Record:
    """Aligns as ``config`` says; a run cut short in its output folder is resumed.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return run_stage(plan_stage(config))
