"""What a harmful anchor is made from: the settings of ``anchor harmful`` and of a job's section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anchortune.config import Count, DataSection, Positive, Section, shorthand

TUNE_RANK = 8
TUNE_EPOCHS = 10
TUNE_LEARNING_RATE = 2e-4
TUNE_BATCH = 8


class _Recipe(Section):
    pairs: Count | None = Field(
        None, description="Use a seeded sample of this many; unset: all that the data holds."
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="Of the sample and of the fine-tune."
    )
    method: Literal["tune", "gradient"] = Field(
        "tune",
        description="A short LoRA fine-tune on the pairs, or one pass for the gradient of their "
        "loss, without training.",
    )
    target_modules: list[str] | str | None = Field(
        None, description="The layers of the anchor; unset: in a job those that are trained."
    )
    rank: Count | None = Field(
        None,
        description="Directions in each layer: LoRA's r for `tune` (8 where unset), triplets kept "
        "for `gradient` (the library's default where unset).",
    )
    epochs: Positive | None = Field(
        None, description=f"Of `tune`: passes over the pairs ({TUNE_EPOCHS} where unset)."
    )
    learning_rate: Positive | None = Field(
        None, description=f"Of `tune` ({TUNE_LEARNING_RATE:g} where unset)."
    )
    batch_size: Count | None = Field(
        None, description=f"Of `tune`: pairs in a step ({TUNE_BATCH} where unset)."
    )

    @model_validator(mode="after")
    def _gradient_trains_nothing(self) -> _Recipe:
        if self.method == "gradient":
            for key in ("epochs", "learning_rate", "batch_size"):
                if getattr(self, key) is not None:
                    raise ValueError(
                        f"{key} is for method tune, and gradient trains nothing; drop it"
                    )
        return self


def _one_count(recipe: _Recipe, data: DataSection) -> None:
    if recipe.pairs is not None and data.max_rows is not None:
        raise ValueError("pairs and data.max_rows both say how many; give pairs alone")


class HarmfulSettings(_Recipe):
    """How the harmful direction is found: section 3 of arXiv 2506.08473, whose recipe is open."""

    data: Annotated[DataSection, shorthand("path")] = Field(
        description="Harmful requests with harmful answers: a path, or a section as in `data`."
    )

    @model_validator(mode="after")
    def _how_many(self) -> HarmfulSettings:
        _one_count(self, self.data)
        return self


class HarmfulAnchorSection(_Recipe):
    """Where the harmful anchor comes from: a file or Hub id, or made from harmful data."""

    path: str | None = Field(
        None, description="A harmful anchor's file, or the Hub id of one; unset: it is made."
    )
    revision: str | None = Field(None, description="The Hub revision of `path`.")
    data: Annotated[DataSection | None, shorthand("path")] = Field(
        None, description="To make one: harmful requests with harmful answers, as in `data`."
    )

    @model_validator(mode="after")
    def _made_or_given(self) -> HarmfulAnchorSection:
        if (self.path is None) == (self.data is None):
            raise ValueError("give either path (a made harmful anchor) or data (to make one from)")
        if self.path is not None:
            for key in _Recipe.model_fields:
                if getattr(self, key) != _Recipe.model_fields[key].default:
                    raise ValueError(
                        f"{key} is for making an anchor, but path names a made one; drop it"
                    )
        elif self.revision is not None:
            raise ValueError("revision is the anchor's on the Hub, but no path is given; drop it")
        if self.data is not None:
            _one_count(self, self.data)
        return self

    def settings(self, target_modules: list[str] | str) -> HarmfulSettings:
        """How it is made, where it is.

        Args:
            target_modules: what is trained, where it names none itself.

        Raises:
            ValueError: it is a made one.
        """
        if self.data is None:
            raise ValueError("a made anchor is not made again; drop path")
        recipe = {key: getattr(self, key) for key in _Recipe.model_fields}
        recipe["target_modules"] = self.target_modules or target_modules
        return HarmfulSettings(**recipe, data=self.data)
