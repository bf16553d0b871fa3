"""Separate or not: do benign and harmful data move a model in one subspace, or in two?

Two adapters of one model, one trained on benign rows alone and one on harmful rows alone, beside
its anchor and beside each other, module by module. Every figure stands beside chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anchortune.adapter.update import adapter_label, read_update
from anchortune.anchor.anchor import Anchor
from anchortune.anchor.compare import Comparison, ModuleComparison, compare_anchors
from anchortune.defences.against import matched
from anchortune.errors import AnchorError


@dataclass(frozen=True)
class ModuleSeparation:
    """One module.

    Attributes:
        module: its name in the anchor.
        benign: the anchor (A) and the benign update (B).
        harmful: the anchor (A) and the harmful update (B).
        between: the benign update (A) and the harmful one (B).
    """

    module: str
    benign: ModuleComparison
    harmful: ModuleComparison
    between: ModuleComparison


@dataclass(frozen=True)
class Separation:
    """All modules that both adapters move.

    Attributes:
        names: of the anchor, the benign and the harmful adapter.
        modules: in natural order.
        benign: the anchor and the benign update, over all modules.
        harmful: the anchor and the harmful update.
        between: the benign update and the harmful one.
        left_out: modules that only one of the adapters moves.
    """

    names: tuple[str, str, str]
    modules: list[ModuleSeparation]
    benign: Comparison
    harmful: Comparison
    between: Comparison
    left_out: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "anchor": self.names[0],
            "benign_adapter": self.names[1],
            "harmful_adapter": self.names[2],
            "left_out": self.left_out,
            "reading": self.reading(),
            **{
                key: {k: v for k, v in asdict(getattr(self, key)).items() if k not in ("a", "b")}
                for key in ("benign", "harmful", "between")
            },
        }

    def reading(self) -> str:
        """What the figures say and what they do not, in plain words."""
        benign, harmful, between = self.benign, self.harmful, self.between
        return (
            f"Of the benign update {benign.left:.1%} lies inside the anchor's output subspaces, of "
            f"the harmful one {harmful.left:.1%} (chance {benign.left_chance:.1%}). Of the harmful "
            f"update {between.left:.1%} lies inside the benign one's (chance "
            f"{between.left_chance:.1%}), and their cosine is {between.cosine:+.2g} (chance "
            f"{between.chance:.1e}). Were the two separate as the paper has it, the benign share "
            "would be far above the harmful one, and what they share near chance. Two fine-tunes "
            "of one model lie closer than chance whatever they teach."
        )


def separate(anchor: Anchor, benign: str | Path, harmful: str | Path) -> Separation:
    """The figures of two adapters against an anchor and against each other.

    Args:
        anchor: of the model that both were trained from.
        benign: a PEFT folder, trained on benign rows alone.
        harmful: likewise, on harmful rows alone.

    Raises:
        CheckpointError: an adapter cannot be read.
        AnchorError: the anchor lacks a module of theirs, shapes differ, or they share none.
    """
    one, other = _as_anchor(anchor, benign), _as_anchor(anchor, harmful)
    shared = one.modules.keys() & other.modules.keys()
    if not shared:
        raise AnchorError(
            f"{benign} and {harmful} move no module in common: train both on the same "
            "target_modules"
        )
    left_out = sorted((one.modules.keys() | other.modules.keys()) - shared)
    kept = {name: anchor.modules[name] for name in anchor.modules if name in shared}
    metadata = anchor.metadata.model_copy(
        update={"modules": {name: anchor.metadata.modules[name] for name in kept}}
    )
    held = Anchor(kept, metadata)
    mine, theirs = (Anchor({name: side.modules[name] for name in kept}) for side in (one, other))
    found = (
        compare_anchors(held, mine),
        compare_anchors(held, theirs),
        compare_anchors(mine, theirs),
    )
    by_name: list[Mapping[str, ModuleComparison]] = [
        {module.module: module for module in part.modules} for part in found
    ]
    modules = [
        ModuleSeparation(name, *(part[name] for part in by_name))
        for name in (module.module for module in found[0].modules)
    ]
    told = f"{anchor.metadata.aligned.id} - {anchor.metadata.base.id}"
    names = (told, adapter_label(benign), adapter_label(harmful))
    return Separation(names, modules, *found, left_out)


def _as_anchor(anchor: Anchor, folder: str | Path) -> Anchor:
    """An adapter's exact factors under the anchor's names, without modules that have not moved."""
    update = {name: part for name, part in read_update(folder)[0].items() if part.norm() > 0}
    if not update:
        raise AnchorError(f"{folder} moves no weight: B is zero in every module, so train it first")
    names = matched(update, anchor)
    return Anchor({names[name]: part.factors() for name, part in update.items()})
