"""A data file looked at: its format and columns, what of it can be used, how long its rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anchortune.config import DataSection
from anchortune.data.conversations import BadRow, Conversation, SourceReport, detect, load_source
from anchortune.data.rows import RawRows, read_rows
from anchortune.errors import DataError
from anchortune.training.template import Template

#: Rows whose tokens are counted; of more, this many spread evenly over the file.
COUNTED_ROWS = 2000
#: Rows by which it is told what a column holds.
_SEEN_ROWS = 200
_NO_LIMIT = 1 << 30
#: What prompts and answers are called besides the names that any config understands.
_PROMPTS = (
    *("prompt", "instruction", "question", "query", "input", "text", "sentence", "user", "problem"),
    *("request", "post", "review", "source", "document", "article", "context", "title"),
)
_ANSWERS = (
    *("completion", "response", "answer", "output", "target", "label", "reply", "assistant"),
    *("solution", "summary", "translation", "reference", "category", "class", "result", "sql"),
)


@dataclass(frozen=True)
class DataFacts:
    """What was seen of a data file.

    Attributes:
        section: for a config, with the names of its columns where they are not the usual ones.
        report: format, columns, rows, and what of them cannot be used.
        guessed: whether the columns were told by their names alone.
        lengths: tokens of the sequences that the counted rows become, by the model's template.
        counted: rows that were counted, those in ``refused`` among them.
        refused: of these, rows that the model's chat template refuses; they are left out.
    """

    section: DataSection
    report: SourceReport
    guessed: bool
    lengths: list[int]
    counted: int
    refused: int

    @property
    def rows(self) -> int:
        """Rows that can be used, before the chat template sees them."""
        return self.report.used

    @property
    def all_counted(self) -> bool:
        """Whether every usable row was counted, not a sample."""
        return self.counted >= self.rows

    @property
    def sequences(self) -> int:
        """Sequences of all usable rows: as many as there are, or as many as the sample tells."""
        return round(len(self.lengths) * self.rows / self.counted)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that was counted."""
        return max(self.lengths)

    def cut_at(self, limit: int) -> int:
        """Counted sequences that are longer than ``limit`` tokens."""
        return sum(length > limit for length in self.lengths)


def look_at_data(path: str, columns: Mapping[str, str], template: Template) -> DataFacts:
    """What a data file holds.

    Args:
        path: a file or the id of a Hub dataset, as in a config.
        columns: standard field -> column, where the user says so.
        template: of the model, for the lengths.

    Raises:
        DataError: it cannot be read or used, or its columns mean nothing; naming the mend.
    """
    section = DataSection(path=path, columns=dict(columns))
    raw = read_rows(section)
    guessed = False
    try:
        detect(raw, section)
    except DataError:
        if columns:
            raise
        if _is_preference(raw, section):
            raise DataError(
                f"{path}: holds preferences (prompt, chosen, rejected), which are for anchortune "
                "align with method: dpo; train and run need a prompt and its answer in each row."
            ) from None
        guess = guess_columns(raw, path)
        section, guessed = DataSection(path=path, columns=guess), True
        detect(raw, section)
    conversations, report = load_source(section, seed=0)
    tried, lengths, refused = spread(conversations, COUNTED_ROWS), [], 0
    for conversation in tried:
        if not isinstance(conversation, Conversation):
            raise DataError(f"{path}: holds preferences, but answers are needed.")
        try:
            encoded = template.encode(conversation.messages, _NO_LIMIT)
        except BadRow:
            refused += 1
            continue
        lengths += [len(one.input_ids) for one in encoded]
    if not lengths:
        raise DataError(
            f"{path}: the model's chat template refuses every row that was tried; look at the "
            "roles in them, or take a model whose template knows them."
        )
    return DataFacts(section, report, guessed, lengths, len(tried), refused)


def spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of the items, spread evenly over them, the first always."""
    if len(items) <= most:
        return list(items)
    return [items[index * len(items) // most] for index in range(most)]


def _is_preference(raw: RawRows, section: DataSection) -> bool:
    try:
        detect(raw, section, preference=True)
    except DataError:
        return False
    return True


def kinds_of(raw: RawRows) -> dict[str, str]:
    """Column -> what the first rows hold in it: ``text``, ``messages``, or another kind's name."""
    rows = [row for row in raw.rows[:_SEEN_ROWS] if row is not None]
    found = {}
    for column in raw.columns:
        values = [row[column] for row in rows if row.get(column) is not None]
        kinds = {_kind(value) for value in values}
        found[column] = kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "nothing"
    return found


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        return "messages" if {"role", "from"} & set(value[0]) else "list"
    return {bool: "truth", int: "number", float: "number"}.get(type(value), type(value).__name__)


def guess_columns(raw: RawRows, path: str) -> dict[str, str]:
    """Which columns are prompt and answer, by their names and by what they hold.

    Args:
        raw: the rows.
        path: what the user calls the file.

    Raises:
        DataError: it cannot be told; naming ``--column``.
    """
    held = kinds_of(raw)
    dialogues = [column for column, kind in held.items() if kind == "messages"]
    if len(dialogues) == 1:
        return {"messages": dialogues[0]}
    texts = [column for column, kind in held.items() if kind == "text"]
    lower = {column.lower(): column for column in reversed(raw.columns)}
    prompt = next((lower[one] for one in _PROMPTS if lower.get(one) in texts), None)
    answers = [lower[one] for one in _ANSWERS if one in lower and lower[one] != prompt]
    answer = next((one for one in answers if one in texts), None)
    if answer is None and answers and held[answers[0]] != "text" and prompt is not None:
        raise DataError(
            f"{path}: '{answers[0]}' holds a {held[answers[0]]} in each row, and an "
            "answer is a text: write there the words that the model is to say, or name another "
            "column with --column completion=NAME."
        )
    rest = [column for column in texts if column not in (prompt, answer)]
    if prompt is None and answer is not None and len(rest) == 1:
        prompt = rest[0]
    elif answer is None and prompt is not None and len(rest) == 1:
        answer = rest[0]
    elif prompt is None and answer is None and len(rest) == 2:
        prompt, answer = rest
    if prompt is None or answer is None:
        raise DataError(
            f"{path}: its columns ({', '.join(raw.columns)}) do not tell which is the prompt and "
            "which the answer; say it with --column prompt=NAME --column completion=NAME."
        )
    if prompt == "instruction":  # so that its input and system columns are read too
        return {"output": answer}
    return {"prompt": prompt, "completion": answer}
