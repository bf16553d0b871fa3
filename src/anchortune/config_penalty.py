"""The sections that say what the AsFT penalty measures, and how much it weighs."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.sections import (
    Count,
    DataSection,
    GrownSection,
    Positive,
    Section,
    Share,
    shorthand,
)


def _side(value: Any) -> Any:
    """``off`` as it is meant: YAML reads it as false where it has no quotes."""
    return "off" if value is False else value


class PenaltySettings(GrownSection):
    """What the AsFT penalty measures, and its weight."""

    later: ClassVar[tuple[str, ...]] = ("steer", "probe_target", "lam_inside", "layer_weights")

    operator: (
        Literal["gram", "subspace", "subspace2", "direction", "direction_global", "none"] | None
    ) = Field(None, description="What is measured against; unset takes the library's default.")
    side: Annotated[Literal["off", "along"], BeforeValidator(_side)] = Field(
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
    lam_inside: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="λ of what `side: off` leaves free, usually smaller; 0 leaves it free, as the "
        "paper does. For the operators that are projections: `subspace`, `subspace2`, `direction`, "
        "`direction_global`.",
    )
    layer_weights: Literal["none", "norm", "energy"] = Field(
        "none",
        description="Weigh each module's λ by its ‖dW‖ (`norm`) or ‖dW‖² (`energy`) over the mean "
        "of all modules'; `none` weighs all alike.",
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
        nothing_free = self.side == "along" or self.operator == "none"
        if self.lam == "auto" and self.steer != "probe" and nothing_free:
            raise ValueError(
                "lam: auto keeps a share of the update on the anchor, which a penalty along it "
                "and operator: none cannot do; add steer: probe, or give lam as a number"
            )
        return self

    @model_validator(mode="after")
    def _something_is_inside(self) -> PenaltySettings:
        if self.lam_inside and self.side == "along":
            raise ValueError("lam_inside bounds what side: off leaves free; drop it, or the side")
        if self.lam_inside and self.operator in ("gram", "none"):
            raise ValueError(
                f"lam_inside needs an operator that is a projection, and {self.operator} is none; "
                "take subspace, subspace2, direction or direction_global, or drop lam_inside"
            )
        if self.layer_weights != "none" and self.operator == "direction_global":
            raise ValueError(
                "layer_weights weighs modules apart, and direction_global is one vector over all; "
                "take direction, or drop layer_weights"
            )
        return self


class PenaltySection(PenaltySettings):
    """The AsFT penalty; leave the section out for plain fine-tuning."""

    anchor: str = Field(description="An anchor file, or the Hub id of one.")
    revision: str | None = Field(None, description="The Hub revision of the anchor.")


class AnchorRefreshSection(Section):
    """The penalty's anchor made again while the model trains: does the direction drift with it?

    The anchor becomes the direction of steepest descent, at the weights of that moment, of the mean
    loss on `data`. Where the update is measured from stays: the start model.
    """

    every: Count = Field(description="Optimizer steps between two times.")
    data: Annotated[DataSection, shorthand("path")] = Field(
        description="What the gradient is taken on: refusals for AsFT, harmful requests with "
        "harmful answers for AsFT-Alt; a path, or a section as in `data`."
    )
    rank: Count = Field(32, description="Directions kept in each layer.")
