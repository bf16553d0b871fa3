"""The settings of every defence: what ``defence:`` in a config may say, one section a method.

A section is the settings alone. What a method does with them is in ``anchortune.defences``, where
its class inherits its section from here, so that the keys of YAML and of Python are the same.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.config_penalty import PenaltySettings
from anchortune.sections import Count, GrownSection, Positive, Section, Share, shorthand

Weight = Annotated[float, Field(ge=0)]


class AsftSection(PenaltySettings):
    """AsFT: the part of the update off the anchor is punished (arXiv 2506.08473)."""

    name: Literal["asft"] = "asft"


class AsftAltSection(GrownSection):
    """AsFT-Alt: the part of the update along a harmful direction is punished; needs no base model.

    Section 3 of arXiv 2506.08473; the direction is a harmful anchor, see ``anchor harmful``.
    """

    later: ClassVar[tuple[str, ...]] = ("steer", "probe_target")

    name: Literal["asft-alt"] = "asft-alt"
    operator: Literal["gram", "subspace", "subspace2", "direction", "direction_global"] | None = (
        Field(None, description="As in AsFT, over the harmful anchor.")
    )
    scaled: bool = Field(True, description="As in AsFT.")
    rank: Count | None = Field(None, description="Use this many of the anchor's directions.")
    lam: Weight | Literal["auto"] | None = Field(
        None, description="λ, or `auto` with `steer: probe`; unset takes the library's default."
    )
    steer: Literal["probe"] | None = Field(
        None, description="For `lam: auto`: hold the fall of the safety probe at `probe_target`."
    )
    probe_target: Positive | None = Field(None, description="As in AsFT.")

    def penalty(self) -> PenaltySettings:
        """The settings of the penalty.

        Raises:
            ValueError: they do not go together.
        """
        return PenaltySettings(
            operator=self.operator,
            side="along",
            scaled=self.scaled,
            rank=self.rank,
            lam=self.lam,
            steer=self.steer,
            probe_target=self.probe_target,
        )

    @model_validator(mode="after")
    def _goes_together(self) -> AsftAltSection:
        self.penalty()
        return self


class LisaSection(Section):
    """Lisa: blocks of steps on refusals and on the user's data, each held near the last switch.

    arXiv 2405.18641. A proximal term ``ρ/2·‖w − w_last‖²`` towards the trained weights at the last
    switch is added to every step.
    """

    name: Literal["lisa"] = "lisa"
    start: Literal["aligned", "base"] = Field(
        "aligned", description="Train from the aligned model, or from the base (lisa-base)."
    )
    rho: Weight = Field(1.0, description="ρ, the weight of the proximal term.")
    alignment_steps: Count = Field(
        100,
        description="Steps on refusals in a block; they come on top of the steps on the user's "
        "data.",
    )
    finetune_steps: Count = Field(900, description="Steps on the user's data in a block.")
    warmup_frac: Share = Field(
        0.1, description="The share of all steps, from the first, without the proximal term."
    )

    @property
    def label(self) -> str:
        """``lisa``, or ``lisa-base``."""
        return "lisa-base" if self.start == "base" else self.name


class SafeInstrSection(Section):
    """SafeInstr: safe refusals mixed into the user's data (arXiv 2309.07875)."""

    name: Literal["safe-instr"] = "safe-instr"
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Refusals added, as a share of the user's rows."
    )


class BeaSection(Section):
    """BEA: refusals behind a secret trigger, which is there again at inference (2402.14968)."""

    name: Literal["bea"] = "bea"
    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="Triggered refusals added, as a share of the user's rows."
    )
    trigger_tokens: Count = Field(150, description="Random tokens of the trigger.")
    trigger_seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of the trigger: it is a secret, so one's own."
    )
    system: str = Field(
        "You are a helpful assistant.",
        description="The system prompt after the trigger, and, alone, of the user's rows that "
        "come without one; empty: none.",
    )


class SafeLoraSection(Section):
    """Safe LoRA: after training, B is projected where the update leaves the anchor (2405.16833)."""

    name: Literal["safe-lora"] = "safe-lora"
    operator: Literal["gram", "subspace"] = Field("gram", description="C; the authors' is `gram`.")
    threshold: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        None,
        description="Project where cos(C·U, U) is at most this (1: everywhere); unset: by "
        "`modules`.",
    )
    modules: Count | None = Field(
        None, description="Project this many, those with the lowest cosine; unset: 10, as theirs."
    )
    rank: Count | None = Field(None, description="Directions of dW; null takes all.")

    @model_validator(mode="after")
    def _one_rule(self) -> SafeLoraSection:
        if self.threshold is not None and self.modules is not None:
            raise ValueError("give threshold or modules, not both")
        return self


class LoxSection(Section):
    """LoX: the start weights moved on along the anchor before any training (2506.15606)."""

    name: Literal["lox"] = "lox"
    rank: Count | None = Field(6, description="Directions of dW; null takes all of the anchor's.")
    alpha: Positive = Field(1.25, description="How far, in units of dW.")


class CsuLoraSection(Section):
    """CSULoRA: after training, the parts of the update off the anchor are shrunk (2605.30640)."""

    name: Literal["csulora"] = "csulora"
    rank: Count | None = Field(None, description="Directions of dW; null takes all.")
    strength: Positive = Field(1.0, description="Multiplies γ, the weight of what is shrunk.")


class RestaSection(Section):
    """RESTA: a safety vector added to the fine-tuned weights (arXiv 2402.11746)."""

    name: Literal["resta"] = "resta"
    gamma: Weight = Field(0.5, description="How much of the vector is added.")
    vector: Literal["base", "harmful"] = Field(
        "base",
        description="`base`: dW, aligned minus base; `harmful`: minus the harmful anchor's dW.",
    )
    rank: Count | None = Field(None, description="Directions of the vector; null takes all.")


class PtstSection(Section):
    """Pure tuning, safe testing: the safety prompt only at inference (arXiv 2402.18540)."""

    name: Literal["ptst"] = "ptst"
    system: Annotated[str, Field(min_length=1)] = Field(
        "You are a helpful, respectful and honest assistant. Always answer as helpfully as "
        "possible, while being safe. Refuse requests that are harmful or illegal.",
        description="The system prompt at inference.",
    )


class SafeLayersSection(Section):
    """Safety layers frozen: those that tell harmful from harmless (arXiv 2408.17003)."""

    name: Literal["safe-layers"] = "safe-layers"
    first: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The first frozen layer, from 0; unset: a sixth of the way up."
    )
    last: Annotated[int, Field(ge=0)] | None = Field(
        None, description="The last frozen layer; unset: two fifths of the way up."
    )


class FirstTokensSection(Section):
    """Constrained fine-tuning: first answer tokens held to the aligned model (2406.05946)."""

    name: Literal["first-tokens"] = "first-tokens"
    beta_first: Positive = Field(0.5, description="β of the first answer token.")
    beta_next: Positive = Field(2.0, description="β of the second to the `tokens`-th.")
    beta_rest: Positive = Field(0.1, description="β of all that follow.")
    tokens: Count = Field(5, description="How many tokens are the first ones.")


DefenceSection = (
    AsftSection | AsftAltSection | LisaSection | SafeInstrSection | BeaSection | SafeLoraSection
    | LoxSection | CsuLoraSection | RestaSection | PtstSection | SafeLayersSection
    | FirstTokensSection
)  # fmt: skip
OneDefence = Annotated[Annotated[DefenceSection, Field(discriminator="name")], shorthand("name")]


#: What papers and tables call a method with a setting, and how it is written here.
_WRITTEN = {
    "sft": "[], or no defence at all",
    "lisa-base": "{name: lisa, start: base}",
    "lisa-aligned": "lisa",
    "none": "[] for no defence, or {name: asft, operator: none} for the norm's penalty",
    "norm": "{name: asft, operator: none}",
    "along": "{name: asft, side: along}",
}


def named_methods(chain: Any) -> tuple[list[Any], list[Any]]:
    """``defence:`` as a list, whichever way it is written, and the name in each entry."""
    listed = chain if isinstance(chain, list) else [] if chain is None else [chain]
    return listed, [entry.get("name") if isinstance(entry, dict) else entry for entry in listed]


def listed_methods(chain: Any, besides: Collection[str] = ()) -> list[Any]:
    """``defence:`` as a list; a method named as tables do is refused, and told how it is written.

    Args:
        chain: as the config has it.
        besides: names that are methods here.

    Raises:
        ValueError: for pydantic, of such a name.
    """
    listed, names = named_methods(chain)
    for name in names:
        if isinstance(name, str) and name in _WRITTEN and name not in besides:
            raise ValueError(f"there is no method '{name}'; write {_WRITTEN[name]}")
    return listed


#: ``lisa``, ``{name: lisa, rho: 0.1}``, or a list of these, which are applied in its order.
Defences = Annotated[list[OneDefence], BeforeValidator(listed_methods)]


class AnchorRef(Section):
    """A made anchor."""

    path: str = Field(description="An anchor file, or the Hub id of one.")
    revision: str | None = Field(None, description="The Hub revision.")
    allow_other_start: bool = Field(
        False, description="Use it for a model whose weights are not those it was built from."
    )


def label_of(chain: list[Any]) -> str:
    """What a chain of defences is called: names joined by ``+``, ``sft`` where there is none."""
    return "+".join(getattr(section, "label", section.name) for section in chain) or "sft"
