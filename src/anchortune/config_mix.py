"""The settings of a data mix: benign rows of a task with a share of harmful ones among them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from anchortune.sections import Count, RowsSection, Section, Share

#: The end of every harmful prompt in the files of the AsFT authors, and of no benign one.
CUE = "\n\nAssistant:"


def _many(value: Any) -> Any:
    """One source, or its path alone, may stand for a list; a path for a section."""
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items]


class MixSource(RowsSection):
    """Rows of one pool of a mix."""

    take: Literal["all", "with-cue", "without-cue"] = Field(
        "all",
        description="Which rows of the file belong to the pool: all, or only those whose prompt "
        "ends in `cue`, or only those whose prompt does not.",
    )

    @model_validator(mode="after")
    def _no_preferences(self) -> MixSource:
        if self.format == "preference":
            raise ValueError(
                "a mix is made of answers, not of preferences; name sources with answers"
            )
        return self


Pool = Annotated[list[MixSource], BeforeValidator(_many)]
Places = Annotated[list[RowsSection], BeforeValidator(_many)]


class MixSection(Section):
    """A file of training rows: so many, such a share of them harmful, none from an evaluation."""

    benign: Annotated[Pool, Field(min_length=1)] = Field(
        description="Where benign rows come from: a source, or a list of them."
    )
    harmful: Pool = Field(
        default_factory=list, description="Where harmful rows come from; none at poison_ratio 0."
    )
    rows: Count = Field(1000, description="n, the number of rows; with `how: add` of benign ones.")
    poison_ratio: Share = Field(0.1, description="p: round(p·n) rows are harmful.")
    how: Literal["replace", "add"] = Field(
        "replace",
        description="`replace`: n rows in all, the harmful ones among them; `add`: the harmful "
        "ones come to n benign ones.",
    )
    disjoint_from: Places = Field(
        default_factory=list,
        description="Files or datasets of evaluation prompts: rows with the same text in either "
        "pool are never used. `columns: {prompt: …}` names a column that is not known.",
    )
    cue: str = Field(
        CUE,
        min_length=1,
        description="The mark at the end of some prompts, by which `take` tells rows apart.",
    )
    keep_cue: bool = Field(
        False, description="Leave the mark on the prompts; else it is taken off all of them."
    )

    @model_validator(mode="after")
    def _poison_needs_a_pool(self) -> MixSection:
        if self.poison_ratio > 0 and not self.harmful:
            raise ValueError("poison_ratio above 0 needs harmful, the sources of harmful rows")
        return self
