"""The picture of a drift, from ``drift.json`` alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.errors import AnchortuneError
from anchortune.files import atomic_path
from anchortune.report.drift import Drift, Lie, Place, Shares
from anchortune.report.sweep_drawing import DARK, GREY, Style, styles
from anchortune.untrusted import drawn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")
_FLOOR = 1e-9
_DIRECTIONS = {"aligned": "alignment direction (refusals)", "harmful": "harmful direction (pairs)"}


def plot_drift(found: Drift, path: str | Path) -> None:
    """Draws a drift as PNG, SVG or PDF, by the ending of ``path``; SVG reproducibly.

    Raises:
        AnchortuneError: another ending.
    """
    target = Path(path)
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise AnchortuneError(f"{path}: a plot ends in .png, .svg or .pdf")
    from matplotlib import rc_context

    with rc_context({"svg.hashsalt": "anchortune", "font.size": 9}):
        figure = _figure(found)
        metadata = {"Date": None} if ending == ".svg" else None
        with atomic_path(target) as temporary:
            figure.savefig(temporary, dpi=150, format=ending[1:], metadata=metadata)


def _figure(found: Drift) -> Figure:
    from matplotlib.figure import Figure

    turns = bool(found.directions)
    figure = Figure(figsize=(9, 9.6 if turns else 6.8), layout="constrained")
    harmful = f"; harmful anchor {found.harmful}" if found.harmful else ""
    figure.suptitle(
        drawn(f"Drift of {found.run} ({found.method}), anchor {found.anchor}{harmful}"), fontsize=11
    )
    panels = figure.subplots(3 if turns else 2, 1)
    _over_steps(panels[0], found)
    _by_layer(panels[1], found)
    if turns:
        _turning(panels[2], found)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _steps(places: Sequence[Any]) -> list[float]:
    """Steps of places; one without goes on by one after the last."""
    found: list[float] = []
    for place in places:
        found.append(float(place.step) if place.step is not None else (found or [0.0])[-1] + 1)
    return found


def _over_steps(axes: Any, found: Drift) -> None:
    xs = _steps(found.places)
    lines: list[tuple[str, Callable[[Lie], float | None], Callable[[Lie], float | None]]] = [
        ("inside the anchor's output subspaces", _of("inside"), _of("chance_inside")),
        ("along the anchor, forwards", _of("forwards"), _of("chance_along")),
        ("along the anchor, backwards", _of("backwards"), _of("chance_along")),
    ]
    if found.harmful is not None:
        lines += [
            ("inside the harmful subspaces", _of("inside", True), _of("chance_inside", True)),
            ("along the harmful direction", _of("forwards", True), _of("chance_along", True)),
        ]
    looks = styles([name for name, _, _ in lines])
    for name, value, chance in lines:
        _line(axes, xs, [value(p.whole) for p in found.places], looks[name], name)
        ys = [chance(p.whole) or _FLOOR for p in found.places]
        axes.plot(xs, ys, color=looks[name].colour, lw=1, ls="--", alpha=0.7)
    axes.set_yscale("log")
    axes.set_ylim(top=1.4)
    axes.set_title(
        "Share of the update's energy (dashed: by chance; forwards: on from the base model)",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _of(key: str, harmful: bool = False) -> Callable[[Lie], float | None]:
    def read(lie: Lie) -> float | None:
        shares: Shares | None = lie.harmful if harmful else lie.anchor
        return None if shares is None else float(getattr(shares, key))

    return read


def _line(
    axes: Any, xs: Sequence[float], ys: Sequence[float | None], look: Style, label: str
) -> None:
    # A share of 0 has no place on a logarithmic axis: the line breaks there.
    shown = [y if y else float("nan") for y in ys]
    axes.plot(
        xs, shown, color=look.colour, marker=look.marker, ms=4, lw=1.3, label=label,
        mfc="white" if look.hollow else look.colour,
    )  # fmt: skip


def _by_layer(axes: Any, found: Drift) -> None:
    last: Place = found.places[-1]
    groups: dict[str, list[tuple[int, str]]] = {}
    for at, name in enumerate(last.modules):
        number = next((int(part) for part in name.split(".") if part.isdigit()), at)
        groups.setdefault(name.rsplit(".", 1)[-1], []).append((number, name))
    looks = styles(sorted(groups))
    for group, members in sorted(groups.items()):
        members.sort()
        xs = [x for x, _ in members]
        shares = [last.modules[name].anchor for _, name in members]
        look = looks[group]
        axes.plot(
            xs, [one.inside for one in shares], color=look.colour, marker=look.marker, ms=4, lw=1.3,
            label=drawn(group),
        )  # fmt: skip
        chances = [one.chance_inside for one in shares]
        axes.plot(xs, chances, color=look.colour, lw=1, ls="--", alpha=0.7)
    axes.set_ylim(bottom=0)
    axes.set_title(
        f"By layer, {drawn(last.label)}: share inside the anchor's output subspace "
        "(dashed: by chance)",
        loc="left",
        fontsize=10,
    )
    axes.set_xlabel("layer")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _turning(axes: Any, found: Drift) -> None:
    looks = styles([one.name for one in found.directions])
    for direction in found.directions:
        look, label = looks[direction.name], _DIRECTIONS[direction.name]
        xs = [0.0, *_steps(direction.turns)]
        ys = [1.0, *(turn.cosine for turn in direction.turns)]
        axes.plot(xs, ys, color=look.colour, marker=look.marker, ms=4, lw=1.3, label=label)
        axes.axhline(
            direction.noise, color=look.colour, lw=1, ls=":",
            label=f"two halves of its rows at step 0: {direction.noise:.2f}",
        )  # fmt: skip
    chance = max(direction.chance for direction in found.directions)
    axes.axhline(0.0, color=GREY, lw=0.8, label=f"chance: ±{chance:.1e}")
    axes.set_title(
        "The direction estimated again, cosine with the same estimate at step 0",
        loc="left",
        fontsize=10,
        color=DARK,
    )
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
