"""Strict configs for ``anchortune train`` and ``anchortune align``.

A config is YAML. Values come from, weakest first: the defaults below, the ``preset``, the file, and
``--set key.path=value``. Everything outside the ``machine`` section decides what is computed and is
part of a run's identity; ``machine`` only says how.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config_defences import AnchorRef, AsftAltSection, Defences
from anchortune.config_penalty import PenaltySection as PenaltySection
from anchortune.config_penalty import PenaltySettings as PenaltySettings
from anchortune.sections import Count as Count
from anchortune.sections import DataSection as DataSection
from anchortune.sections import DpoSection as DpoSection
from anchortune.sections import JudgeName as JudgeName
from anchortune.sections import JudgeSection as JudgeSection
from anchortune.sections import LoraSection as LoraSection
from anchortune.sections import MachineSection as MachineSection
from anchortune.sections import ModelSection as ModelSection
from anchortune.sections import Positive as Positive
from anchortune.sections import ProbeSection as ProbeSection
from anchortune.sections import PromptsSection as PromptsSection
from anchortune.sections import ScreenSection as ScreenSection
from anchortune.sections import Section as Section
from anchortune.sections import ServerSection as ServerSection
from anchortune.sections import Share as Share
from anchortune.sections import Sources as Sources
from anchortune.sections import TrainingSection as TrainingSection
from anchortune.sections import one_or_many
from anchortune.sections import shorthand as shorthand


class StageConfig(Section):
    """What every kind of training is told."""

    model: ModelSection
    data: Sources = Field(description="One source of rows, or a list of them.")
    eval_data: Annotated[list[DataSection], BeforeValidator(one_or_many)] = Field(
        default_factory=list, description="Rows whose loss is measured, never trained on."
    )
    lora: LoraSection | None = Field(
        default_factory=LoraSection, description="The adapter; null trains every weight."
    )
    training: TrainingSection = Field(default_factory=TrainingSection)
    machine: MachineSection = Field(default_factory=MachineSection)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of data order, dropout and weights."
    )
    output: str = Field(description="The run's folder; a run cut short there is resumed.")

    @model_validator(mode="after")
    def _batches_divide(self) -> StageConfig:
        micro = self.machine.micro_batch_size
        if micro is not None and self.training.batch_size % micro:
            raise ValueError(
                f"machine.micro_batch_size ({micro}) does not divide training.batch_size "
                f"({self.training.batch_size})"
            )
        return self

    def science(self) -> dict[str, Any]:
        """What decides the result: the config without ``machine`` and ``output``."""
        return self.model_dump(mode="json", exclude={"machine", "output"})


def fold_penalty(value: Any) -> Any:
    """A config with ``asft`` or ``asft-alt`` in ``defence`` as one with ``penalty``.

    A ``penalty`` without an anchor, as a preset has it, gives the settings that the section leaves
    out. The anchor's key goes with the section unless other defences are there, which may read it.

    Raises:
        ValueError: both are given, one twice, or its anchor is missing.
    """
    if not isinstance(value, dict):
        return value
    chain = value.get("defence")
    listed = chain if isinstance(chain, list) else [] if chain is None else [chain]
    names = [entry.get("name") if isinstance(entry, dict) else entry for entry in listed]
    found = [index for index, name in enumerate(names) if name in ("asft", "asft-alt")]
    if not found:
        return value
    below = value.get("penalty")
    preset = below is None or (isinstance(below, dict) and "anchor" not in below)
    if len(found) > 1 or not preset:
        raise ValueError("defence: one penalty at a time; give asft, asft-alt or penalty once")
    name, entry = names[found[0]], listed[found[0]]
    settings = {k: v for k, v in entry.items() if k != "name"} if isinstance(entry, dict) else {}
    key = "anchor" if name == "asft" else "harmful_anchor"
    place = value.get(key)
    if place is None:
        raise ValueError(f"defence: {name} needs {key} (a file or Hub id)")
    if isinstance(place, str):
        place = {"path": place}
    if not isinstance(place, dict) or not isinstance(place.get("path"), str):
        raise ValueError(f"{key}: expected the place of an anchor, a file or a Hub id")
    if name == "asft-alt":
        unknown = sorted(settings.keys() - AsftAltSection.model_fields.keys())
        if unknown:
            known = ", ".join(AsftAltSection.model_fields)
            raise ValueError(f"defence: asft-alt has no key '{unknown[0]}'; known here: {known}")
        settings["side"] = "along"
    kept = [entry for index, entry in enumerate(listed) if index != found[0]]
    penalty = {**(below or {}), **settings, **place, "anchor": place["path"]}
    del penalty["path"]
    folded = {**value, "defence": kept, "penalty": penalty}
    if not kept:
        del folded[key]
    return folded


class TrainConfig(StageConfig):
    """The config of ``anchortune train``."""

    preset: Literal["paper"] | None = Field(
        None, description="`paper`: the settings of arXiv 2506.08473 and its code."
    )
    penalty: PenaltySection | None = Field(
        None, description="The AsFT penalty; unset is plain fine-tuning."
    )
    defence: Defences = Field(
        default_factory=list,
        description="How safety is kept: a method's name, a section with its settings, or a list "
        "of them. `asft` here, with `anchor`, is the same as `penalty`. The methods and their keys "
        "are in [Defences](defences.md).",
    )
    anchor: Annotated[AnchorRef | None, shorthand("path")] = Field(
        None, description="The anchor of aligned - base, for the defences that need one."
    )
    harmful_anchor: Annotated[AnchorRef | None, shorthand("path")] = Field(
        None, description="The anchor of harmful - aligned, for the defences that need one."
    )
    refusals: Annotated[list[DataSection], BeforeValidator(one_or_many)] = Field(
        default_factory=list, description="Safe answers, for the defences that train on some."
    )
    base: Annotated[ModelSection | None, shorthand("path")] = Field(
        None, description="The unaligned model, for a defence that starts from it."
    )
    screen: ScreenSection | None = Field(
        None, description="Judge the data before training; unset: it is not looked at."
    )
    probe: ProbeSection | None = Field(
        None, description="Watch the model's safety while it trains; unset: nobody looks."
    )

    @model_validator(mode="before")
    @classmethod
    def _asft_is_the_penalty(cls, value: Any) -> Any:
        """Folds ``asft`` and ``asft-alt`` into ``penalty``, their one home in the code."""
        return fold_penalty(value)

    @model_validator(mode="after")
    def _each_defence_once(self) -> TrainConfig:
        names = [section.name for section in self.defence]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"defence: {twice} is given twice; give it once")
        return self

    @model_validator(mode="after")
    def _steered_by_a_probe(self) -> TrainConfig:
        if self.penalty is not None and self.penalty.steer == "probe" and self.probe is None:
            raise ValueError("steer: probe needs a probe section, with its prompts")
        return self

    def science(self) -> dict[str, Any]:
        """As for any stage; what a config leaves out does not change the run it was before."""
        found = super().science()
        for key in ("screen", "defence", "anchor", "harmful_anchor", "refusals", "base", "probe"):
            if not found[key]:
                del found[key]
        return found


class AlignConfig(StageConfig):
    """The config of ``anchortune align``."""

    method: Literal["sft", "dpo"] = Field(
        "sft", description="Supervised on refusals and benign answers, or preferences by DPO."
    )
    dpo: DpoSection = Field(default_factory=DpoSection)


#: Below the file, above the defaults. The published settings, in the authors' units of λ.
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "penalty": {"operator": "gram", "side": "off", "scaled": False, "lam": 1.0},
        "lora": {"rank": 8, "alpha": 32, "dropout": 0.05, "target_modules": ["q_proj", "v_proj"]},
        "training": {
            "epochs": 10,
            "batch_size": 8,
            "learning_rate": 5e-5,
            "weight_decay": 0.0,
            "schedule": "step",
            "step_decay": 0.85,
            "max_grad_norm": None,
        },
    }
}
