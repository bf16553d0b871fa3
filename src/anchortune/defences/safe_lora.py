"""Safe LoRA (arXiv 2405.16833): after training, B is projected where U leaves the anchor."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from anchortune.config_defences import SafeLoraSection
from anchortune.defences.against import factors_beside, given
from anchortune.defences.base import Anchors, Defence, Need
from anchortune.maths.factors import Factors, gram_eigenvalues
from anchortune.maths.lowrank import LowRank, Update
from anchortune.progress import counted

#: Of the authors' code, where neither a threshold nor a number is given.
DEFAULT_MODULES = 10


class SafeLora(SafeLoraSection, Defence):
    """Safe LoRA: ``B ← C·B`` in the modules whose ``cos(C·U, U)`` is lowest.

    ``C = U diag(c) Uᵀ`` from the factors that the anchor holds: ``c = σ²/‖dW‖_F`` (``gram``, the
    authors') or 1 (``subspace``). With ``threshold: 1`` every module is projected. Modules whose
    update is zero are left alone and are not counted. Ties go by name, so that ``modules`` is
    exact, where the authors take every module that ties with the last.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"anchor"})
    source: ClassVar[str] = "2405.16833"

    def cosines(self, update: Update, anchors: Anchors) -> dict[str, float]:
        """``cos(C·U, U)`` of every module, in [0, 1]; 1 where U is zero.

        Raises:
            AnchorError: there is no anchor, or it lacks a module of the update.
        """
        factors = factors_beside(update, given(anchors.aligned, self.label), self.rank)
        return {
            name: _cosine(part, self._projected(part, factors[name]))
            for name, part in counted("comparing modules", update.items())
        }

    def chosen(self, cosines: dict[str, float]) -> list[str]:
        """The modules that are projected, those with the lowest cosine first."""
        ranked = sorted(cosines, key=lambda name: (cosines[name], name))
        if self.threshold is not None:
            return [name for name in ranked if cosines[name] <= self.threshold]
        return ranked[: self.modules or DEFAULT_MODULES]

    def after(self, update: Update, anchors: Anchors) -> Update:
        """The update, projected where it should be; of the same ranks.

        Raises:
            AnchorError: there is no anchor, or it lacks a module of the update.
        """
        factors = factors_beside(update, given(anchors.aligned, self.label), self.rank)
        moved = {name: part for name, part in update.items() if part.norm() > 0}
        chosen = set(self.chosen(self.cosines(moved, anchors)))
        return {
            name: self._projected(part, factors[name]) if name in chosen else part
            for name, part in counted("projecting modules", update.items())
        }

    def _projected(self, part: LowRank, factors: Factors) -> LowRank:
        """``C·B·A``."""
        left = factors.left.double()
        c = gram_eigenvalues(factors) if self.operator == "gram" else torch.ones(left.shape[1])
        projected = left @ (c.double()[:, None] * (left.T @ part.left.double()))
        return LowRank(projected.to(part.left.dtype), part.right)


def _cosine(part: LowRank, projected: LowRank) -> float:
    """``⟨C·U, U⟩ / (‖C·U‖ ‖U‖)``; 0 where C·U is zero, 1 where U is."""
    norm, norm_projected = part.norm(), projected.norm()
    if not norm or not norm_projected:
        return 0.0 if norm else 1.0
    inner = _inner(projected.left, part.left, part.right)
    return min(max(inner / (norm * norm_projected), 0.0), 1.0)


def _inner(first: Tensor, second: Tensor, right: Tensor) -> float:
    """``⟨first·A, second·A⟩``, in float64."""
    gram = right.double() @ right.double().T
    return float(((first.double().T @ second.double()) * gram).sum())
