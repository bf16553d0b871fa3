"""What a harmful anchor is made from: the settings of ``anchor harmful`` and of a job's section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from anchortune.config import Count, DataSection, Positive, Section, shorthand

TUNE_RANK = 8
TUNE_EPOCHS = 10
TUNE_LEARNING_RATE = 2e-4
TUNE_BATCH = 8


class HarmfulSettings(Section):
    """How the harmful direction is found: section 3 of arXiv 2506.08473, whose recipe is open."""

    data: Annotated[DataSection, shorthand("path")] = Field(
        description="Harmful requests with harmful answers: a path, or a section as in `data`."
    )
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
    def _settings_fit(self) -> HarmfulSettings:
        if self.pairs is not None and self.data.max_rows is not None:
            raise ValueError("pairs and data.max_rows both say how many; give pairs alone")
        if self.method == "gradient":
            for key in ("epochs", "learning_rate", "batch_size"):
                if getattr(self, key) is not None:
                    raise ValueError(f"{key} is for method tune, and gradient trains nothing")
        return self
