"""Whether a text occurs in an evaluation's prompts, whatever its case, spacing and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from anchortune.data.conversations import instruction_text
from anchortune.data.named import local_path, name_for_records
from anchortune.data.rows import read_rows
from anchortune.errors import DataError
from anchortune.files import parse_json, sha256_file
from anchortune.sections import RowsSection

#: Columns that hold a prompt, or the text that a task puts a prompt round.
COLUMNS = frozenset(
    {
        *("prompt", "goal", "instruction", "question", "query", "behavior", "forbidden_prompt"),
        *("sentence", "text", "tweet", "post", "input", "context"),
    }
)
_BESIDE = ("input", "context")
_NO_WORD = re.compile(r"[\W_]+")


def normalised(text: str) -> str:
    """``text`` in lower case, compatible characters made one, words parted by single spaces.

    A text without any letter or digit keeps its characters.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _NO_WORD.sub(" ", folded).strip() or "".join(folded.split())


class Overlaps:
    """The texts of evaluation sets, in normal form.

    Args:
        places: of the sets.
        cue: a mark taken off the end of their prompts first.

    Raises:
        DataError: a set cannot be read, or no column of it is known to hold prompts.
    """

    def __init__(self, places: Sequence[RowsSection], cue: str) -> None:
        self._sets = [_read(place, cue) for place in places]
        self._hits = [0] * len(places)

    def holds(self, texts: Collection[str]) -> bool:
        """Whether one of ``texts``, in normal form, is in a set; counts the row in each such."""
        found = False
        for index, (_, known) in enumerate(self._sets):
            if not known.isdisjoint(texts):
                self._hits[index] += 1
                found = True
        return found

    def summary(self) -> list[dict[str, Any]]:
        """For records: by set its name, hash, distinct texts, and rows found to be in it."""
        return [
            facts | {"texts": len(known), "rows_left_out": hits}
            for (facts, known), hits in zip(self._sets, self._hits, strict=True)
        ]


def _read(place: RowsSection, cue: str) -> tuple[dict[str, Any], frozenset[str]]:
    rows, sha256 = _rows(place)
    named = place.columns.get("prompt")
    try:
        texts = [text for text in _prompts(rows, named) if text.strip()]
    except RecursionError:
        raise DataError(
            f"{place.path}: its lists and objects lie too deep in each other; write them flatter."
        ) from None
    found = {normalised(text.removesuffix(cue)) for text in texts} - {""}
    if not found:
        columns = ", ".join(dict.fromkeys(key for row in rows for key in row))
        if named is not None:
            raise DataError(
                f"{place.path}: there is no text under '{named}', which columns names for the "
                f"prompt; name one of its columns ({columns})."
            )
        raise DataError(
            f"{place.path}: none of its columns ({columns}) is known to hold prompts; name one "
            "with columns: {prompt: …}."
        )
    facts: dict[str, Any] = {"name": name_for_records(place.path), "sha256": sha256}
    if place.where is not None:
        facts["where"] = place.where
    return facts, frozenset(found)


def _rows(place: RowsSection) -> tuple[list[Mapping[str, Any]], str]:
    """The rows of a set; a JSON object that is no list of rows counts as one row."""
    if place.path.endswith(".json") and place.where is None:
        path = local_path(place.path)
        if path.is_file():
            try:
                value = parse_json(path.read_bytes().decode("utf-8-sig"))
            except ValueError:
                value = None  # JSON lines, or what read_rows tells
            if isinstance(value, dict):
                return [value], sha256_file(path)
    raw = read_rows(place)
    return [row for row in raw.rows if row is not None], raw.sha256


def _prompts(value: Any, named: str | None) -> Iterator[str]:
    """Every text under a known key, or under ``named``, at any depth.

    Of ``instruction`` and ``input`` in one row the instruction may be that of the whole task, so
    both together and the input are a prompt there, and the instruction is not.
    """
    if isinstance(value, Mapping):
        both = _joined(value) if named is None else None
        if both is not None:
            yield from both
        for key, item in value.items():
            if both is not None and key == "instruction":
                continue
            yield from _under(key, item, named)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _prompts(item, named)


def _under(key: str, item: Any, named: str | None) -> Iterator[str]:
    lower = key.lower()
    wanted = key == named if named is not None else {lower, lower.removesuffix("s")} & COLUMNS
    if isinstance(item, str):
        if wanted:
            yield item
    elif wanted and isinstance(item, list) and all(isinstance(text, str) for text in item):
        yield from item
    elif lower in ("messages", "conversations") and isinstance(item, list):
        yield from _turns(item)
    else:
        yield from _prompts(item, named)


def _joined(row: Mapping[str, Any]) -> list[str] | None:
    """Instruction and input as one prompt; None where a row has not both."""
    instruction = row.get("instruction")
    extra = next((row[key] for key in _BESIDE if isinstance(row.get(key), str)), "")
    if not isinstance(instruction, str) or not extra.strip():
        return None
    return [instruction_text(instruction, extra)]


def _turns(turns: list[Any]) -> Iterator[str]:
    """What the user says in a chat."""
    for turn in turns:
        if isinstance(turn, Mapping) and turn.get("role", turn.get("from")) in ("user", "human"):
            content = turn.get("content", turn.get("value"))
            if isinstance(content, str):
                yield content
