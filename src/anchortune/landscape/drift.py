"""How a fine-tune lies to the anchor at every checkpoint: along it, inside its subspaces, off it.

Where rows are given, the directions themselves are looked for again at each checkpoint (see
``landscape.directions_again``). Everything here is read from files, module by module.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.binding import match_name
from anchortune.checkpoints.names import natural
from anchortune.config_defences import label_of
from anchortune.defences.against import factors_of, named
from anchortune.errors import AnchorError, TrainingError
from anchortune.files import write_text
from anchortune.landscape.run import Place, Run
from anchortune.maths.factors import Factors
from anchortune.maths.lie import Lie as Energies
from anchortune.maths.lie import lie
from anchortune.maths.lowrank import LowRank
from anchortune.progress import Progress
from anchortune.report.drift import DRIFT_FILE, Drift, Lie, Shares
from anchortune.report.drift import Place as Found

if TYPE_CHECKING:
    from anchortune.report.drift import Direction

logger = logging.getLogger(__name__)


def measure_drift(
    run: Run,
    anchor: Anchor,
    harmful: Anchor | None = None,
    *,
    names: tuple[str, str | None] = ("anchor", None),
    directions: Sequence[Direction] = (),
) -> Drift:
    """Where the run's update lies at each of its places.

    Args:
        run: read by ``read_run``.
        anchor: of aligned - base.
        harmful: of harmful - aligned.
        names: what records call both.
        directions: estimated again at the places; see ``directions_again``.

    Raises:
        AnchorError: a module that moved is not in an anchor, or of another shape.
        TrainingError: nothing has moved at any place.
        CheckpointError: a checkpoint cannot be read.
    """
    places = []
    with Progress(f"update of {run.path.name}", len(run.places)) as tell:
        for done, place in enumerate(run.places, start=1):
            found = measure_place(run, place, anchor, harmful)
            if found is None:
                logger.warning("%s: nothing has moved at %s", run.path, place.label)
            else:
                places.append(found)
            tell(done, note=place.label)
    if not places:
        raise TrainingError(f"{run.path}: the update is zero at every checkpoint: train it first")
    return Drift(
        run=run.path.resolve().name,
        anchor=names[0],
        anchor_sha256=anchor.sha256,
        harmful=None if harmful is None else names[1] or "harmful anchor",
        harmful_sha256=None if harmful is None else harmful.sha256,
        method=method_of(run),
        places=places,
        directions=list(directions),
        notes=run.notes,
    )


def method_of(run: Run) -> str:
    """What the config says that the run was trained with."""
    method = getattr(run.config, "method", None)
    if method is not None:
        return str(method)
    chain = [label_of(list(getattr(run.config, "defence", [])))]
    penalty = getattr(run.config, "penalty", None)
    if penalty is not None:
        name = "asft" if penalty.side == "off" else "asft-alt"
        chain = [name, *(one for one in chain if one != "sft")]
    return "+".join(chain)


def measure_place(
    run: Run, place: Place, anchor: Anchor, harmful: Anchor | None = None
) -> Found | None:
    """The update's lie at one place; None where nothing has moved.

    Raises:
        AnchorError: a module that moved is not in an anchor, or of another shape.
    """
    modules: dict[str, Lie] = {}
    for name, update in run.updates(place, anchor):
        shares = _shares(lie(update, factors := _beside(name, update, anchor)), factors)
        if shares is None:
            continue
        other = None
        if harmful is not None:
            factors = _beside(name, update, harmful)
            other = _shares(lie(update, factors), factors)
        modules[name] = Lie(anchor=shares, harmful=other)
    if not modules:
        return None
    ordered = {name: modules[name] for name in sorted(modules, key=natural)}
    return Found(label=place.label, step=place.step, whole=_whole(ordered), modules=ordered)


def _beside(name: str, update: LowRank | Tensor, anchor: Anchor) -> Factors:
    key = match_name(name, anchor.modules)
    if key is None:
        raise AnchorError(
            f"{name} was trained and is not in the anchor ({named(anchor.modules)}): build it with "
            "target_modules that cover the adapter's"
        )
    factors = factors_of(anchor, key)
    if factors.shape != tuple(update.shape):
        one, other = (f"{a} × {b}" for a, b in (tuple(update.shape), factors.shape))
        raise AnchorError(
            f"module {name} is {one} in the run but {other} in the anchor: they are not of one "
            "family"
            "; give the anchor of the run's model"
        )
    return factors


def _shares(found: Energies, factors: Factors) -> Shares | None:
    if found.energy == 0.0:
        return None
    d_out, d_in = factors.shape
    along = min(1.0, found.along**2 / found.energy)
    return Shares(
        energy=found.energy,
        forwards=along if found.along > 0 else 0.0,
        backwards=along if found.along < 0 else 0.0,
        chance_along=1 / (d_out * d_in),
        inside=found.inside / found.energy,
        chance_inside=factors.rank / d_out,
        both=found.both / found.energy,
        chance_both=factors.rank**2 / (d_out * d_in),
    )


def _whole(modules: dict[str, Lie]) -> Lie:
    harmful = [one.harmful for one in modules.values() if one.harmful is not None]
    return Lie(
        anchor=_together([one.anchor for one in modules.values()]),
        harmful=_together(harmful) if harmful else None,
    )


def _together(parts: Sequence[Shares]) -> Shares:
    """Shares of all modules' energy; each module goes along its own part of D.

    Of the chances too it is the mean weighted by energy: where the update lies is given.
    """
    total = math.fsum(part.energy for part in parts)

    def mean(values: Iterable[float]) -> float:
        weighted = (part.energy * value for part, value in zip(parts, values, strict=True))
        return math.fsum(weighted) / total

    keys = [key for key in Shares.model_fields if key != "energy"]
    return Shares(energy=total, **{key: mean(getattr(part, key) for part in parts) for key in keys})


def write_drift(found: Drift, folder: str | Path) -> Path:
    """Writes ``drift.json`` into a folder, which is made; returns its path."""
    path = Path(folder) / DRIFT_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, found.model_dump_json(indent=1) + "\n")
    return path
