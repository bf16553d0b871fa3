"""Strict config of ``anchortune basin``: which model, moved along what, asked what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from anchortune.config import Count, Positive, Section, Share, shorthand
from anchortune.evaluation.config import (
    CandidateSection,
    EvalMachine,
    GenerationSection,
    JudgeSection,
    PromptSetSection,
    TaskSection,
)

Sign = Literal["+", "-"]


class MapSection(Section):
    """Two directions at once."""

    x: str = Field(description="The direction whose α runs over the columns.")
    y: str = Field(description="The direction whose α runs over the rows.")
    x_max: Positive | None = Field(None, description="How far along x; unset: `alpha_max`.")
    y_max: Positive | None = Field(None, description="How far along y; unset: `alpha_max`.")
    runs: dict[str, str] = Field(
        default_factory=dict,
        description="Label -> folder of a train or align, whose checkpoints are drawn over it.",
    )

    @model_validator(mode="after")
    def _two_directions(self) -> MapSection:
        if self.x == self.y:
            raise ValueError(f"a map needs two directions, and both are {self.x}")
        return self


class BasinConfig(Section):
    """The config of ``anchortune basin``."""

    model: Annotated[CandidateSection, shorthand("path")] = Field(
        description="The aligned model: a folder, a `.gguf` file or a Hub id, and adapters merged."
    )
    anchor: str | None = Field(
        None, description="The anchor's file: direction `aligned`, and what pieces are held against"
    )
    harmful_anchor: str | None = Field(
        None, description="A harmful anchor's file: direction `harmful`."
    )
    adapters: dict[str, str] = Field(
        default_factory=dict, description="Label -> adapter folder: a direction of that name."
    )
    directions: list[str] | None = Field(
        None,
        description="`aligned`, `harmful`, `random` and labels of adapters, each with `:inside` or "
        "`:off` for its part inside or off the anchor; unset: all that were given, and `random`.",
    )
    harm: Annotated[PromptSetSection, shorthand("name")] = Field(description="Malicious prompts.")
    judge: Annotated[JudgeSection, shorthand("name")] = Field(description="Who judges the answers.")
    tasks: list[Annotated[TaskSection, shorthand("name")]] = Field(
        default_factory=list, description="Tasks with right answers, asked at each place too."
    )
    part: Literal["report", "selection", "all"] = Field(
        "report", description="Which part of every set is asked."
    )
    selection_frac: Share = Field(0.5, description="The share of a set that selects.")
    generation: GenerationSection = Field(
        default_factory=lambda: GenerationSection(max_new_tokens=64)
    )
    alpha_max: Positive = Field(1.0, description="How far out is looked.")
    alpha_min: Positive | None = Field(
        None,
        description="The first step outwards; each next is twice as far. Unset: alpha_max / 128.",
    )
    resolution: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="The edge is searched to this share of its α."
    )
    sides: Annotated[list[Sign], Field(min_length=1)] = Field(
        default=["+", "-"], description="`+`, `-` or both."
    )
    tolerance: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="τ: the rise of the harmful score over α = 0 that counts as having left."
    )
    incoherent: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="The share of incoherent answers from which a search ends."
    )
    likelihood: bool = Field(
        True,
        description="Answers that the model where it stands finds unlikely are incoherent too.",
    )
    draws: Count = Field(3, description="Random directions to average over.")
    scale: Literal["layer", "whole"] = Field(
        "layer", description="`layer`: d̂ = ‖W‖·D/‖D‖ in each weight; `whole`: all of D to norm 1."
    )
    operator: Literal["subspace", "subspace2", "direction"] = Field(
        "subspace", description="What counts as inside the anchor, for `:inside` and `:off`."
    )
    rank: Count | None = Field(
        None, description="Of the anchor's directions use this many, for `:inside` and `:off`."
    )
    maps: list[MapSection] = Field(default_factory=list, description="Two directions at once.")
    grid: Annotated[int, Field(ge=3)] = Field(
        9, description="Places along each side of a map; odd, so that the start is one of them."
    )
    bootstrap: Count = Field(2000, description="Resamples of an interval.")
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of random directions, samples and the bootstrap."
    )
    machine: EvalMachine = Field(default_factory=EvalMachine)
    output: str = Field(description="The folder; a search cut short there is resumed.")

    @field_validator("grid")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError(
                f"an odd number, so that the start is on the map, not {value}; add one"
            )
        return value

    @field_validator("directions", "sides")
    @classmethod
    def _each_once(cls, value: list[str] | None) -> list[str] | None:
        twice = [name for name in value or [] if (value or []).count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is there twice; name each once")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> BasinConfig:
        if self.model.path is None:
            raise ValueError("model needs a path: weights elsewhere cannot be moved")
        if self.harm.benign:
            raise ValueError("harm.benign: an edge is looked for with malicious prompts; drop it")
        if self.judge.name == "refusal":
            raise ValueError("the judge refusal counts refusals and no harm; name another")
        if not self.first < self.alpha_max:
            raise ValueError(
                f"alpha_min ({self.first:g}) must be below alpha_max ({self.alpha_max:g})"
                "; change one of them"
            )
        if not self.along:
            raise ValueError("directions: name at least one")
        return self

    @property
    def first(self) -> float:
        """The first step outwards."""
        return self.alpha_max / 128 if self.alpha_min is None else self.alpha_min

    @property
    def along(self) -> list[str]:
        """The names of the directions whose edges are looked for."""
        if self.directions is not None:
            return self.directions
        given = {"aligned": self.anchor, "harmful": self.harmful_anchor}
        return [*(key for key, file in given.items() if file), *self.adapters, "random"]

    def told(self) -> dict[str, Any]:
        """The config for a picture's page: without folders of somebody's machine."""
        tree = self.model_dump(mode="json", exclude={"machine", "output"}, exclude_none=True)

        def short(value: Any, key: str = "") -> Any:
            if isinstance(value, dict):
                return {name: short(item, name) for name, item in value.items()}
            if isinstance(value, list):
                return [short(item, key) for item in value]
            paths = isinstance(value, str) and value.startswith(("/", "~", "."))
            return value.rstrip("/").rsplit("/", 1)[-1] if paths else value

        found: dict[str, Any] = short(tree)
        return found
