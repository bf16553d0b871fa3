"""What a judge found in training data, by row number and never by text; training obeys it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anchortune.files import sha256_text

Action = Literal["report", "drop", "stop"]

#: Beside ``record.json``, so that a resumed run is not judged again.
SCREEN_FILE = "screen.json"


@dataclass(frozen=True)
class HarmfulRow:
    """One row that looks harmful.

    Attributes:
        place: in its source: ``line 12`` or ``row 12``, from 1.
        score: the judge's highest number over the row's answers, where it gives one.
        categories: the judge's names for it, where it gives any.
    """

    place: str
    score: float | None = None
    categories: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For records: plain values, without what is not known."""
        found: dict[str, Any] = {"place": self.place}
        if self.score is not None:
            found["score"] = round(self.score, 6)
        return found | ({"categories": self.categories} if self.categories else {})


@dataclass(frozen=True)
class ScreenedSource:
    """What was found in one source.

    Attributes:
        path: as in the config.
        sha256: of its content.
        rows: in the source.
        judged: rows with a verdict on every answer, or one that is harmful.
        harmful: those that look harmful, in order.
        unscored: rows of which the judge could not tell.
        unread: rows that hold no usable answer, and ones that a sample left out.
    """

    path: str
    sha256: str
    rows: int
    judged: int
    harmful: list[HarmfulRow]
    unscored: int
    unread: int

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "rows": self.rows,
            "judged": self.judged,
            "harmful": [row.summary() for row in self.harmful],
            "unscored": self.unscored,
            "unread": self.unread,
        }

    def line(self) -> str:
        """For people: one line."""
        text = (
            f"{self.path}: {len(self.harmful)} of {self.judged} rows look harmful, "
            f"{self.unscored} unscored"
        )
        return text + (f", {self.unread} not read" if self.unread else "")


@dataclass(frozen=True)
class Screened:
    """What was found in all of a run's data, and what is to be done about it.

    Attributes:
        judge: its identity.
        action: ``drop`` leaves the harmful rows out.
        sources: in the order of the config.
        key: of everything that decides what is found; see ``screen.json``.
    """

    judge: dict[str, Any]
    action: Action
    sources: list[ScreenedSource]
    key: str = ""

    @property
    def harmful(self) -> int:
        """Rows that look harmful, over all sources."""
        return sum(len(source.harmful) for source in self.sources)

    @property
    def harmful_frac(self) -> float:
        """Their share of the judged rows; 0 where none was judged."""
        judged = sum(source.judged for source in self.sources)
        return self.harmful / judged if judged else 0.0

    def omitted(self) -> list[frozenset[str]]:
        """By source, the places of the rows to leave out."""
        if self.action != "drop":
            return [frozenset() for _ in self.sources]
        return [frozenset(row.place for row in source.harmful) for source in self.sources]

    def identity(self) -> dict[str, Any]:
        """What of it decides a run's result: the judge and the rows left out."""
        places = "\n".join("\t".join(sorted(places)) for places in self.omitted())
        return {"judge": self.judge, "omitted_sha256": sha256_text(places)}

    def summary(self) -> dict[str, Any]:
        """For records: plain values; ``screened_from`` reads them back."""
        return {
            "key": self.key,
            "judge": self.judge,
            "action": self.action,
            "dropped": sum(len(places) for places in self.omitted()),
            "sources": [source.summary() for source in self.sources],
        }


def screened_from(value: dict[str, Any]) -> Screened:
    """What ``Screened.summary`` wrote.

    Raises:
        KeyError, TypeError: it is something else.
    """

    def source(found: dict[str, Any]) -> ScreenedSource:
        rows = [
            HarmfulRow(row["place"], row.get("score"), row.get("categories", []))
            for row in found["harmful"]
        ]
        return ScreenedSource(**(found | {"harmful": rows}))

    sources: Sequence[dict[str, Any]] = value["sources"]
    made = [source(found) for found in sources]
    return Screened(value["judge"], value["action"], made, value["key"])
