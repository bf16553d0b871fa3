"""The trainer's settings, its log and its progress."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from anchortune.config import AlignConfig, TrainConfig
from anchortune.files import naming
from anchortune.models.load import Numbers
from anchortune.progress import Progress


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Optimizer steps in one pass; the last may be of fewer rows."""
    return -(-rows // batch_size)


def total_steps(config: TrainConfig | AlignConfig, rows: int) -> int:
    """Optimizer steps of the whole run."""
    if config.training.max_steps is not None:
        return config.training.max_steps
    per_epoch = steps_per_epoch(rows, config.training.batch_size)
    return max(1, math.ceil(config.training.epochs * per_epoch))


def micro_batch(config: TrainConfig | AlignConfig) -> int:
    """Rows held at once."""
    return config.machine.micro_batch_size or config.training.batch_size


def arguments(
    config: TrainConfig | AlignConfig,
    numbers: Numbers,
    checkpoints: Path,
    steps: int,
    per_epoch: int | None = None,
) -> dict[str, Any]:
    """Keywords of ``transformers.TrainingArguments`` (and of TRL's configs) for a config.

    What differs from their defaults on purpose: losses that are not numbers are shown and not
    replaced by zero, nothing is reported to a tracker, nothing is printed on stdout, and several
    visible GPUs do not silently multiply the batch.

    Args:
        config: of the run.
        numbers: device and dtypes.
        checkpoints: the folder that they go to.
        steps: optimizer steps of the run.
        per_epoch: where the order of the steps is laid down and is one pass of the trainer's,
            those after which a checkpoint is saved unless the config says; None: each epoch.
    """
    training, machine = config.training, config.machine
    micro = micro_batch(config)
    schedule: str = "constant" if training.schedule == "step" else training.schedule
    warmup = math.ceil(training.warmup_frac * steps)
    if warmup and schedule == "constant":
        schedule = "constant_with_warmup"
    options = {
        "output_dir": str(checkpoints),
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": training.batch_size // micro,
        "num_train_epochs": training.epochs,
        "max_steps": (training.max_steps or -1) if per_epoch is None else steps,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": schedule,
        "warmup_steps": warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm or 0.0,  # 0: the trainer clips none
        "optim": "adamw_torch",
        "bf16": numbers.compute == torch.bfloat16,
        "fp16": numbers.compute == torch.float16,
        "use_cpu": numbers.device.type == "cpu",
        "dataloader_num_workers": machine.workers,
        "dataloader_pin_memory": numbers.device.type == "cuda",
        "logging_strategy": "steps",
        "logging_steps": machine.logging_steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if machine.save_steps or per_epoch else "epoch",
        "save_steps": machine.save_steps or per_epoch or 500,
        "save_total_limit": None if machine.keep_checkpoints else 2,
        "eval_strategy": "steps" if machine.eval_steps and config.eval_data else "no",
        "eval_steps": machine.eval_steps,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "disable_tqdm": True,
        "report_to": "none",
        "seed": config.seed,
        "data_seed": config.seed,
    }
    if machine.gradient_checkpointing:  # not mentioned otherwise: the name is being replaced
        options["gradient_checkpointing"] = True
        options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    return options


def single_device(args: Any) -> Any:
    """``args`` with one device: Trainer would wrap in DataParallel and multiply the batch."""
    if args.n_gpu > 1:
        args._n_gpu = 1
    return args


def step_schedule(trainer: Any, decay: float, per_epoch: int) -> None:
    """Gives a trainer the schedule that multiplies the rate by ``decay`` after each epoch."""

    def factor(step: int) -> float:
        return float(decay ** (step // per_epoch))

    trainer.create_optimizer()
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trainer.optimizer, factor)


def quiet(trainer: Any) -> None:
    """Takes out the callback that prints each log on stdout, which is for results."""
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)


class Journal(TrainerCallback):  # type: ignore[misc]
    """Appends every log to ``log.jsonl`` and shows progress on stderr.

    Args:
        path: of ``log.jsonl``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tell: Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins to tell how far it is, at the step that is resumed from."""
        self.close()
        self._tell = Progress("training", state.max_steps, done=state.global_step).__enter__()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells the step; the last one is logged, whatever ``logging_steps`` is."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        if self._tell is not None:
            self._tell(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes one line; a number that is not finite as null."""
        logs: dict[str, Any] = kwargs.get("logs") or {}
        if not {"loss", "eval_loss"} & set(logs):
            return
        line = {"step": state.global_step}
        for key, value in logs.items():
            number = isinstance(value, float) and not math.isfinite(value)
            line[key] = None if number else value
        with naming(self._path), self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        if self._tell is not None:
            self._tell(state.global_step, note=_shown(logs))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says that it is done."""
        self.close()

    def close(self) -> None:
        """Gives the terminal back; call it also when the training ends by an exception."""
        if self._tell is not None:
            self._tell.__exit__(None, None, None)
            self._tell = None


def _shown(logs: dict[str, Any]) -> str:
    """What of a log stands beside the bar."""
    names = {"loss": "loss", "eval_loss": "eval loss", "asft/penalty": "penalty", "asft/lam": "λ"}
    return ", ".join(f"{told} {logs[key]:.4g}" for key, told in names.items() if key in logs)
