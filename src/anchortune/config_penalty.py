"""The sections that say what the AsFT penalty measures, and how much it weighs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from anchortune.sections import Count, Positive, Section, Share


class PenaltySettings(Section):
    """What the AsFT penalty measures, and its weight."""

    operator: (
        Literal["gram", "subspace", "subspace2", "direction", "direction_global", "none"] | None
    ) = Field(None, description="What is measured against; unset takes the library's default.")
    side: Literal["off", "along"] = Field(
        "off", description="Which part of the update is punished: off the anchor, or along it."
    )
    scaled: bool = Field(
        True, description="Punish the effective update s·B·A (true) or the bare B·A (the paper)."
    )
    rank: Count | None = Field(None, description="Use this many of the anchor's directions.")
    lam: Annotated[float, Field(ge=0)] | Literal["auto"] | None = Field(
        None,
        description="λ, or `auto` to be steered to a budget or by the probe; unset takes the "
        "library's default.",
    )
    off_budget: Share | None = Field(
        None,
        description="For `lam: auto`: the share of the update's energy allowed to be punished.",
    )
    steer: Literal["budget", "probe"] | None = Field(
        None,
        description="For `lam: auto`: hold the punished share at `off_budget` (as when unset), or "
        "the fall of the safety probe at `probe_target`.",
    )
    probe_target: Positive | None = Field(
        None,
        description="For `steer: probe`: nats by which the probe's margin may lie below the "
        "aligned model's; unset takes the library's default.",
    )
    allow_other_start: bool = Field(
        False,
        description="Train a start model whose weights are not those the anchor was built from.",
    )

    @model_validator(mode="after")
    def _budget_needs_auto(self) -> PenaltySettings:
        if self.off_budget is not None and self.lam != "auto":
            raise ValueError("off_budget is only read with lam: auto; set that or drop off_budget")
        if self.steer is not None and self.lam != "auto":
            raise ValueError("steer is only read with lam: auto; set that or drop steer")
        if self.steer == "probe" and self.off_budget is not None:
            raise ValueError("off_budget goes with steer: budget; leave out one of the two")
        if self.probe_target is not None and self.steer != "probe":
            raise ValueError("probe_target is only read with steer: probe; set that or drop it")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the probe's keys where they are unset: runs keep the identity they had."""
        found: dict[str, Any] = dump(self)
        unset = [key for key in ("steer", "probe_target") if found.get(key, 0) is None]
        return {key: value for key, value in found.items() if key not in unset}


class PenaltySection(PenaltySettings):
    """The AsFT penalty; leave the section out for plain fine-tuning."""

    anchor: str = Field(description="An anchor file, or the Hub id of one.")
    revision: str | None = Field(None, description="The Hub revision of the anchor.")
