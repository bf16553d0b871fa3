"""A planned stage run: the trainer made, trained or resumed, its result and record written."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from anchortune.adapter.compose import compose, read_adapter, unname_base, write_adapter
from anchortune.adapter.merge import locate_adapter
from anchortune.config_io import dump_yaml
from anchortune.data.screened import SCREEN_FILE
from anchortune.errors import CheckpointError
from anchortune.files import atomic_directory, beside, discard, naming, write_json, write_text
from anchortune.models.load import cast, load_model
from anchortune.record import Record, now, platform_facts, read_record, versions, write_record
from anchortune.training import loop
from anchortune.training.activations import activation_metrics, attach_activations
from anchortune.training.anchored import settings
from anchortune.training.batches import TokenisedData
from anchortune.training.chain import edited
from anchortune.training.defended import apply_after, result_files
from anchortune.training.folder import State, reading
from anchortune.training.grpo import reward_metrics
from anchortune.training.health import of_data
from anchortune.training.order import attach_order
from anchortune.training.plan import Plan
from anchortune.training.probing import (
    STOPPED_FILE,
    ProbeMixin,
    ProbeStop,
    attach_probe,
    probe_metrics,
)
from anchortune.training.refresh import attach_refresh
from anchortune.training.sharing import SharingMixin
from anchortune.training.task_loss import attach_task_loss
from anchortune.training.terms import attach_terms
from anchortune.training.trackers import run_name, tracking
from anchortune.training.trainers import make_trainer
from anchortune.training.watch import attach_health, health_findings

logger = logging.getLogger(__name__)


def run_stage(plan: Plan) -> Record:
    """Trains what ``plan`` says, resuming where an unfinished run left off.

    A complete run is not repeated: its record is returned.

    Raises:
        AnchortuneError: the model cannot be loaded, the training goes so wrong that it is stopped
            (``HealthStop``), or the safety probe has stopped the run, now or when it was run
            before.
    """
    for line in plan.lines():
        logger.info("%s", line)
    if plan.state is not State.COMPLETE:
        with plan.folder.held() as state:
            if state is not State.COMPLETE:
                path, trackers = plan.folder.path, plan.config.machine.report_to
                with tracking(trackers, path, run_name(path, plan.folder.digest)):
                    return _run(plan)
    plan.folder.tidy(*unneeded(plan))
    logger.info("%s is complete; nothing to do", plan.folder.path)
    return read_record(plan.folder.path)


def unneeded(plan: Plan) -> list[Path]:
    """What of a run's folder nobody needs once it is complete."""
    return [] if plan.config.machine.keep_checkpoints else [plan.folder.checkpoints]


def _run(plan: Plan) -> Record:
    """Trains in the plan's folder, which is held."""
    stopped = plan.folder.path / STOPPED_FILE
    if stopped.is_file():
        raise ProbeStop(json.loads(stopped.read_text(encoding="utf-8")))
    checkpoint = plan.folder.last_checkpoint()
    if checkpoint is not None:
        plan.folder.check_checkpoint(checkpoint)
    write_text(plan.folder.path / "config.yaml", dump_yaml(plan.config))
    if plan.screened is not None:
        write_json(plan.folder.path / SCREEN_FILE, plan.screened.summary())
    timings = dict(plan.timings)
    started = time.perf_counter()
    model = _load(plan)
    timings["load_s"] = time.perf_counter() - started
    journal = loop.Journal(plan.folder.log)
    trainer = make_trainer(plan, model, journal)
    _attach_defences(plan, trainer)
    penalty = attach_penalty(plan, trainer)
    attach_health(trainer)
    if plan.probe is not None and not isinstance(trainer, ProbeMixin):
        attach_probe(trainer, plan.probe)
    if plan.activations is not None:
        attach_activations(trainer, plan.activations, by_layer=True)

    resumed = int(checkpoint.name.rsplit("-", 1)[-1]) if checkpoint is not None else 0
    every = plan.config.machine.eval_steps
    plan.folder.trim_log(resumed, evaluated=every is not None and resumed % every == 0)
    if checkpoint is not None:
        logger.info("resuming %s from step %d", plan.folder.path, resumed)
    started = time.perf_counter()
    try:
        if checkpoint is not None and resumed >= plan.steps:
            _restore(trainer, checkpoint)
        else:
            with naming(plan.folder.checkpoints), reading(checkpoint):
                trainer.train(
                    resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None
                )
    except ProbeStop as stop:
        write_json(plan.folder.path / STOPPED_FILE, stop.facts)
        raise
    finally:
        journal.close()
    timings["train_s"] = time.perf_counter() - started
    metrics = _metrics(plan, trainer)
    if plan.eval_data is not None:
        started = time.perf_counter()
        metrics["eval_loss"] = float(trainer.evaluate()["eval_loss"])
        timings["eval_s"] = time.perf_counter() - started

    started = time.perf_counter()
    outputs = _save(plan, trainer.model)
    if plan.chain.system_prompt is not None:
        outputs["system_prompt"] = plan.chain.system_prompt
    timings["save_s"] = time.perf_counter() - started
    record = Record(
        kind=plan.kind,
        created=now(),
        config=plan.config.model_dump(mode="json"),
        seed=plan.config.seed,
        inputs=plan.inputs() | ({"penalty": penalty} if penalty else {}),
        outputs=outputs,
        numbers={
            "device": plan.numbers.device.type,
            "compute_dtype": plan.numbers.compute_name,
            "weights_dtype": str(plan.numbers.weights).removeprefix("torch."),
            # Dropout is then drawn once for what rows begin with alike: other numbers.
            "shared_prefixes": isinstance(trainer, SharingMixin),
            "trained_parameters": plan.parameters[0],
            "parameters": plan.parameters[1],
            "identity": plan.folder.digest,
        },
        timings=timings,
        metrics={**metrics, "resumed_from_step": resumed},
        versions=versions(),
        platform=platform_facts(),
    )
    # Beside the result too, so that it keeps its provenance when it is moved or shared alone.
    for made in (outputs, outputs.get("on_base"), outputs.get("trained")):
        if made is not None:
            write_record(plan.folder.path / made["path"], record)
    write_record(plan.folder.path, record)
    for folder in unneeded(plan):
        if folder.is_dir():
            discard(folder)
    return record


def _load(plan: Plan) -> Any:
    """The start model, the defences' edit added to its weights in float32."""
    four_bit = plan.config.lora is not None and plan.config.lora.qlora
    if not plan.chain.edit:
        return load_model(plan.start, plan.numbers, four_bit=four_bit)
    model = load_model(plan.start, replace(plan.numbers, weights=torch.float32))
    with torch.no_grad():
        for _, module, part in edited(model, plan.chain.edit):
            weight = module.weight.data
            weight.add_(part.left.to(weight) @ part.right.to(weight))
    return cast(model, plan.numbers.weights)


def _attach_defences(plan: Plan, trainer: Any) -> None:
    """The order of the steps, the loss and the terms of the plan's defences."""
    chain = plan.chain
    if isinstance(plan.data, TokenisedData) and plan.data.order is not None:
        attach_order(trainer, plan.data.order)
    for defence in chain.having("task_loss"):
        loss = defence.task_loss()
        if loss is not None:
            attach_task_loss(trainer, loss)
    terms = [
        term
        for defence, schedule in zip(chain.defences, chain.schedules, strict=True)
        for term in defence.terms(trainer.model, chain.anchors, schedule)
    ]
    if terms:
        attach_terms(trainer, terms)


def attach_penalty(plan: Plan, trainer: Any) -> dict[str, Any] | None:
    """Adds the plan's penalty to the trainer; the settings it resolved to, for the record."""
    section = plan.penalty
    if section is None or plan.anchor is None:
        return None
    from anchortune.training.seam import attach

    resolved = settings(section)
    attach(
        trainer, plan.anchor, **resolved, probe=plan.probe if "probe_target" in resolved else None
    )
    if plan.refresh is not None:
        attach_refresh(trainer, plan.refresh)
    return resolved


def _restore(trainer: Any, checkpoint: Path) -> None:
    """Weights and state of the last step, from which ``Trainer.train`` would go one step on."""
    from transformers.trainer_callback import TrainerState

    trainer._load_from_checkpoint(str(checkpoint))
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _metrics(plan: Plan, trainer: Any) -> dict[str, Any]:
    """The last logged figures, and the mean loss over the last tenth of the steps."""
    lines = [json.loads(line) for line in plan.folder.log.read_text(encoding="utf-8").splitlines()]
    trained = [line for line in lines if "loss" in line]
    last = dict(trained[-1]) if trained else {}
    tail = [line["loss"] for line in trained if line["step"] > 0.9 * trainer.state.max_steps]
    last.pop("step", None)
    return {
        "steps": trainer.state.global_step,
        "epochs": _epochs(plan, trainer.state),
        "loss_last_tenth": sum(tail) / len(tail) if tail else None,
        "last": last,
        **({"probe": watched} if (watched := probe_metrics(trained)) else {}),
        **({"activations": seen} if (seen := activation_metrics(trained)) else {}),
        **({"reward": rewards} if (rewards := reward_metrics(trained)) else {}),
        "health": [
            finding.summary()
            for finding in (*of_data(plan.data.summary(), plan.screened), *health_findings(trainer))
        ],
    }


def _epochs(plan: Plan, state: Any) -> float:
    """Passes over the rows; where a defence laid the order of the steps down, over the user's."""
    order = plan.data.order if isinstance(plan.data, TokenisedData) else None
    if order is None:
        return float(state.epoch)
    users = sum(report.used for report in plan.data.reports)  # they come first
    seen = sum(index < users for batch in order[: state.global_step] for index in batch)
    return seen / users


def _save(plan: Plan, model: Any) -> dict[str, Any]:
    """Writes the result, whole or not at all, and says what was written.

    ``model/`` (safetensors) of a full training; else ``adapter/`` (PEFT), in which what defences
    added to the start weights and changed after the training is contained: it always belongs on the
    start model. Where they changed something after it, what it was is ``adapter-trained/``.
    """
    chain, path = plan.chain, plan.folder.path
    if plan.config.lora is None:
        return _save_model(plan, model, path / "model")
    target, trained = path / "adapter", path / "adapter-trained"
    first = trained if chain.mends else target
    if chain.edit:
        with beside(first) as place:
            _save_adapter(plan, model, place / "adapter")
            apply_after([], chain.anchors, place / "adapter", first, chain.edit)
    else:
        _save_adapter(plan, model, first)
    if chain.mends:
        apply_after(chain.defences, chain.anchors, trained, target)
    outputs = result_files(target)
    if chain.mends:
        outputs["trained"] = result_files(trained)
    if plan.start.adapter is not None:
        outputs["on_base"] = _save_on_base(plan, target)
    return outputs


def _save_model(plan: Plan, model: Any, target: Path) -> dict[str, Any]:
    """Keeps it in float32.

    Rounded to 16 bits, the rounding noise would be a large part of its difference from the start,
    and so of an anchor built from it.
    """
    with atomic_directory(target) as temporary:
        model.save_pretrained(temporary)
        plan.template.tokenizer.save_pretrained(temporary)
    return result_files(target)


def _save_adapter(plan: Plan, model: Any, target: Path) -> None:
    start = plan.start
    with atomic_directory(target) as temporary:
        for lora in model.peft_config.values():
            lora.base_model_name_or_path = start.path
            lora.revision = start.revision
        # Embeddings are not trained, and looking whether they grew would ask the Hub.
        model.save_pretrained(temporary, save_embedding_layers=False)
        if start.adapter is not None:
            unname_base(temporary, start.path, start.adapter)
        plan.template.tokenizer.save_pretrained(temporary)


def _save_on_base(plan: Plan, adapter: Path) -> dict[str, Any] | None:
    """Writes ``adapter-on-base/``: both adapters as one on the bare base; None where none can be.

    Args:
        plan: of the run.
        adapter: the saved new adapter.
    """
    start = plan.start
    try:
        aligned = read_adapter(locate_adapter(str(start.adapter))[0])
        state, config = compose(aligned, read_adapter(adapter), start.path, start.revision)
    except CheckpointError as error:
        logger.warning(
            "adapter-on-base is not written (%s); merge %s and then %s", error, start.adapter,
            adapter,
        )  # fmt: skip
        return None
    target = plan.folder.path / "adapter-on-base"
    with atomic_directory(target) as temporary:
        write_adapter(temporary, state, config)
        plan.template.tokenizer.save_pretrained(temporary)
    return result_files(target)
