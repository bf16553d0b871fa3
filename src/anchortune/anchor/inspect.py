"""What an anchor is worth: how differently each operator treats its direction and a random one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import ModuleInfo
from anchortune.checkpoints.names import natural
from anchortune.errors import AnchorError
from anchortune.files import atomic_path
from anchortune.maths.factors import (
    Factors,
    gram_eigenvalues,
    punishment_along,
    punishment_random,
    stable_rank,
)
from anchortune.untrusted import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PER_MODULE_OPERATORS = ("gram", "subspace", "subspace2", "direction")
NEARLY_DECAY = 1.1
"""``gram`` with a selectivity below this punishes the aligned direction like any other."""
OVERSHOOT = 2.0
"""Above this eigenvalue of ``gram``, (1 - c)² exceeds 1."""
WEAK = 0.1
"""Below this eigenvalue ``gram`` with ``side: along`` punishes less than 0.01 of an update."""
_FREE = 1e-6


@dataclass(frozen=True)
class Selectivity:
    """What one operator costs a unit update.

    Attributes:
        along: the penalty of ``dW / ‖dW‖``; 0 is free, 1 is what plain norm decay would cost.
        random: the expected penalty of a random update of the same size.
        ratio: ``random / along``; None where along is free (the ratio has no bound).
    """

    along: float
    random: float
    ratio: float | None


@dataclass(frozen=True)
class ModuleReport:
    """One module's figures; eigenvalues are those of ``gram``, ``σ² / ‖dW‖_F``."""

    module: str
    shape: tuple[int, int]
    rank: int
    norm: float
    stable_rank: float
    kept_energy_frac: float
    eigenvalue_max: float
    eigenvalue_min: float
    gram_error_bound: float
    direction_cosine: float
    selectivity: dict[str, Selectivity]


@dataclass(frozen=True)
class AnchorReport:
    """The figures of a whole anchor, its parents, and warnings in plain words."""

    aligned: str
    base: str
    sha256: str
    modules: list[ModuleReport]
    warnings: list[str]

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)


def inspect_anchor(anchor: Anchor) -> AnchorReport:
    """The figures and warnings of ``anchor``; nothing is read besides it."""
    infos = anchor.metadata.modules
    # A file holds them by their letters, layer 10 before layer 2.
    ordered = sorted(anchor.modules, key=natural)
    modules = [_module(name, anchor.modules[name], infos[name]) for name in ordered]
    return AnchorReport(
        aligned=anchor.metadata.aligned.id,
        base=anchor.metadata.base.id,
        sha256=anchor.sha256,
        modules=modules,
        warnings=[
            *anchor.metadata.notes,
            *(_warnings(modules) if anchor.metadata.harmful is None else _along(modules)),
        ],
    )


def oriented(factors: Factors, info: ModuleInfo) -> Factors:
    """``factors`` with d_out first, for a ``Conv1D`` is stored the other way round."""
    if not info.transposed:
        return factors
    return Factors(factors.right, factors.sigma, factors.left, factors.norm, factors.tail)


def _module(name: str, factors: Factors, info: ModuleInfo) -> ModuleReport:
    factors = oriented(factors, info)
    eigenvalues = gram_eigenvalues(factors)
    selectivity = {}
    for operator in PER_MODULE_OPERATORS:
        along = punishment_along(factors, operator)
        random = punishment_random(factors, operator)
        free = along < _FREE
        selectivity[operator] = Selectivity(along, random, None if free else random / along)
    return ModuleReport(
        module=name,
        shape=factors.shape,
        rank=factors.rank,
        norm=factors.norm,
        stable_rank=stable_rank(factors),
        kept_energy_frac=info.kept_energy_frac,
        eigenvalue_max=float(eigenvalues.max()),
        eigenvalue_min=float(eigenvalues.min()),
        gram_error_bound=info.gram_error_bound,
        direction_cosine=info.direction_cosine,
        selectivity=selectivity,
    )


def _some(names: Sequence[str], total: int) -> str:
    if len(names) == total and total > 1:
        return f"all {total} modules"
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"{len(names)} of {total} modules ({shown})"


def _warnings(modules: Sequence[ModuleReport]) -> list[str]:
    """Where an operator does not do what its name promises."""
    total = len(modules)
    found = []
    decay = [m for m in modules if _ratio(m, "gram") < NEARLY_DECAY and m.eigenvalue_max < 1]
    if decay:
        largest = max(m.eigenvalue_max for m in decay)
        found.append(
            f"gram is nearly plain norm decay in {_some([m.module for m in decay], total)}: its "
            f"largest eigenvalue there is {largest:.2g}, so it punishes an update along the "
            "alignment almost as much as any other; prefer subspace or direction"
        )
    over = [m for m in modules if m.eigenvalue_max > OVERSHOOT]
    if over:
        largest = max(m.eigenvalue_max for m in over)
        found.append(
            f"gram punishes the aligned direction MORE than an orthogonal one in "
            f"{_some([m.module for m in over], total)}: an eigenvalue there reaches {largest:.3g}, "
            f"and above 2 a direction costs (1 - c)² = {(1 - largest) ** 2:.3g} instead of 1; "
            "prefer subspace or direction"
        )
    full = [m for m in modules if m.rank >= m.shape[0]]
    if full:
        found.append(
            f"subspace would vanish in {_some([m.module for m in full], total)}: the factors fill "
            "every output direction, so nothing lies off them; bind with a lower rank"
        )
    both = [m for m in modules if m.rank >= max(m.shape)]
    if both:
        found.append(
            f"subspace2 would vanish in {_some([m.module for m in both], total)}: "
            "square and at full rank; bind with a lower rank"
        )
    return found


def _along(modules: Sequence[ModuleReport]) -> list[str]:
    """What to know of a harmful anchor, whose penalty is on what goes along it."""
    found = [
        "this is a harmful anchor: penalise what goes along it (side: along, or asft-alt); the "
        "selectivities are those of side: off"
    ]
    weak = [m for m in modules if m.eigenvalue_max < WEAK]
    if weak:
        largest = max(m.eigenvalue_max for m in weak)
        found.append(
            f"gram with side: along punishes next to nothing in "
            f"{_some([m.module for m in weak], len(modules))}: its largest eigenvalue there is "
            f"{largest:.2g}; prefer subspace or direction, which ask only where the anchor points"
        )
    return found


def _ratio(module: ModuleReport, operator: str) -> float:
    ratio = module.selectivity[operator].ratio
    return float("inf") if ratio is None else ratio


def median_along(modules: Iterable[ModuleReport], operator: str) -> tuple[float, float]:
    """The medians over modules of what ``operator`` costs along ``dW`` and at random."""
    values = [module.selectivity[operator] for module in modules]
    return statistics.median(v.along for v in values), statistics.median(v.random for v in values)


def plot_anchor(report: AnchorReport, path: str | Path) -> None:
    """Draws a report as PNG, SVG or PDF, by the ending of ``path``.

    Raises:
        AnchorError: another ending.
    """
    save_figure(lambda: _figure(report), path)


def save_figure(draw: Callable[[], Figure], path: str | Path) -> None:
    """Writes what ``draw`` draws as PNG, SVG or PDF, by the ending of ``path``; SVG reproducibly.

    Raises:
        AnchorError: another ending.
    """
    target = Path(path)
    if target.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise AnchorError(f"{path}: a plot ends in .png, .svg or .pdf")
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "anchortune", "font.size": 9}):
        figure = draw()
        metadata = {"Date": None} if target.suffix.lower() == ".svg" else None
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=150, format=target.suffix[1:].lower(), metadata=metadata)


def _figure(report: AnchorReport) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8.4), layout="constrained")
    figure.suptitle(
        f"Anchor: what changed from {drawn(report.base)} to {drawn(report.aligned)}\n"
        "and how a penalty built on it treats updates",
        fontsize=12,
    )
    top, middle, bottom = figure.subplots(3, 1, height_ratios=(1, 1.2, 1.2))
    groups = _groups(report.modules)
    for label, members in groups.items():
        members.sort(key=lambda member: member[0])
        places = [place for place, _ in members]
        style: dict[str, Any] = {"marker": "o", "ms": 3.5, "lw": 1, "label": drawn(label)}
        top.plot(places, [m.norm for _, m in members], **style)
        middle.plot(places, [m.eigenvalue_max for _, m in members], **style)
    top.set_title("How far each weight moved: ‖dW‖", loc="left", fontsize=10)
    top.set_ylabel("Frobenius norm")
    top.set_ylim(0, 1.4 * max(m.norm for m in report.modules))
    middle.set_title(
        "Operator gram: its largest eigenvalue c; a direction costs (1 - c)² (colours as above)",
        loc="left",
        fontsize=10,
    )
    middle.set_yscale("log")
    middle.set_ylabel("largest c")
    low, high = middle.get_ylim()
    middle.set_ylim(min(low, 0.03), max(high, 5.0))
    notes = (
        (OVERSHOOT, "above 2: the aligned\ndirection costs more\nthan an orthogonal one", "bottom"),
        (1.0, "1: the aligned\ndirection is free", "center"),
        (0.05, "below 0.05: nearly\nplain norm decay", "top"),
    )
    for value, text, place in notes:
        middle.axhline(value, color="0.55", lw=0.8, ls="--")
        middle.annotate(
            text,
            (1.01, value),
            xycoords=("axes fraction", "data"),
            va=place,
            fontsize=7.5,
            color="0.3",
            annotation_clip=False,
        )
    top.legend(ncols=min(len(groups), 7), fontsize=8, loc="upper left", framealpha=0.8)
    for axes in (top, middle):
        axes.set_xlabel("layer" if _layered(report.modules) else "module, in order")
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    _bars(bottom, report)
    return figure


def _bars(axes: Any, report: AnchorReport) -> None:
    """Costs per operator, along the anchor and at random: the wider apart, the more selective."""
    width = 0.38
    for index, operator in enumerate(PER_MODULE_OPERATORS):
        along, random = median_along(report.modules, operator)
        for offset, value, colour in ((-width / 2, along, "tab:green"), (width / 2, random, "0.6")):
            axes.bar(index + offset, value, width, color=colour)
            text = f"{value:.2f}" if value >= 0.005 or value == 0 else f"{value:.0e}"
            axes.annotate(text, (index + offset, value), ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(PER_MODULE_OPERATORS)), PER_MODULE_OPERATORS)
    axes.axhline(1.0, color="0.55", lw=0.8, ls="--")
    axes.set_ylim(0, max(axes.get_ylim()[1], 1.45))
    axes.set_ylabel("penalty of a unit update")
    axes.set_title(
        "What each operator costs (median over modules): an update along dW, and a random one",
        loc="left",
        fontsize=10,
    )
    from matplotlib.patches import Patch

    handles = [
        Patch(color="tab:green", label="along the anchor (should be low)"),
        Patch(color="0.6", label="random direction"),
    ]
    axes.legend(handles=handles, loc="upper right", fontsize=8, ncols=2)


def layer_of(name: str) -> int | None:
    """The number of the layer that a module's name holds; None where it holds none."""
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


def _layered(modules: Sequence[ModuleReport]) -> bool:
    return all(layer_of(m.module) is not None for m in modules)


def _groups(modules: Sequence[ModuleReport]) -> dict[str, list[tuple[int, ModuleReport]]]:
    """Modules by the last part of their name, each with its layer (or its place) for the x-axis."""
    layered = _layered(modules)
    groups: dict[str, list[tuple[int, ModuleReport]]] = {}
    for place, module in enumerate(modules):
        layer = layer_of(module.module)
        x = layer if layered and layer is not None else place
        groups.setdefault(module.module.rsplit(".", 1)[-1], []).append((x, module))
    return groups
