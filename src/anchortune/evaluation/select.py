"""From rows to the items that are asked: bad rows counted, repeats dropped, one part, a sample."""

from __future__ import annotations

import hashlib
import logging
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from anchortune.config import DataSection
from anchortune.data.named import local_path
from anchortune.data.rows import RawRows, read_rows
from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.items import Item, part_of

logger = logging.getLogger(__name__)

#: Above this share of rows that cannot be used, a set is refused.
MAX_BAD_FRAC = 0.05


class BadRow(Exception):
    """A row that cannot be asked; the text is the reason under which it is counted."""


class Skip(Exception):
    """A row that is no part of the set; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class Source:
    """Where rows lie.

    Attributes:
        path: a file, the id of a Hub dataset, or one file of it (``hf://datasets/…``).
        subset: the config of a Hub dataset.
        split: its split.
        revision: its revision.
    """

    path: str
    subset: str | None = None
    split: str | None = None
    revision: str | None = None

    def rows(self, split: str) -> RawRows:
        """Its rows; ``split`` is taken where the source names none.

        Raises:
            DataError: it cannot be read.
            EvaluationError: a key of Hub datasets is given for a file.
        """
        given = [key for key in ("split", "subset", "revision") if getattr(self, key) is not None]
        if self.path.startswith("hf://"):
            given = [key for key in given if key != "revision"]
        elif not local_path(self.path).is_file():
            given = []
        if given:
            raise EvaluationError(
                f"{self.path} is a file: {given[0]} is for Hub datasets; leave it out."
            )
        return read_rows(
            DataSection(
                path=self.path,
                split=self.split or split,
                subset=self.subset,
                revision=self.revision,
            )
        )

    def summary(self, split: str) -> dict[str, Any]:
        """For records."""
        if local_path(self.path).is_file():
            return {"path": self.path}
        return {
            "path": self.path,
            "subset": self.subset,
            "split": None if self.path.startswith("hf://") else self.split or split,
            "revision": self.revision,
        }


@dataclass
class Collected:
    """Items of one set, each prompt once, and what was left out.

    Attributes:
        items: in the order of the source.
        rows: in the source.
        skipped: rows that are no part of the set (XSTest's unsafe prompts), by reason.
        repeats: rows whose prompt was there already.
        dropped: reason -> rows that could not be used.
    """

    items: list[Item] = field(default_factory=list)
    rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    repeats: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def collect(raw: RawRows, where: str, parse: Callable[[dict[str, Any]], Item]) -> Collected:
    """Every row as an item.

    Of rows with the same prompt the first is kept, under the category that most of them have.

    Args:
        raw: the rows.
        where: what they are called in errors.
        parse: a row's item; may raise ``BadRow`` or ``Skip``.

    Raises:
        DataError: more than ``MAX_BAD_FRAC`` of the rows cannot be used, or none can.
    """
    found = Collected(rows=len(raw.rows))
    items: dict[str, Item] = {}
    categories: dict[str, Counter[str]] = {}
    first_bad = ""
    for row, place in zip(raw.rows, raw.places, strict=True):
        try:
            if row is None:
                raise BadRow("not an object")
            item = parse(row)
        except Skip as reason:
            found.skipped[str(reason)] += 1
            continue
        except BadRow as reason:
            found.dropped[str(reason)] += 1
            first_bad = first_bad or f"{place}: {reason}"
            continue
        found.repeats += item.id in items
        items.setdefault(item.id, item)
        if item.category is not None:
            categories.setdefault(item.id, Counter())[item.category] += 1
    bad = found.dropped.total()
    if bad > MAX_BAD_FRAC * len(raw.rows) or not items:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in found.dropped.items())
        first = f"; the first is {first_bad}" if first_bad else ""
        raise DataError(
            f"{where}: {bad} of {len(raw.rows)} rows cannot be used ({reasons or 'none fits'})"
            f"{first}."
        )
    if bad:
        logger.warning("%s: %d rows left out, the first is %s", where, bad, first_bad)
    for key, item in items.items():
        votes = categories.get(key)
        best = votes.most_common(1)[0][0] if votes else None
        found.items.append(item if best == item.category else replace(item, category=best))
    return found


def select(
    items: list[Item],
    where: str,
    *,
    part: Literal["selection", "report", "all"],
    selection_frac: float,
    max_items: int | None,
    seed: int,
) -> list[Item]:
    """The items of one part, and of those a seeded sample, in the order of the source.

    Raises:
        EvaluationError: nothing is left.
    """
    kept = [i for i in items if part == "all" or part_of(i.goal, selection_frac) == part]
    if not kept:
        raise EvaluationError(
            f"{where}: none of its {len(items)} items is in the {part} part (selection_frac "
            f"{selection_frac:g}); ask for part: all, or give more items."
        )
    if max_items is not None and max_items < len(kept):
        picked = sorted(random.Random(seed).sample(range(len(kept)), max_items))
        kept = [kept[index] for index in picked]
    return kept


def digest(items: list[Item]) -> str:
    """The SHA-256 of what is asked, in order: prompts, targets and categories."""
    total = hashlib.sha256()
    for item in items:
        total.update(f"{item.id}\x00{item.target!r}\x00{item.category}\n".encode())
    return total.hexdigest()
