"""The strict config of ``anchortune run``: one file for the whole job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config import (
    Count,
    DataSection,
    LoraSection,
    ModelSection,
    PenaltySection,
    PenaltySettings,
    ProbeSection,
    ScreenSection,
    Section,
    StageConfig,
    TrainConfig,
    shorthand,
)
from anchortune.config_defences import AnchorRef, AsftAltSection, AsftSection
from anchortune.evaluation.config import AskSection, CandidateSection, EvalConfig
from anchortune.jobs.harmful_config import HarmfulAnchorSection, HarmfulSettings
from anchortune.jobs.methods import REFERENCE as REFERENCE
from anchortune.jobs.methods import MethodSection, spelt
from anchortune.report.gate import Limits
from anchortune.sections import one_or_many

_NEEDS = {
    "anchor": "an anchor: give base (what the model was aligned from), or anchor (a file)",
    "harmful_anchor": "a harmful anchor: give harmful_anchor, a file or the data to make one from",
    "refusals": "safe answers: give refusals, a source of rows or a list of them",
    "base": "the base model: give base (what the model was aligned from)",
}


def _path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


class BaseSection(Section):
    """What the model was aligned from."""

    path: str = Field(description="A folder, a `.gguf` file or a Hub id.")
    revision: str | None = Field(None, description="The Hub revision.")


class AnchorSection(Section):
    """Where the anchor comes from: a file or Hub id, or built from the model and its base."""

    path: str | None = Field(
        None, description="An anchor file, or the Hub id of one; unset: it is built."
    )
    revision: str | None = Field(None, description="The Hub revision of `path`.")
    target_modules: list[str] | str | None = Field(
        None, description="The layers to anchor; unset: those that are trained."
    )
    rank: Count | Literal["full"] | None = Field(
        None, description="Singular triplets to keep; unset takes the library's default."
    )
    energy: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="Share of ‖dW‖² to keep, instead of a rank."
    )

    @model_validator(mode="after")
    def _made_or_given(self) -> AnchorSection:
        building = [k for k in ("target_modules", "rank", "energy") if getattr(self, k) is not None]
        if self.path is not None and building:
            raise ValueError(
                f"{building[0]} is for building an anchor, but path names a made one"
                "; drop one of them"
            )
        if self.path is None and self.revision is not None:
            raise ValueError("revision is the anchor's on the Hub, but no path is given; drop it")
        return self


@dataclass(frozen=True)
class Arm:
    """One training of the job: a method at a seed.

    Attributes:
        name: in the evaluation, and of its folder: the method, with ``-seed`` where there are many.
        method: what the method is called.
        seed: of data order, dropout and new weights.
        how: the method.
    """

    name: str
    method: str
    seed: int
    how: MethodSection


def _told_apart(methods: list[MethodSection]) -> None:
    for place, method in enumerate(methods):
        for other in methods[:place]:
            if method.chain == other.chain:
                raise ValueError(
                    f"compare_with: '{method.name}' would be trained twice; name others"
                )
            if method.name == other.name:
                raise ValueError(
                    f"compare_with: two methods are called '{method.name}'; give one of them a "
                    "label of its own"
                )


class JobConfig(StageConfig):
    """The config of ``anchortune run``."""

    preset: Literal["paper"] | None = Field(
        None, description="`paper`: the settings of arXiv 2506.08473 and its code."
    )
    base: Annotated[BaseSection, BeforeValidator(_path)] | None = Field(
        None,
        description="What the model was aligned from, to build the anchor; unset with "
        "`model.adapter`: `model.path`.",
    )
    anchor: Annotated[AnchorSection, BeforeValidator(_path)] | None = Field(
        None, description="A made anchor, by its path, or how to build one."
    )
    harmful_anchor: Annotated[HarmfulAnchorSection | None, shorthand("path")] = Field(
        None, description="A made harmful anchor, by its path, or how to make one (for asft-alt)."
    )
    refusals: Annotated[list[DataSection], BeforeValidator(one_or_many)] = Field(
        default_factory=list, description="Safe answers, for the defences that train on some."
    )
    method: MethodSection = Field(
        default_factory=lambda: MethodSection(chain=[AsftSection()]),
        description="How the model is fine-tuned: `asft`, `sft`, another [defence](defences.md), a "
        "section with its settings, or a list of defences that go together; unset: `asft`.",
    )
    compare_with: list[MethodSection] = Field(
        default_factory=list,
        description="Methods trained beside it, on the same data and seed, for comparison: as "
        "`method`, a chain being a list inside this one.",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] | None = (
        Field(None, description="Train every method once with each of them; beats `seed`.")
    )
    penalty: PenaltySettings = Field(
        default_factory=PenaltySettings, description="The settings of `asft` in this job."
    )
    probe: ProbeSection | None = Field(
        None, description="Watch each model's safety while it trains; unset: nobody looks."
    )
    screen: ScreenSection | None = Field(
        None, description="Judge the data before training; unset: it is not looked at."
    )
    evaluate: AskSection
    limits: Limits | None = Field(
        None, description="What the gate holds the result against; unset: there is no gate."
    )

    @model_validator(mode="before")
    @classmethod
    def _one_machine(cls, value: Any) -> Any:
        """Evaluates where it trains, unless told otherwise."""
        if not isinstance(value, dict):
            return value
        machine, asked = value.get("machine"), value.get("evaluate")
        if not isinstance(machine, dict) or not isinstance(asked, dict):
            return value
        shared = {key: machine[key] for key in ("device", "dtype") if key in machine}
        own = asked.get("machine", {})
        if not shared or not isinstance(own, dict):
            return value
        return {**value, "evaluate": {**asked, "machine": {**shared, **own}}}

    @model_validator(mode="before")
    @classmethod
    def _methods_in_full(cls, value: Any) -> Any:
        """Every method with all its settings, those of AsFT from ``penalty`` included."""
        if not isinstance(value, dict):
            return value
        penalty, others = value.get("penalty"), value.get("compare_with", [])
        others = others if isinstance(others, list) else [others]
        return {
            **value,
            "method": spelt(value.get("method", "asft"), penalty),
            "compare_with": [spelt(one, penalty) for one in others],
        }

    @model_validator(mode="after")
    def _parts_agree(self) -> JobConfig:
        methods = [self.method, *self.compare_with]
        _told_apart(methods)
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice; give each once")
        self._needs_are_met(methods)
        from_base = any("base" in one.needs() for one in methods)
        if self.base is not None and self.anchor_path is not None and not from_base:
            raise ValueError("base is for building an anchor, but anchor names a made one; drop it")
        if self.base is not None and self.model.adapter is not None:
            same = (self.base.path, self.base.revision) == (self.model.path, self.model.revision)
            if not same:
                raise ValueError(
                    f"model.adapter lies on model.path, so that is the base, not {self.base.path}; "
                    "drop base, or merge the adapter first"
                )
        return self

    def _needs_are_met(self, methods: list[MethodSection]) -> None:
        have = {
            "anchor": self.anchor_path is not None or self.aligned_from is not None,
            "harmful_anchor": self.harmful_anchor is not None,
            "refusals": bool(self.refusals),
            "base": self.aligned_from is not None,
        }
        for method in methods:
            for need in sorted(method.needs()):
                if not have[need]:
                    raise ValueError(f"method {method.name} needs {_NEEDS[need]}")
        for need in ("harmful_anchor", "refusals"):
            if have[need] and not any(need in method.needs() for method in methods):
                raise ValueError(f"{need} is given, and no method of the job reads it; drop it")

    @property
    def anchor_path(self) -> str | None:
        """The made anchor that the job names, if it does."""
        return self.anchor.path if self.anchor is not None else None

    @property
    def aligned_from(self) -> BaseSection | None:
        """What the model was aligned from: named, or what its adapter lies on."""
        if self.base is None and self.model.adapter is not None:
            return BaseSection(path=self.model.path, revision=self.model.revision)
        return self.base

    @property
    def anchored(self) -> bool:
        """Whether any of its methods needs an anchor."""
        return self.needs("anchor")

    def needs(self, what: str) -> bool:
        """Whether any of its methods needs it; see ``MethodSection.needs``."""
        return any(what in method.needs() for method in (self.method, *self.compare_with))

    @property
    def harmful_path(self) -> str | None:
        """The made harmful anchor that the job names, if it does."""
        return self.harmful_anchor.path if self.harmful_anchor is not None else None

    @property
    def harmful_settings(self) -> HarmfulSettings | None:
        """How the harmful anchor is made; None where it is made already, or not needed."""
        section = self.harmful_anchor
        if section is None or section.data is None:
            return None
        return section.settings(self._trained)

    @property
    def arms(self) -> list[Arm]:
        """Every training, those that are compared with first, the main ones last."""
        methods = [*self.compare_with, self.method]
        if self.seeds is None:
            return [Arm(method.name, method.name, self.seed, method) for method in methods]
        return [
            Arm(f"{method.name}-{seed}", method.name, seed, method)
            for method in methods
            for seed in self.seeds
        ]

    @property
    def main(self) -> list[Arm]:
        """The trainings of ``method``; the first is the one that is released."""
        return [arm for arm in self.arms if arm.method == self.method.name]

    @property
    def anchor_targets(self) -> list[str] | str:
        """The layers to anchor."""
        if self.anchor is not None and self.anchor.target_modules is not None:
            return self.anchor.target_modules
        return self._trained

    @property
    def _trained(self) -> list[str] | str:
        from anchortune.anchor.build import DEFAULT_TARGET_MODULES

        if isinstance(self.lora, LoraSection):
            return self.lora.target_modules
        return list(DEFAULT_TARGET_MODULES)

    def training_of(self, arm: Arm, anchor: str, output: str, harmful: str = "") -> TrainConfig:
        """The config of one training.

        Args:
            arm: which.
            anchor: place of the anchor; not read where the method needs none.
            output: its folder.
            harmful: place of the harmful anchor; likewise.
        """
        shared = {name: getattr(self, name) for name in StageConfig.model_fields}
        shared |= {"seed": arm.seed, "output": output, "probe": self.probe}
        how, needs = arm.how, arm.how.needs(penalty=False)
        places = {
            "anchor": (anchor, self.anchor.revision if self.anchor is not None else None),
            "harmful_anchor": (
                harmful,
                self.harmful_anchor.revision if self.harmful_anchor is not None else None,
            ),
        }
        for key, (path, revision) in places.items():
            if key in needs:
                shared[key] = AnchorRef(path=path, revision=revision)
        if "refusals" in needs:
            shared["refusals"] = self.refusals
        if "base" in needs and self.aligned_from is not None:
            base = self.aligned_from
            shared["base"] = ModelSection(path=base.path, revision=base.revision)
        if how.penalty is not None:
            settings = {key: held for key, held in dict(how.penalty).items() if key != "name"}
            path, revision = places["anchor"]
            if isinstance(how.penalty, AsftAltSection):
                settings["side"] = "along"
                path, revision = places["harmful_anchor"]
            shared["penalty"] = PenaltySection(**settings, anchor=path, revision=revision)
        return TrainConfig(**shared, defence=how.defences)

    def evaluation_of(self, models: dict[str, CandidateSection], output: str) -> EvalConfig:
        """The config of an evaluation of ``models``, asked what the job says."""
        return EvalConfig(**dict(self.evaluate), models=models, output=output)
