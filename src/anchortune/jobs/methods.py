"""What a job may name as a way to fine-tune: a defence, a chain of them, or none of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from anchortune.config import Section, shorthand
from anchortune.config_defences import (
    AsftAltSection,
    AsftSection,
    DefenceSection,
    label_of,
    listed_methods,
)

REFERENCE = "aligned"
"""The name, in the evaluation, of the model that training starts from."""


class SftSection(Section):
    """Plain fine-tuning."""

    name: Literal["sft"] = "sft"


Link = Annotated[
    Annotated[SftSection | DefenceSection, Field(discriminator="name")], shorthand("name")
]


class MethodSection(Section):
    """A way to fine-tune: defences one after the other, and what the result is called."""

    chain: Annotated[list[Link], Field(min_length=1)] = Field(
        description="Methods' names, or sections with their settings; `sft` is plain fine-tuning."
    )
    label: Annotated[str, Field(pattern=r"^[\w+-][\w.+-]*$")] | None = Field(
        None, description="What it is called; unset: the names joined by `+`."
    )

    @model_validator(mode="after")
    def _goes_together(self) -> MethodSection:
        names = [section.name for section in self.chain]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice} is given twice in one chain; give it once")
        if "sft" in names and len(names) > 1:
            raise ValueError("sft is fine-tuning with no defence; take it out of the chain")
        if {"asft", "asft-alt"} <= set(names):
            raise ValueError("one penalty at a time; give asft or asft-alt")
        if self.name == REFERENCE:
            raise ValueError(f"'{REFERENCE}' is the start model's name; give another label")
        return self

    @property
    def name(self) -> str:
        """What it is called: ``lox+asft``, unless it has a label."""
        return self.label or label_of(self.chain)

    @property
    def penalty(self) -> AsftSection | AsftAltSection | None:
        """The one of its links that is a penalty."""
        found = [one for one in self.chain if isinstance(one, AsftSection | AsftAltSection)]
        return found[0] if found else None

    @property
    def defences(self) -> list[Any]:
        """Its links besides the penalty."""
        kinds = (AsftSection, AsftAltSection, SftSection)
        return [section for section in self.chain if not isinstance(section, kinds)]

    def needs(self, *, penalty: bool = True) -> frozenset[str]:
        """What must be given: ``anchor``, ``harmful_anchor``, ``refusals``, ``base``.

        Args:
            penalty: count what the penalty measures against.
        """
        from anchortune.defences.registry import defences_of

        found = {need for defence in defences_of(self.defences) for need in defence.needed()}
        if penalty and self.penalty is not None:
            found.add("anchor" if isinstance(self.penalty, AsftSection) else "harmful_anchor")
        return frozenset(found)

    @property
    def starts_from_base(self) -> bool:
        """Whether training starts from the base, and its adapter belongs there."""
        from anchortune.defences.registry import defences_of

        return any(one.start_from() == "base" for one in defences_of(self.defences))


def spelt(value: Any, penalty: Any) -> Any:
    """A method as a config may write it, in full: ``asft``, a section, a list, or with a label.

    Args:
        value: what the config says.
        penalty: the config's ``penalty``, whose keys are AsFT's where its own section has none.
    """
    if isinstance(value, dict) and "chain" in value:
        links = value["chain"]
        rest = {key: held for key, held in value.items() if key != "chain"}
    elif isinstance(value, dict):
        links = {key: held for key, held in value.items() if key != "label"}
        rest = {"label": value["label"]} if "label" in value else {}
    elif isinstance(value, str | list):
        links, rest = value, {}
    else:
        return value
    chain = links if isinstance(links, list) else [links]
    listed = listed_methods(chain, besides=("sft",))
    return {"chain": [_with(penalty, link) for link in listed], **rest}


def _with(penalty: Any, link: Any) -> Any:
    link = {"name": link} if isinstance(link, str) else link
    if not isinstance(link, dict) or link.get("name") != "asft" or not isinstance(penalty, dict):
        return link
    below = dict(penalty)
    if "lam" in link:  # what only goes with lam: auto is not this one's
        for key in ("off_budget", "steer", "probe_target"):
            below.pop(key, None)
    return {**below, **link}
