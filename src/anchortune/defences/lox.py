"""LoX (arXiv 2506.15606): the start weights moved on along the anchor before any training."""

from __future__ import annotations

from typing import ClassVar

from anchortune.config_defences import LoxSection
from anchortune.defences.against import given, vector_of
from anchortune.defences.base import Anchors, Defence, Need
from anchortune.maths.lowrank import Update


class Lox(LoxSection, Defence):
    """LoX: training starts from ``W_aligned + α · U_k diag(σ_k) V_kᵀ``.

    Every module of the anchor is moved, those that are not adapted afterwards too; the authors
    move all linear layers, so an anchor of ``all-linear`` is theirs.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"anchor"})
    source: ClassVar[str] = "2506.15606"

    def before(self, anchors: Anchors) -> Update:
        """``α · U_k diag(σ_k) V_kᵀ`` by module.

        Raises:
            AnchorError: there is no anchor, or it was cut off below the rank.
        """
        return vector_of(given(anchors.aligned, self.label), self.alpha, self.rank)
