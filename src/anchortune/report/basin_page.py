"""``basin.html``: a safety basin on one page that asks nothing of the network, and its files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from anchortune.errors import DataError
from anchortune.files import write_text
from anchortune.maths.stats import wilson
from anchortune.report import view
from anchortune.report.basin import BASIN_FILE, Basin, Count, Curve
from anchortune.report.basin_plots import draw, pictures, save
from anchortune.report.basin_table import (
    EPL_HEAD,
    PAPER_HEAD,
    RATIO_HEAD,
    epl_rows,
    notes,
    paper_rows,
    ratio_rows,
    render,
)
from anchortune.report.basin_words import alpha, headline, named
from anchortune.report.page import environment
from anchortune.report.words import MISSING, percent, shown, span

PAGE_FILE = "basin.html"
TABLE_FILE = "basin.md"


@dataclass(frozen=True)
class Picture:
    """A picture as base64 of its SVG, and what it says to who does not see it."""

    data: str
    alt: str


@dataclass(frozen=True)
class Sheet:
    """A table: its caption, heads and rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Part:
    """A section of the page."""

    id: str
    title: str
    texts: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Sheet] = field(default_factory=list)
    places: Sequence[Sheet] = field(default_factory=list)


def holds_basin(path: Path) -> bool:
    """Whether a file is a basin's and no run's: by its name, or, of another name, by its keys."""
    if path.name == BASIN_FILE:
        return True
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False  # whoever reads it says what is wrong
    return isinstance(found, dict) and {"curves", "tolerance"} <= set(found)


def read_basin(path: str | Path) -> Basin:
    """Reads ``basin.json``, or the one in a folder.

    Raises:
        DataError: there is none, or it is not one of this version.
    """
    file = Path(path)
    file = file / BASIN_FILE if file.is_dir() else file
    try:
        return Basin.model_validate_json(file.read_text("utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{file}: there is no such file; run anchortune basin, which writes one."
        ) from None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(str(part) for part in reason["loc"]) if reason else ""
        told = f"{where}: {reason['msg']}" if where and reason else "no JSON of a basin"
        raise DataError(
            f"{file}: not a basin that this version reads ({told}); run anchortune basin again."
        ) from None


def present(
    basin: Basin, folder: str | Path, endings: Sequence[str] = (".png", ".svg")
) -> list[Path]:
    """Writes all that is shown of a basin: its pictures, ``basin.md`` and ``basin.html``.

    The same basin gives the same files, byte for byte.

    Returns:
        The paths, the page last.

    Raises:
        AnchortuneError: an ending that no plot has.
    """
    paths = draw(basin, folder, endings)
    table, page = Path(folder) / TABLE_FILE, Path(folder) / PAGE_FILE
    write_text(table, render(basin, "markdown"))
    write_text(page, page_of(basin))
    return [*paths, table, page]


def redraw(path: str | Path, endings: Sequence[str] = (".png", ".svg")) -> list[Path]:
    """Draws again from ``basin.json`` alone, beside it.

    Raises:
        DataError: there is none, or not of this version.
    """
    basin = read_basin(path)
    place = Path(path)
    return present(basin, place if place.is_dir() else place.parent, endings)


def page_of(basin: Basin) -> str:
    """The page as HTML."""
    context = {
        "title": f"The safety basin of {shown(basin.model)}",
        "meta": _meta(basin),
        "headline": headline(basin),
        "sections": _sections(basin),
        "facts": view.facts(
            {
                "evaluations": basin.evaluations,
                "weights moved": basin.modules,
                "settings": basin.settings,
                "platform": basin.platform,
                "timings": basin.timings,
            }
        ),
    }
    html = environment().get_template("basin.html.j2").render(**context)
    return html.encode("utf-8", errors="replace").decode()


def _meta(basin: Basin) -> str:
    places, full = (basin.evaluations.get(key) for key in ("places", "full_grid"))
    told = f"Judged by {shown(basin.judge)} on {shown(basin.set)}"
    if places is not None:
        told += f"; the model was asked at {places} places"
        told += f", where a full grid has {full}" if full else ""
    return told + "."


def _sections(basin: Basin) -> list[Part]:
    drawn = {name: _picture(make(), name, basin) for name, make in pictures(basin).items()}
    parts = [
        Part(
            "width",
            "How wide it is",
            notes(basin),
            [drawn["epl"]] if "epl" in drawn else [],
            _tables(basin),
        )
    ]
    if "curves" in drawn:
        texts = [
            "Going outwards from the model where it stands (α = 0). The basin ends where the "
            "harmful score first passes the dotted line. Further out a model that only babbles "
            "scores low again, which is no safety: see the coherent answers. Each panel has a "
            "scale of its own."
        ]
        places = [_places(curve) for curve in basin.curves]
        parts.append(Part("curves", "Along each direction", texts, [drawn["curves"]], [], places))
    maps = [picture for name, picture in drawn.items() if name.startswith("map")]
    if maps:
        texts = [
            "Each cell is the model moved along both directions at once; the black line is the "
            "edge of the basin. A path shows where a training went, seen on this plane alone: "
            "most of its update usually lies off the plane, so the cell under it is not the "
            "harmful score of that run."
        ]
        parts.append(Part("maps", "Two directions at once", texts, maps))
    return parts


def _tables(basin: Basin) -> list[Sheet]:
    found = [Sheet("How far each direction goes", EPL_HEAD, epl_rows(basin))]
    if basin.ratios:
        found.append(Sheet("One EPL over another", RATIO_HEAD, ratio_rows(basin)))
    if {"aligned", "harmful"} <= {epl.direction for epl in basin.epl}:
        found.append(Sheet("Beside the paper's Table 7", PAPER_HEAD, paper_rows(basin)))
    return found


def _places(curve: Curve) -> Sheet:
    tasks = list(dict.fromkeys(task for point in curve.points for task in point.tasks))
    rows = [
        (
            alpha(float(point.alpha)).replace("-", "−"),  # type: ignore[arg-type]
            *_told(point.harm),
            _told(point.coherent)[0],
            *(_told(point.tasks.get(task))[0] for task in tasks),
        )
        for point in curve.points
    ]
    draw_of = "" if curve.draw is None else f", draw {curve.draw}"
    head = ("α", "harmful score", "95 %", "n", "coherent", *(shown(task) for task in tasks))
    return Sheet(named(curve.direction) + draw_of, head, rows)


def _told(count: Count | None) -> tuple[str, str, str]:
    if count is None or not count.of:
        return MISSING, MISSING, MISSING
    rate = wilson(count.count, count.of)
    return percent(rate.value), span(rate.low, rate.high), str(count.of)


def _picture(figure: Any, name: str, basin: Basin) -> Picture:
    stream = io.BytesIO()
    save(figure, stream, ".svg")
    alts = {
        "epl": "Width of the safety basin by direction and side. " + " ".join(headline(basin)),
        "curves": "Harmful score, coherence and accuracy over α in "
        + "; ".join(dict.fromkeys(named(curve.direction) for curve in basin.curves)),
    }
    if name in alts:
        return Picture(base64.b64encode(stream.getvalue()).decode(), alts[name])
    one = basin.maps[int(name[4:] or 1) - 1]
    alt = f"Harmful score over {named(one.x)} and {named(one.y)}"
    paths = ", ".join(shown(path.label) for path in one.trajectories)
    return Picture(
        base64.b64encode(stream.getvalue()).decode(),
        alt + (f", with paths of {paths}" * bool(paths)),
    )
