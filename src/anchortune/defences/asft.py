"""AsFT and AsFT-Alt (arXiv 2506.08473): a penalty on where the update goes.

The penalty itself is ``anchortune.anchor.penalty`` and its seam ``anchortune.training.seam``; here
is only what makes a config's section into the keywords of ``attach``.
"""

from __future__ import annotations

from typing import ClassVar

from anchortune.config_defences import AsftAltSection, AsftSection
from anchortune.config_penalty import PenaltySettings
from anchortune.defences.base import Defence, Need


class Asft(AsftSection, Defence):
    """AsFT, the penalty on ``(I − C)·U``."""

    needs: ClassVar[frozenset[Need]] = frozenset({"anchor"})
    source: ClassVar[str] = "2506.08473"

    def penalty(self) -> PenaltySettings:
        """The settings of the penalty."""
        return PenaltySettings(**{key: getattr(self, key) for key in PenaltySettings.model_fields})


class AsftAlt(AsftAltSection, Defence):
    """AsFT-Alt, the penalty on ``C_harm·U``."""

    needs: ClassVar[frozenset[Need]] = frozenset({"harmful_anchor"})
    source: ClassVar[str] = "2506.08473"
