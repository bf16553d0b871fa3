"""Two anchors held against each other, module by module, every figure beside what chance gives.

Are the safety direction dW and a harmful direction D_harm one line, or two? A cosine alone cannot
tell: in a space of a million dimensions any two directions are almost orthogonal.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.inspect import layer_of, oriented, save_figure
from anchortune.checkpoints.names import natural
from anchortune.errors import AnchorError
from anchortune.maths.angles import (
    chance_cosine,
    cosine,
    energy,
    inner,
    principal_angles,
    random_angles,
    share_inside,
)
from anchortune.untrusted import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from anchortune.maths.factors import Factors


@dataclass(frozen=True)
class Subspaces:
    """How the two anchors' subspaces of one side lie to each other.

    Attributes:
        angle_min: the smallest principal angle, in degrees.
        angle_mean: the mean of all of them.
        random_min: of random subspaces of these dimensions, a mean over draws.
        random_mean: likewise.
        share: of B's energy inside A's subspace, in [0, 1].
        chance: k_a / d, that share for a random subspace.
    """

    angle_min: float
    angle_mean: float
    random_min: float
    random_mean: float
    share: float
    chance: float


@dataclass(frozen=True)
class ModuleComparison:
    """Both anchors in one module.

    Attributes:
        module: its name.
        shape: (d_out, d_in).
        ranks: triplets that A and B hold.
        cosine: between the kept parts.
        chance: the mean ``|cosine|`` of two random directions of that many entries.
        left: of the output side, d_out.
        right: of the input side, d_in.
        kept: the share of each whole difference's energy in its kept part, an upper bound on how
            much of it was compared.
    """

    module: str
    shape: tuple[int, int]
    ranks: tuple[int, int]
    cosine: float
    chance: float
    left: Subspaces
    right: Subspaces
    kept: tuple[float, float]


@dataclass(frozen=True)
class Comparison:
    """Two anchors in all modules that both cover.

    Attributes:
        a: what A is, as ``aligned - base``.
        b: what B is.
        modules: in the order of layers.
        only_a: modules that B does not cover.
        only_b: modules that A does not cover.
        cosine: of the whole differences, all modules as one vector.
        chance: the mean ``|cosine|`` of two random ones.
        entries: numbers in that vector.
        left: share of B's energy inside A's left subspaces, over all modules.
        left_chance: by chance.
        right: inside A's right subspaces.
        right_chance: by chance.
    """

    a: str
    b: str
    modules: list[ModuleComparison]
    only_a: list[str]
    only_b: list[str]
    cosine: float
    chance: float
    entries: int
    left: float
    left_chance: float
    right: float
    right_chance: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"reading": self.reading()}

    def reading(self) -> str:
        """What the figures say and what they do not, in plain words."""
        times = abs(self.cosine) / self.chance
        sides = [
            f"{share:.1%} inside A's {name} subspaces (chance {chance:.1%})"
            for name, share, chance in (
                ("output", self.left, self.left_chance),
                ("input", self.right, self.right_chance),
            )
        ]
        return (
            f"Near-orthogonality alone proves nothing: two random directions of {self.entries} "
            f"entries have a |cosine| of {self.chance:.1e} on average. Here it is "
            f"{abs(self.cosine):.1e}, {times:.3g} times that. Of B's energy {' and '.join(sides)}. "
            "Chance here is a direction turned at random; two fine-tunes of one model may lie "
            "closer than that whatever they teach: an anchor made from harmless data is the fairer "
            "control."
        )


def compare_anchors(a: Anchor, b: Anchor) -> Comparison:
    """The figures of ``a`` against ``b``, from their kept factors, in float64.

    Raises:
        AnchorError: they share no module, or have other shapes.
    """
    shared = sorted((name for name in a.modules if name in b.modules), key=natural)
    if not shared:
        raise AnchorError(
            f"the anchors share no module: one holds {next(iter(a.modules))}, the other "
            f"{next(iter(b.modules))}; build both from one model, for the same target_modules"
        )
    modules = []
    total = [0.0] * 7
    entries = 0
    for name in shared:
        mine = oriented(a.modules[name], a.metadata.modules[name])
        theirs = oriented(b.modules[name], b.metadata.modules[name])
        if mine.shape != theirs.shape:
            raise AnchorError(
                f"module {name!r} is {mine.shape[0]} × {mine.shape[1]} in one anchor and "
                f"{theirs.shape[0]} × {theirs.shape[1]} in the other: they are of two models"
                "; build both from one"
            )
        found = _module(name, mine, theirs)
        modules.append(found)
        weight = energy(theirs)
        parts = (
            *(inner(mine, theirs), energy(mine), weight),
            *(weight * found.left.share, weight * found.left.chance),
            *(weight * found.right.share, weight * found.right.chance),
        )
        total = [sum(pair) for pair in zip(total, parts, strict=True)]
        entries += mine.shape[0] * mine.shape[1]
    return Comparison(
        a=_what(a),
        b=_what(b),
        modules=modules,
        only_a=[name for name in a.modules if name not in b.modules],
        only_b=[name for name in b.modules if name not in a.modules],
        cosine=total[0] / math.sqrt(total[1] * total[2]),
        chance=chance_cosine(entries),
        entries=entries,
        left=total[3] / total[2],
        left_chance=total[4] / total[2],
        right=total[5] / total[2],
        right_chance=total[6] / total[2],
    )


def _what(anchor: Anchor) -> str:
    metadata = anchor.metadata
    made = metadata.harmful
    told = f" ({made.method}, {made.pairs} pairs)" if made is not None else ""
    return f"{metadata.aligned.id} - {metadata.base.id}{told}"


def _module(name: str, a: Factors, b: Factors) -> ModuleComparison:
    return ModuleComparison(
        module=name,
        shape=a.shape,
        ranks=(a.rank, b.rank),
        cosine=cosine(a, b),
        chance=chance_cosine(a.shape[0] * a.shape[1]),
        left=_side(a.left, b.left, b),
        right=_side(a.right, b.right, b),
        kept=(min(1.0, energy(a) / a.norm**2), min(1.0, energy(b) / b.norm**2)),
    )


def _side(a: Any, b: Any, factors: Factors) -> Subspaces:
    d, k = a.shape
    angles = principal_angles(a, b).rad2deg()
    random = random_angles(d, k, b.shape[1]).rad2deg()
    return Subspaces(
        angle_min=float(angles.min()),
        angle_mean=float(angles.mean()),
        random_min=float(random.min()),
        random_mean=float(random.mean()),
        share=share_inside(a, b, factors.sigma),
        chance=k / d,
    )


def plot_comparison(found: Comparison, path: str | Path) -> None:
    """Draws a comparison by layer as PNG, SVG or PDF, by the ending of ``path``.

    Raises:
        AnchorError: another ending.
    """
    save_figure(lambda: _figure(found), path)


def _figure(found: Comparison) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 8), layout="constrained")
    figure.suptitle(drawn(f"A: {found.a}\nB: {found.b}"), fontsize=11)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    groups: dict[str, list[tuple[int, ModuleComparison]]] = {}
    for place, module in enumerate(found.modules):
        layer = layer_of(module.module)
        x = place if layer is None else layer
        groups.setdefault(module.module.rsplit(".", 1)[-1], []).append((x, module))
    for number, (label, members) in enumerate(sorted(groups.items())):
        members.sort(key=lambda member: member[0])
        xs = [x for x, _ in members]
        modules = [module for _, module in members]
        style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "ms": 3.5, "lw": 1}
        dashed: dict[str, Any] = {"color": f"C{number}", "lw": 1, "ls": "--"}
        top.plot(xs, [m.cosine for m in modules], label=drawn(label), **style)
        for sign in (-1, 1):
            top.plot(xs, [sign * m.chance for m in modules], **dashed)
        middle.plot(xs, [m.left.angle_min for m in modules], **style)
        middle.plot(xs, [m.left.random_min for m in modules], **dashed)
        bottom.plot(xs, [m.left.share for m in modules], **style)
        bottom.plot(xs, [m.left.chance for m in modules], **dashed)
    top.set_title("Cosine of A and B (dashed: ± chance)", loc="left", fontsize=10)
    middle.set_title(
        "Smallest principal angle of the output subspaces (dashed: random ones)",
        loc="left",
        fontsize=10,
    )
    middle.set_ylabel("degrees")
    bottom.set_title(
        "Share of B's energy inside A's output subspace (dashed: chance, k/d)",
        loc="left",
        fontsize=10,
    )
    bottom.set_xlabel("layer")
    bottom.set_ylim(bottom=0)
    top.legend(fontsize=8, ncols=min(7, len(groups)))
    for axes in (top, middle, bottom):
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure
