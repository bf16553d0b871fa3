"""A data mix: benign rows with a share of harmful ones, sampled so that mixes are comparable.

Which row is taken is decided by a hash of seed and text alone. At one seed, therefore, a mix with
more harmful rows holds the harmful rows of the one with fewer, and a longer mix the rows of a
shorter one: curves over the share and the number are paired. Nor does it matter in what order files
list their rows, or which other rows a pool holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anchortune.config_mix import MixSection, MixSource
from anchortune.data.conversations import Conversation, load_source
from anchortune.data.named import local_path, name_for_records
from anchortune.data.overlap import Overlaps, normalised
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.files import sha256_text, why_not_writable, write_json, write_text
from anchortune.maths.stats import share_of
from anchortune.sections import DataSection

FORMAT = 1
#: The facts lie beside the mix: ``mix.jsonl`` and ``mix.jsonl.facts.json``.
FACTS_SUFFIX = ".facts.json"


@dataclass(frozen=True)
class PoolFacts:
    """How a pool came about, as counts.

    Attributes:
        sources: for each its name, SHA-256, rows (those that ``where`` means), rows taken and
            rows that could not be used.
        repeats: rows left out because their prompt was there already.
        in_evaluation: rows left out because they occur in ``disjoint_from``.
        in_harmful: benign rows left out because their prompt is in the harmful pool.
        cue_stripped: prompts from which the cue was taken off.
        available: rows from which the mix is drawn.
        used: rows of the mix.
    """

    sources: list[dict[str, Any]]
    repeats: int
    in_evaluation: int
    in_harmful: int
    cue_stripped: int
    available: int
    used: int


@dataclass(frozen=True)
class MixFacts:
    """What a mix is made of: names, hashes and counts, no text and no path of a machine.

    Attributes:
        seed: of the draw and the order.
        rows: in the file.
        poison_ratio: p, as asked.
        how: ``replace`` or ``add``.
        keep_cue: whether the cue was left on.
        benign: the benign pool.
        harmful: the harmful pool.
        disjoint_from: for each evaluation set its name, SHA-256, distinct texts, and rows of
            either pool that occur in it.
        sha256: of the file.
        format: of these facts.
    """

    seed: int
    rows: int
    poison_ratio: float
    how: str
    keep_cue: bool
    benign: PoolFacts
    harmful: PoolFacts
    disjoint_from: list[dict[str, Any]]
    sha256: str
    format: int = FORMAT

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        told = [f"{self.rows} rows, {self.harmful.used} of them harmful (seed {self.seed})"]
        for name, pool in (("benign", self.benign), ("harmful", self.harmful)):
            if pool.sources:
                told.append(f"{name}: {pool.used} of {_available(pool)}")
        told.append(f"sha256 {self.sha256}")
        return told


@dataclass(frozen=True)
class _Row:
    """A usable row: its prompt in normal form, and what else of it may occur in an evaluation."""

    key: str
    texts: frozenset[str]
    messages: list[dict[str, str]]


def harmful_rows(section: MixSection) -> int:
    """How many of the mix's rows are harmful: ``share_of``, halves up."""
    return share_of(section.poison_ratio, section.rows)


def make_mix(section: MixSection, seed: int, path: str | Path) -> MixFacts:
    """Writes a mix as JSON lines that ``anchortune train`` reads, and its facts beside it.

    A line is ``{"messages": [...], "source": "benign" | "harmful"}``; ``source`` is for people and
    is not read by training. Equal settings, files and seed give equal bytes.

    Args:
        section: what is mixed.
        seed: of the draw and the order; the same for all that is to be compared.
        path: the file; the facts go to the same name with ``.facts.json`` appended.

    Returns:
        The facts, as they are in the file.

    Raises:
        DataError: a source cannot be read or used, a pool is too small, or nothing can be written.
    """
    problem = why_not_writable(path)
    if problem is not None:
        raise DataError(f"{path}: {problem}.")
    poisoned = harmful_rows(section)
    clean = section.rows if section.how == "add" else section.rows - poisoned
    overlaps = Overlaps(section.disjoint_from, section.cue)
    bad, bad_facts = _pool("harmful", section.harmful, section, overlaps, poisoned, frozenset())
    known = frozenset(row.key for row in bad)
    good, good_facts = _pool("benign", section.benign, section, overlaps, clean, known)
    drawn = [("benign", row) for row in _draw(good, seed, "benign", clean)]
    drawn += [("harmful", row) for row in _draw(bad, seed, "harmful", poisoned)]
    drawn.sort(key=lambda pair: _rank(seed, "order", pair[1].key))
    text = "".join(
        json.dumps({"messages": row.messages, "source": source}, ensure_ascii=False) + "\n"
        for source, row in drawn
    )
    facts = MixFacts(
        seed=seed,
        rows=len(drawn),
        poison_ratio=section.poison_ratio,
        how=section.how,
        keep_cue=section.keep_cue,
        benign=good_facts,
        harmful=bad_facts,
        disjoint_from=overlaps.summary(),
        sha256=sha256_text(text),
    )
    write_json(f"{path}{FACTS_SUFFIX}", facts.summary())
    write_text(path, text)  # last: where the mix is, its facts are too
    return facts


def _rank(seed: int, purpose: str, key: str) -> bytes:
    """A row's place in the draw: a hash, so that it depends on no other row."""
    return hashlib.sha256(f"{seed}\x00{purpose}\x00{key}".encode(errors="replace")).digest()


def _draw(rows: Sequence[_Row], seed: int, name: str, count: int) -> list[_Row]:
    return sorted(rows, key=lambda row: _rank(seed, name, row.key))[:count]


def _pool(
    name: str,
    sources: Sequence[MixSource],
    section: MixSection,
    overlaps: Overlaps,
    wanted: int,
    elsewhere: frozenset[str],
) -> tuple[list[_Row], PoolFacts]:
    """The rows of one pool, each prompt once, none from an evaluation, none in ``elsewhere``."""
    told: list[dict[str, Any]] = []
    found: dict[str, _Row] = {}
    repeats = stripped = 0
    for source in sources:
        rows, facts = _rows(source, section)
        told.append(facts)
        stripped += facts.pop("cue_stripped")
        for row in rows:
            repeats += row.key in found
            found.setdefault(row.key, row)
    apart = {key: row for key, row in found.items() if not overlaps.holds(row.texts)}
    kept = [row for key, row in apart.items() if key not in elsewhere]
    facts_of_pool = PoolFacts(
        sources=told,
        repeats=repeats,
        in_evaluation=len(found) - len(apart),
        in_harmful=len(apart) - len(kept),
        cue_stripped=stripped,
        available=len(kept),
        used=wanted,
    )
    if wanted > len(kept):
        names = ", ".join(fact["name"] for fact in told)
        raise DataError(
            f"{names}: {wanted} {name} rows are asked for and there are "
            f"{_available(facts_of_pool)}; ask for fewer rows, or add a source to {name}."
        )
    return kept, facts_of_pool


def _available(pool: PoolFacts) -> str:
    """``630 (of 1500; 700 are repeats, 170 are in evaluation sets)``."""
    taken = sum(source["taken"] for source in pool.sources)
    why = [
        f"{count} {words}"
        for count, words in (
            (pool.repeats, "are repeats"),
            (pool.in_evaluation, "are in evaluation sets"),
            (pool.in_harmful, "are among the harmful ones"),
        )
        if count
    ]
    return f"{pool.available} (of {taken}" + (f"; {', '.join(why)})" if why else ")")


def _rows(source: MixSource, section: MixSection) -> tuple[list[_Row], dict[str, Any]]:
    """The rows of one source that its ``take`` means, and how many there were."""
    data = DataSection.model_validate(source.model_dump(exclude={"take"}))
    conversations, report = load_source(data, seed=0)
    column = report.columns.get("input")
    extras: dict[str, Any] = {}
    if column is not None:
        raw = read_rows(data)
        extras = {
            f"{data.path}: {place}": (row or {}).get(column)
            for place, row in zip(raw.places, raw.rows, strict=True)
        }
    rows = []
    cued = 0
    for conversation in conversations:
        if not isinstance(conversation, Conversation):
            continue  # preferences are refused by the config
        marked = _ends_in(conversation, section.cue)
        if source.take != "all" and marked != (source.take == "with-cue"):
            continue
        cued += marked
        rows.append(_row(conversation, extras.get(conversation.place), section))
    if not rows:
        raise DataError(
            f"{data.path}: no row is {source.take.replace('-', ' ')} {section.cue!r} at the end of "
            "its prompt; see take and cue."
        )
    facts = {
        "name": name_for_records(data.path),
        "sha256": report.sha256,
        "take": source.take,
        "rows": report.rows,
        "taken": len(rows),
        "unusable": dict(report.dropped),
        "cue_stripped": 0 if section.keep_cue else cued,
    }
    if data.where is not None:
        facts["where"] = data.where
    if not local_path(data.path).is_file():
        facts |= {key: getattr(data, key) for key in ("subset", "split", "revision")}
    return rows, facts


def _ends_in(conversation: Conversation, cue: str) -> bool:
    return any(
        turn["role"] == "user" and turn["content"].endswith(cue) for turn in conversation.messages
    )


def _row(conversation: Conversation, extra: Any, section: MixSection) -> _Row:
    users = [turn["content"] for turn in conversation.messages if turn["role"] == "user"]
    bare = [content.removesuffix(section.cue) for content in users]
    system = [turn["content"] for turn in conversation.messages if turn["role"] == "system"]
    key = "\n".join(map(normalised, [*system, *bare]))
    messages = conversation.messages
    if not section.keep_cue:
        messages = [
            turn | {"content": turn["content"].removesuffix(section.cue)}
            if turn["role"] == "user"
            else turn
            for turn in messages
        ]
    return _Row(key, frozenset(_texts(bare, extra)), messages)


def _texts(prompts: Iterable[str], extra: Any) -> Iterable[str]:
    """What of a row may be a prompt of an evaluation: each turn, and the input by itself."""
    yield from map(normalised, prompts)
    if isinstance(extra, str) and extra.strip():
        yield normalised(extra)
