"""Strict configs for ``anchortune train`` and ``anchortune align``.

A config is YAML. Values come from, weakest first: the defaults below, the ``preset``, the file, and
``--set key.path=value``. Everything outside the ``machine`` section decides what is computed and is
part of a run's identity; ``machine`` only says how.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config_defences import AnchorRef, AsftAltSection, Defences, named_methods
from anchortune.config_penalty import AnchorRefreshSection as AnchorRefreshSection
from anchortune.config_penalty import PenaltySection as PenaltySection
from anchortune.config_penalty import PenaltySettings as PenaltySettings
from anchortune.sections import ActivationsSection as ActivationsSection
from anchortune.sections import Count as Count
from anchortune.sections import DataSection as DataSection
from anchortune.sections import DpoSection as DpoSection
from anchortune.sections import GrpoSection as GrpoSection
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
                "; change one of them"
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
    listed, names = named_methods(value.get("defence"))
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
    activations: ActivationsSection | None = Field(
        None, description="Watch the refusal direction in the hidden states; unset: nobody looks."
    )

    anchor_refresh: AnchorRefreshSection | None = Field(
        None,
        description="Make the penalty's anchor again while the model trains; unset: the anchor "
        "stays, as in the paper.",
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
        penalty = self._penalised()
        if penalty is not None and penalty.steer == "probe" and self.probe is None:
            raise ValueError("steer: probe needs a probe section, with its prompts")
        return self

    def _penalised(self) -> Any:
        """The section of the penalty, or None."""
        return self.penalty

    @model_validator(mode="after")
    def _an_anchor_to_refresh(self) -> TrainConfig:
        if self.anchor_refresh is None:
            return self
        penalty = self._penalised()
        if penalty is None:
            raise ValueError(
                "anchor_refresh makes the penalty's anchor again, and there is no penalty; add "
                "one, or drop anchor_refresh"
            )
        if penalty.operator in ("gram", "none"):
            raise ValueError(
                f"anchor_refresh takes a gradient for the anchor, whose size says nothing, and "
                f"operator {penalty.operator} does not go by direction alone; take subspace, "
                "subspace2, direction or direction_global, or drop anchor_refresh"
            )
        if self.lora is not None and self.lora.qlora:
            raise ValueError(
                "anchor_refresh needs gradients of the weights, which 4 bits have not; set "
                "lora.qlora to false, or drop anchor_refresh"
            )
        return self

    def science(self) -> dict[str, Any]:
        """As for any stage; what a config leaves out does not change the run it was before."""
        found = super().science()
        later = ("screen", "defence", "anchor", "harmful_anchor", "refusals", "base", "probe")
        for key in (*later, "activations", "anchor_refresh"):
            if not found[key]:
                del found[key]
        return found


class AlignConfig(StageConfig):
    """The config of ``anchortune align``."""

    method: Literal["sft", "dpo", "grpo"] = Field(
        "sft",
        description="Supervised on refusals and benign answers, preferences by DPO, or rewards "
        "for the model's own answers by GRPO.",
    )
    data: Annotated[list[DataSection], BeforeValidator(one_or_many)] = Field(
        default_factory=list,
        description="One source of rows, or a list of them; `grpo` takes none but prompts.",
    )
    dpo: DpoSection = Field(default_factory=DpoSection)
    grpo: GrpoSection | None = Field(
        None, description="Settings of `method: grpo`, and its prompts."
    )

    @model_validator(mode="after")
    def _each_method_has_its_rows(self) -> AlignConfig:
        if self.method != "grpo":
            if not self.data:
                raise ValueError(
                    f"data is missing; method: {self.method} learns from its rows; add it"
                )
            if self.grpo is not None:
                raise ValueError(
                    f"grpo is not read with method: {self.method}; set method: grpo, or drop it"
                )
            return self
        if self.data or self.eval_data:
            key = "data" if self.data else "eval_data"
            raise ValueError(
                f"{key} is not read with method: grpo, which learns from the model's own answers "
                "to the prompts of grpo.harmful and grpo.harmless; drop it"
            )
        if self.grpo is None:
            raise ValueError("method: grpo needs a grpo section, with harmful and harmless prompts")
        if self.training.max_steps is None:
            raise ValueError(
                "method: grpo generates in every step; set training.max_steps, for example to 50"
            )
        if self.training.batch_size % self.grpo.group:
            raise ValueError(
                f"grpo.group ({self.grpo.group}) does not divide training.batch_size "
                f"({self.training.batch_size}), which counts answers"
                "; change one of them"
            )
        if self.grpo.beta and self.lora is None:
            raise ValueError(
                "grpo.beta holds the model to itself with the adapter off, and lora: null has "
                "none; set it to 0"
            )
        return self

    def science(self) -> dict[str, Any]:
        """As for any stage; without `grpo` the run is the one that it was before there was any."""
        found = super().science()
        if self.grpo is None:
            del found["grpo"]
        return found


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
