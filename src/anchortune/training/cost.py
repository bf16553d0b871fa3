"""What a planned stage will take: steps, time, memory, disk."""

from __future__ import annotations

import shutil
from typing import Any

from anchortune.config import AlignConfig, TrainConfig
from anchortune.errors import TrainingError
from anchortune.models.load import Numbers
from anchortune.training import loop
from anchortune.training.batches import PreferenceData, TokenisedData
from anchortune.training.estimate import Estimate, estimate
from anchortune.training.folder import RunFolder
from anchortune.training.grpo import PromptData

Data = TokenisedData | PreferenceData | PromptData


def steps_of(config: TrainConfig | AlignConfig, data: Data) -> int:
    """Optimizer steps of the run."""
    if isinstance(data, TokenisedData) and data.order is not None:
        return len(data.order)
    return loop.total_steps(config, len(data.rows))


def cost_of(
    config: TrainConfig | AlignConfig,
    numbers: Numbers,
    skeleton: Any,
    trained: int,
    data: Data,
    timed: bool,
    reference: bool,
) -> Estimate:
    """What training takes; see ``estimate``.

    Args:
        config: of the stage.
        numbers: device and dtypes.
        skeleton: the model on the meta device, with its adapter.
        trained: parameters.
        data: the rows.
        timed: time it too, which takes seconds.
        reference: a defence's loss looks at the start model's logits as well.
    """
    rows = len(data.rows)
    if isinstance(data, TokenisedData):
        lengths = [len(row.input_ids) for row in data.rows]
        passes = 1.0
    elif isinstance(data, PromptData):  # what is generated comes on top
        lengths = data.lengths
        passes = 1.0
    else:
        lengths = data.lengths
        passes = 2.0 * 1.5  # two answers a pair, and the reference model's forward pass
    steps = steps_of(config, data)
    seen = steps * rows / loop.steps_per_epoch(rows, config.training.batch_size)
    if isinstance(data, PromptData):
        seen = float(steps * config.training.batch_size)
    if isinstance(data, TokenisedData) and data.order is not None:
        seen = sum(len(batch) for batch in data.order)
    every = config.machine.save_steps or loop.steps_per_epoch(rows, config.training.batch_size)
    kept = max(1, steps // every)
    return estimate(
        skeleton,
        trained,
        lengths,
        numbers=numbers,
        micro=loop.micro_batch(config) * (1 if passes == 1.0 else 2),
        rows_seen=seen * passes,
        lora=config.lora,
        checkpointing=config.machine.gradient_checkpointing,
        checkpoints=kept if config.machine.keep_checkpoints else min(kept, 3),
        seed=config.seed,
        timed=timed,
        reference=reference,
    )


def check_disk(folder: RunFolder, cost: Estimate) -> None:
    """Refuses an output folder on a disk without room for it.

    Raises:
        TrainingError: it is too small.
    """
    place = folder.path.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if cost.disk_bytes > free:
        raise TrainingError(
            f"output {folder.path} needs about {cost.disk_bytes / 2**30:.1f} GiB and "
            f"{free / 2**30:.1f} GiB are free there; name a folder on another disk."
        )
