"""The strict config of ``anchortune run``: one file for the whole job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config import (
    Count,
    LoraSection,
    PenaltySection,
    PenaltySettings,
    ScreenSection,
    Section,
    StageConfig,
    TrainConfig,
)
from anchortune.evaluation.config import AskSection, CandidateSection, EvalConfig
from anchortune.report.gate import Limits

MethodName = Literal["asft", "sft"]
REFERENCE = "aligned"
"""The name, in the evaluation, of the model that training starts from."""


def _path(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _method(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


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
            raise ValueError(f"{building[0]} is for building an anchor, but path names a made one")
        if self.path is None and self.revision is not None:
            raise ValueError("revision is the anchor's on the Hub, but no path is given")
        return self


@dataclass(frozen=True)
class Method:
    """A way to fine-tune, as what it changes in the config of ``anchortune train``.

    Attributes:
        anchored: whether it needs an anchor.
        settings: from the job and the anchor's place to keys of ``TrainConfig``.
    """

    anchored: bool
    settings: Callable[[JobConfig, str], dict[str, Any]]


def _asft(job: JobConfig, anchor: str) -> dict[str, Any]:
    revision = job.anchor.revision if job.anchor is not None else None
    return {"penalty": PenaltySection(**dict(job.penalty), anchor=anchor, revision=revision)}


METHODS: dict[MethodName, Method] = {
    "asft": Method(True, _asft),
    "sft": Method(False, lambda job, anchor: {}),
}


@dataclass(frozen=True)
class Arm:
    """One training of the job: a method at a seed.

    Attributes:
        name: in the evaluation, and of its folder: the method, with ``-seed`` where there are many.
        method: which one.
        seed: of data order, dropout and new weights.
    """

    name: str
    method: MethodName
    seed: int


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
    method: MethodName = Field("asft", description="How the model is fine-tuned.")
    compare_with: Annotated[list[MethodName], BeforeValidator(_method)] = Field(
        default_factory=list,
        description="Methods trained beside it, on the same data and seed, for comparison.",
    )
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)] | None = (
        Field(None, description="Train every method once with each of them; beats `seed`.")
    )
    penalty: PenaltySettings = Field(default_factory=PenaltySettings)
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

    @model_validator(mode="after")
    def _parts_agree(self) -> JobConfig:
        methods = [self.method, *self.compare_with]
        if len(set(methods)) < len(methods):
            twice = next(name for name in methods if methods.count(name) > 1)
            raise ValueError(f"compare_with: '{twice}' would be trained twice; name others")
        if self.seeds is not None and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("seeds: one is given twice; give each once")
        anchored = any(METHODS[name].anchored for name in methods)
        if anchored and self.anchor_path is None and self.aligned_from is None:
            raise ValueError(
                "method asft needs an anchor: give base (what the model was aligned from), or "
                "anchor (a file)"
            )
        if self.base is not None and self.anchor_path is not None:
            raise ValueError("base is for building an anchor, but anchor names a made one; drop it")
        if self.base is not None and self.model.adapter is not None:
            same = (self.base.path, self.base.revision) == (self.model.path, self.model.revision)
            if not same:
                raise ValueError(
                    f"model.adapter lies on model.path, so that is the base, not {self.base.path}; "
                    "drop base, or merge the adapter first"
                )
        return self

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
        return any(METHODS[arm.method].anchored for arm in self.arms)

    @property
    def arms(self) -> list[Arm]:
        """Every training, those that are compared with first, the main ones last."""
        methods = [*self.compare_with, self.method]
        if self.seeds is None:
            return [Arm(method, method, self.seed) for method in methods]
        return [Arm(f"{method}-{seed}", method, seed) for method in methods for seed in self.seeds]

    @property
    def main(self) -> list[Arm]:
        """The trainings of ``method``; the first is the one that is released."""
        return [arm for arm in self.arms if arm.method == self.method]

    @property
    def anchor_targets(self) -> list[str] | str:
        """The layers to anchor."""
        from anchortune.anchor.build import DEFAULT_TARGET_MODULES

        if self.anchor is not None and self.anchor.target_modules is not None:
            return self.anchor.target_modules
        if isinstance(self.lora, LoraSection):
            return self.lora.target_modules
        return list(DEFAULT_TARGET_MODULES)

    def training_of(self, arm: Arm, anchor: str, output: str) -> TrainConfig:
        """The config of one training.

        Args:
            arm: which.
            anchor: place of the anchor; not read where the method needs none.
            output: its folder.
        """
        shared = {name: getattr(self, name) for name in StageConfig.model_fields}
        shared |= {"seed": arm.seed, "output": output}
        return TrainConfig(**shared, **METHODS[arm.method].settings(self, anchor))

    def evaluation_of(self, models: dict[str, CandidateSection], output: str) -> EvalConfig:
        """The config of an evaluation of ``models``, asked what the job says."""
        return EvalConfig(**dict(self.evaluate), models=models, output=output)
