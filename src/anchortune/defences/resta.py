"""RESTA (arXiv 2402.11746): after training, a safety vector is added to the weights."""

from __future__ import annotations

from typing import ClassVar

from anchortune.config_defences import RestaSection
from anchortune.defences.against import factors_beside, given, renamed, vector_of
from anchortune.defences.base import Anchors, Defence, Need
from anchortune.maths.lowrank import Update, add_updates


class Resta(RestaSection, Defence):
    """RESTA: ``γ · (W_aligned − W_unaligned)`` is added.

    The unaligned model is the base (``vector: base``: ``γ·dW`` of the anchor) or the aligned one
    tuned on harmful data (``vector: harmful``, the authors': ``−γ·D_harm`` of the harmful anchor).
    Every module of that anchor is moved, those that are not adapted too. The authors' dropping of
    entries of the vector (DARE) is left out, for with it nothing stays low-rank.
    """

    source: ClassVar[str] = "2402.11746"

    def needed(self) -> frozenset[Need]:
        """The anchor of the vector."""
        return frozenset({"harmful_anchor"} if self.vector == "harmful" else {"anchor"})

    def after(self, update: Update, anchors: Anchors) -> Update:
        """The update with the vector added; ranks add up.

        Raises:
            AnchorError: there is no such anchor, it lacks a module of the update, or it was cut
                off below the rank.
        """
        if self.vector == "harmful":
            anchor, factor = given(anchors.harmful, self.label, "a harmful anchor"), -self.gamma
        else:
            anchor, factor = given(anchors.aligned, self.label), self.gamma
        factors_beside(update, anchor)  # shapes, before anything is added up
        return add_updates(update, renamed(vector_of(anchor, factor, self.rank), update, anchor))
