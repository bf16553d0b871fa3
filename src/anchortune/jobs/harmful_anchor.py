"""The harmful anchor of AsFT-Alt: where harmful pairs pull the aligned model, found in two ways.

``D_harm = W_harm - W_aligned`` (section 3 of arXiv 2506.08473). With ``tune`` ``W_harm`` is a short
LoRA fine-tune on the pairs alone, and the anchor holds the factors of its s·B·A exactly. With
``gradient`` nothing is trained: ``D_harm = -∇L``, the direction of steepest descent of the mean
loss over all answer tokens of the pairs.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.build import (
    DEFAULT_RANK,
    DEFAULT_TARGET_MODULES,
    build_anchor,
    identity,
)
from anchortune.anchor.format import (
    HARMFUL_VERSION,
    AnchorMetadata,
    HarmfulOrigin,
    Identity,
    ModuleInfo,
    Settings,
)
from anchortune.checkpoints.adapter import AdapterCheckpoint
from anchortune.checkpoints.checkpoint import Checkpoint
from anchortune.checkpoints.names import Targets, select
from anchortune.checkpoints.source import open_checkpoint
from anchortune.config import (
    LoraSection,
    MachineSection,
    ModelSection,
    TrainConfig,
    TrainingSection,
)
from anchortune.data.named import name_for_records
from anchortune.errors import AnchorError
from anchortune.files import discard, why_not_writable
from anchortune.jobs.harmful_config import (
    TUNE_BATCH,
    TUNE_EPOCHS,
    TUNE_LEARNING_RATE,
    TUNE_RANK,
    HarmfulSettings,
)
from anchortune.jobs.harmful_gradient import descent
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_config, load_tokenizer, pick_numbers
from anchortune.training.batches import TokenisedData, tokenise
from anchortune.training.folder import OtherRun
from anchortune.training.plan import Plan, plan_stage
from anchortune.training.stage import run_stage
from anchortune.training.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)

_MAX_LENGTH = 2048
_ALPHA_PER_RANK = 4.0  # s = 4, as in the paper: rank 8, alpha 32


@dataclass
class HarmfulPlan:
    """A harmful anchor that has been checked and can be made.

    Attributes:
        model: the aligned model.
        settings: as given.
        output: the file to write.
        start: the checkpoint under the aligned model, its headers read.
        modules: its modules that the anchor will cover.
        data: the pairs, as tokens.
        numbers: device and dtypes.
        training: of ``tune``; None for ``gradient``.
    """

    model: ModelSection
    settings: HarmfulSettings
    output: Path
    start: Checkpoint
    modules: list[str]
    data: TokenisedData
    numbers: Numbers
    training: Plan | None

    @property
    def pairs(self) -> int:
        """That are used."""
        return self.data.reports[0].used

    @property
    def rank(self) -> int:
        """The most directions in a layer."""
        default = DEFAULT_RANK if self.training is None else TUNE_RANK
        return self.settings.rank or default

    def lines(self) -> list[str]:
        """For people: what would be done."""
        how = "one gradient pass" if self.training is None else f"{self.training.steps} steps"
        return [
            f"data    {self.data.reports[0].line()}",
            f"makes   {len(self.modules)} modules at rank {self.rank}, by {how} on {self.pairs} "
            f"pairs, {self.numbers.device.type}",
        ]


def plan_harmful(
    model: ModelSection,
    settings: HarmfulSettings,
    output: str | Path,
    *,
    machine: MachineSection | None = None,
    timed: bool = False,
) -> HarmfulPlan:
    """Everything that can be checked without training or loading a model, checked.

    Args:
        model: the aligned model.
        settings: data and method.
        output: the file to write.
        machine: device, dtype, rows at a time.
        timed: estimate the time of a fine-tune as well, which takes some seconds.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    output = Path(output)
    machine = machine or MachineSection()
    if (reason := why_not_writable(output)) is not None:
        raise AnchorError(f"output {output} cannot be written: {reason}")
    start = open_checkpoint(model.path, revision=model.revision)
    targets: Targets = settings.target_modules or DEFAULT_TARGET_MODULES
    modules = select(start, targets)
    training = None
    if settings.method == "tune":
        training = _plan_tuning(model, settings, modules, output, machine, timed)
        data, numbers = training.data, training.numbers
    else:
        numbers = pick_numbers(machine, LoraSection())
        template = Template(load_tokenizer(model))
        data = tokenise([_source(settings)], template, _longest(model), settings.seed)
    if not isinstance(data, TokenisedData):
        raise AnchorError(f"{settings.data.path} holds no answers to learn; name data with them")
    report = data.reports[0]
    if settings.pairs is not None and report.used < settings.pairs:
        raise AnchorError(
            f"{settings.data.path} holds {report.used} usable pairs of {report.rows} rows, and "
            f"{settings.pairs} are asked for; lower pairs, or name more data"
        )
    return HarmfulPlan(model, settings, output, start, modules, data, numbers, training)


def make_harmful(plan: HarmfulPlan) -> Anchor:
    """Makes the anchor and writes it to ``plan.output``, whole or not at all.

    A fine-tune that was cut short goes on; its folder, ``OUTPUT.tune``, is removed at the end, for
    it holds a model made harmful.

    Raises:
        AnchortuneError: the model cannot be loaded, the loss is no number, or nothing moved.
    """
    if plan.training is not None:
        factors = _tuned(plan, plan.training)
    else:
        factors = descent(plan.model, plan.numbers, plan.modules, plan.data, plan.rank)
    anchor = Anchor(factors, _metadata(plan, factors))
    anchor.save(plan.output)
    if plan.training is not None:
        discard(plan.training.folder.path)
    return anchor


def _longest(model: ModelSection) -> int:
    """Tokens of a sequence, as in training where nothing else is asked for."""
    text = load_config(model).get_text_config()
    return min(_MAX_LENGTH, getattr(text, "max_position_embeddings", None) or _MAX_LENGTH)


def _source(settings: HarmfulSettings) -> Any:
    if settings.pairs is None:
        return settings.data
    return settings.data.model_copy(update={"max_rows": settings.pairs})


def _plan_tuning(
    model: ModelSection,
    settings: HarmfulSettings,
    modules: list[str],
    output: Path,
    machine: MachineSection,
    timed: bool,
) -> Plan:
    work = output.with_name(f"{output.name}.tune")
    rank = settings.rank or TUNE_RANK
    targets = settings.target_modules or list(DEFAULT_TARGET_MODULES)
    plain = not isinstance(targets, str) or targets == "all-linear"
    batch = settings.batch_size or TUNE_BATCH
    config = TrainConfig(
        model=model,
        data=[_source(settings)],
        lora=LoraSection(
            rank=rank,
            alpha=_ALPHA_PER_RANK * rank,
            dropout=0.0,
            # A regular expression is the anchor's own way to name modules: say which they are.
            target_modules=targets if plain else modules,
        ),
        training=TrainingSection(
            epochs=settings.epochs or TUNE_EPOCHS,
            learning_rate=settings.learning_rate or TUNE_LEARNING_RATE,
            batch_size=batch,
        ),
        machine=machine.model_copy(update={"report_to": []}),  # a working step, thrown away
        seed=settings.seed,
        output=str(work),
    )
    try:
        return plan_stage(config, timed=timed)
    except OtherRun as error:
        logger.info("%s was cut short with other settings; it starts anew", work)
        logger.debug("%s", error)
        discard(work)
        return plan_stage(config, timed=timed)


def _tuned(plan: HarmfulPlan, training: Plan) -> dict[str, Factors]:
    record = run_stage(training)
    adapter = training.folder.path / record.outputs["path"]
    modules, _ = build_anchor(
        adapter,
        plan.model.path,
        target_modules="all-linear",
        rank="full",
        base_revision=plan.model.revision,
    )
    return modules


def _metadata(plan: HarmfulPlan, factors: Mapping[str, Factors]) -> AnchorMetadata:
    settings, report, training = plan.settings, plan.data.reports[0], plan.training
    names = list(factors)
    base, under = _aligned_identity(plan, names)
    if training is None:
        told: dict[str, Any] = {"dtype": plan.numbers.compute_name}
        harmful = Identity(id="harmful-gradient", kind="memory")
    else:
        config = training.config
        told = {
            "lora": config.lora.model_dump(mode="json") if config.lora is not None else None,
            "training": config.training.model_dump(mode="json"),
        }
        harmful = _read(open_checkpoint(training.folder.path / "adapter"), None)
        harmful = harmful.model_copy(update={"id": "harmful-tune", "adapter_base": None})
    targets = settings.target_modules or list(DEFAULT_TARGET_MODULES)
    stored = plan.start.tensors
    return AnchorMetadata(
        format_version=HARMFUL_VERSION,
        aligned=harmful,
        base=base,
        settings=Settings(
            target_modules=targets if isinstance(targets, str) else list(targets), rank=plan.rank
        ),
        modules={
            name: ModuleInfo.of(
                found,
                transposed=plan.start.is_conv1d(name),
                base_dtype=stored[f"{name}.weight"].dtype,
            )
            for name, found in factors.items()
        },
        harmful=HarmfulOrigin(
            method=settings.method,
            data=name_for_records(settings.data.path),
            data_sha256=report.sha256,
            pairs=plan.pairs,
            rows=report.rows,
            seed=settings.seed,
            settings={
                "data": settings.data.model_dump(mode="json", exclude={"path"}),
                "learnt_tokens": plan.data.learnt_tokens,
                **told,
            },
            under=under,
        ),
    )


def _aligned_identity(plan: HarmfulPlan, names: list[str]) -> tuple[Identity, Identity | None]:
    """(the aligned model, what it lies on where it is an adapter)."""
    start = open_checkpoint(plan.model.path, revision=plan.model.revision)
    whole = _read(start, names)
    if plan.model.adapter is None:
        return whole, None
    return _read(open_checkpoint(plan.model.adapter), names), whole


def _read(checkpoint: Checkpoint, names: list[str] | None) -> Identity:
    """Its identity, the content hash taken over the modules named, as far as it holds them."""
    if isinstance(checkpoint, AdapterCheckpoint):
        held = checkpoint.modules()
        for name in held if names is None else [name for name in names if name in held]:
            checkpoint.delta(name, transposed=False)  # reads A, B and s
    else:
        for name in names or []:
            checkpoint.read(f"{name}.weight")
    return identity(checkpoint)
