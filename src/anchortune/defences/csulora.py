"""CSULoRA (arXiv 2605.30640): after training, the parts of the update off the anchor are shrunk."""

from __future__ import annotations

from typing import ClassVar

from anchortune.config_defences import CsuLoraSection
from anchortune.defences.against import factors_beside, given
from anchortune.defences.base import Anchors, Defence, Need
from anchortune.maths.lowrank import Update
from anchortune.maths.split import closest, relative_shrinkage, split
from anchortune.progress import counted


class CsuLora(CsuLoraSection, Defence):
    """CSULoRA: ``P_U X P_V`` is kept, the one-sided and outside parts are divided by ``1 + γ``.

    γ is ``strength`` times the part's share of the module's energy, which is our reading of the
    paper: see ``maths.split.relative_shrinkage``. Ranks at most double.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"anchor"})
    source: ClassVar[str] = "2605.30640"

    def after(self, update: Update, anchors: Anchors) -> Update:
        """The closest update whose parts off the anchor cost γ.

        Raises:
            AnchorError: there is no anchor, it lacks a module of the update, or it was cut off
                below the rank.
        """
        factors = factors_beside(update, given(anchors.aligned, self.label), self.rank)
        found = {}
        for name, part in counted("shrinking modules", update.items()):
            parts = split(part, factors[name].left, factors[name].right)
            found[name] = closest(parts, relative_shrinkage(parts.energies(), self.strength))
        return found
