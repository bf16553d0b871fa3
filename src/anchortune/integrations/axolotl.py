"""AsFT in axolotl: a plug-in that its YAML names.

    plugins:
      - anchortune.integrations.axolotl.AnchortunePlugin
    anchortune:
      anchor: anchor.safetensors
      lam: 1.0

The section takes the keys of ``penalty`` in a config of ours. axolotl loads its plug-ins by name
and imports this module; nothing else of anchortune imports axolotl.
"""

from __future__ import annotations

import logging
from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel, Field

from anchortune.config import ModelSection, PenaltySection
from anchortune.integrations.section import penalty_section
from anchortune.training.anchored import check_start, open_anchor, settings
from anchortune.training.seam import attach

logger = logging.getLogger(__name__)
PLUGIN = f"{__name__}.AnchortunePlugin"


class AnchortuneArgs(BaseModel):
    """The key that the plug-in adds to axolotl's config."""

    anchortune: dict[str, Any] | None = Field(
        None, description="The AsFT penalty: an anchor and how it is used, as `penalty` has them."
    )


def section_of(cfg: Any) -> PenaltySection:
    """The penalty that axolotl's config asks for.

    Args:
        cfg: axolotl's config, whose keys are attributes.

    Raises:
        ConfigError: there is no section, a key is unknown, or a value is of no use; or it asks for
            the probe, which takes rows of its own.
    """
    missing = f"axolotl's config names the plug-in {PLUGIN} and has no section anchortune"
    return penalty_section(cfg.anchortune, missing, "axolotl")


class AnchortunePlugin(BasePlugin):  # type: ignore[misc]
    """Adds the penalty to whatever trainer axolotl has made."""

    def get_input_args(self) -> str:
        """The class whose keys axolotl's config takes."""
        return f"{__name__}.AnchortuneArgs"

    def pre_model_load(self, cfg: Any) -> None:
        """Refuses what cannot be used before the model is loaded: section, anchor, start model.

        Raises:
            ConfigError: see ``section_of``.
            AnchorError: there is no such anchor, it is broken, or it was made from other weights.
        """
        section = section_of(cfg)
        anchor = open_anchor(section.anchor, section.revision, "anchortune.revision")
        model = ModelSection(path=cfg.base_model, revision=cfg.revision_of_model)
        check_start(anchor, section, model)

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Attaches the penalty.

        Raises:
            AnchorError: the anchor does not fit the model.
            TrainingError: the trainer or its engine cannot honour the penalty.
        """
        section = section_of(cfg)
        anchor = open_anchor(section.anchor, section.revision, "anchortune.revision")
        attach(trainer, anchor, **settings(section))
        logger.info("AsFT penalty attached: %s", section.anchor)
