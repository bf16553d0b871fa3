"""The trainer of a planned stage: supervised, or TRL's for preferences and for rewards."""

from __future__ import annotations

import logging
from typing import Any

from anchortune.config import AlignConfig
from anchortune.training import loop
from anchortune.training.batches import Collator, PreferenceData, Sequences, TokenisedData
from anchortune.training.grpo import PromptData, grpo_trainer
from anchortune.training.labelled import takes_labelled_positions
from anchortune.training.lora import add_lora, freeze_other_layers, lora_config
from anchortune.training.plan import Plan
from anchortune.training.sharing import attach_sharing, can_share
from anchortune.training.trackers import run_name, tracker_arguments

logger = logging.getLogger(__name__)


def make_trainer(plan: Plan, model: Any, journal: loop.Journal) -> Any:
    """The trainer of the plan's method, on ``model``, with our journal and schedule."""
    ordered = isinstance(plan.data, TokenisedData) and plan.data.order is not None
    # Of an order, a pass over the user's own rows is what the config's keys call an epoch.
    rows = sum(r.used for r in plan.data.reports) if ordered else len(plan.data.rows)
    section = plan.config.grpo if isinstance(plan.config, AlignConfig) else None
    if section is not None:
        rows *= section.group  # a batch counts answers
    per_epoch = loop.steps_per_epoch(rows, plan.config.training.batch_size)
    options = loop.arguments(
        plan.config,
        plan.numbers,
        plan.folder.checkpoints,
        plan.steps,
        per_epoch if ordered else None,
    )
    name = run_name(plan.folder.path, plan.folder.digest)
    options |= tracker_arguments(plan.config, name)
    if isinstance(plan.data, PreferenceData):
        trainer = _dpo_trainer(plan, model, options)
    elif isinstance(plan.data, PromptData) and section is not None:
        checkpointing = plan.config.machine.gradient_checkpointing
        options |= {"label_names": None, "gradient_checkpointing": checkpointing}
        lora = lora_config(model, plan.config.lora) if plan.config.lora is not None else None
        tokenizer = plan.template.tokenizer
        trainer = grpo_trainer(section, plan.data, model, tokenizer, lora, options)
    else:
        trainer = _sft_trainer(plan, model, options)
    for lora in getattr(trainer.model, "peft_config", {}).values():
        # Named when the adapter is saved; else each checkpoint would ask the Hub about it.
        lora.base_model_name_or_path = None
    loop.quiet(trainer)
    trainer.add_callback(journal)
    training = plan.config.training
    if training.schedule == "step":
        loop.step_schedule(trainer, training.step_decay, per_epoch)
    return trainer


def _sft_trainer(plan: Plan, model: Any, options: dict[str, Any]) -> Any:
    from transformers import Trainer, TrainingArguments

    if plan.config.lora is not None:
        model = add_lora(model, plan.config.lora, plan.config.seed, plan.chain.layers)
        if plan.config.machine.gradient_checkpointing:
            model.enable_input_require_grads()
    elif plan.chain.layers is not None:
        freeze_other_layers(model, plan.chain.layers)
    tokenizer = plan.template.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    evaluated = plan.eval_data
    # A defence's own loss is given every logit.
    labelled = not plan.chain.having("task_loss") and takes_labelled_positions(model)
    trainer = Trainer(
        model=model,
        args=loop.single_device(TrainingArguments(**options)),
        data_collator=Collator(
            pad,
            multiple=8 if plan.numbers.device.type == "cuda" else 1,
            labelled_only=labelled,
        ),
        train_dataset=Sequences(plan.data.rows if isinstance(plan.data, TokenisedData) else []),
        eval_dataset=Sequences(evaluated.rows) if isinstance(evaluated, TokenisedData) else None,
    )
    if labelled and _shares(plan, model, trainer.args.world_size):
        attach_sharing(trainer)
    elif plan.config.machine.share_prefixes is True:
        logger.warning(
            "machine.share_prefixes is left out: several processes, a defence's own loss or this "
            "model's attention do not go with it"
        )
    return trainer


def _shares(plan: Plan, model: Any, processes: int) -> bool:
    """Whether rows that begin alike are run together, as ``machine.share_prefixes`` says."""
    machine, lora = plan.config.machine, plan.config.lora
    wanted = machine.share_prefixes
    if wanted == "auto":
        wanted = plan.numbers.device.type == "cpu" and (lora is None or lora.dropout == 0.0)
    if not wanted or processes > 1:  # DDP wants one forward pass before each backward pass
        return False
    return can_share(model, plan.data.max_length)


def _dpo_trainer(plan: Plan, model: Any, options: dict[str, Any]) -> Any:
    import copy

    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = plan.config
    beta = config.dpo.beta if isinstance(config, AlignConfig) else 0.1
    # TRL turns checkpointing on by itself; here the config says.
    checkpointing = config.machine.gradient_checkpointing
    options |= {"label_names": None, "gradient_checkpointing": checkpointing, "beta": beta}
    lora = lora_config(model, config.lora) if config.lora is not None else None
    evaluated = plan.eval_data
    return DPOTrainer(
        model=model,
        # With LoRA the reference is the model with the adapter off; TRL would else load a second
        # one by its path, which a GGUF file or a merged adapter has not got.
        ref_model=copy.deepcopy(model) if lora is None else None,
        args=loop.single_device(DPOConfig(max_length=plan.data.max_length, **options)),
        train_dataset=Dataset.from_list(list(plan.data.rows)),
        eval_dataset=Dataset.from_list(list(evaluated.rows)) if evaluated is not None else None,
        processing_class=plan.template.tokenizer,
        peft_config=lora,
    )
