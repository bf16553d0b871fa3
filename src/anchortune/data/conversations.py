"""Rows as conversations: format detection, checks, and a count of every row left out and why."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anchortune.config import DataSection
from anchortune.data.rows import SURPLUS, RawRows, read_rows
from anchortune.errors import DataError

logger = logging.getLogger(__name__)

Message = dict[str, str]

#: Standard name of a field -> column names it is found under, the first that exists.
_ALIASES: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages", "conversations")},
    "preference": {
        "prompt": ("prompt", "question", "instruction"),
        "chosen": ("chosen",),
        "rejected": ("rejected",),
    },
    "instruction": {
        "instruction": ("instruction",),
        "output": ("output", "response", "answer", "completion"),
        "input": ("input", "context"),
        "system": ("system",),
    },
    "prompt_completion": {
        "prompt": ("prompt", "question", "query"),
        "completion": ("completion", "response", "answer", "output"),
        "system": ("system",),
    },
}
_OPTIONAL = {"input", "system"}
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


_MOST_REASONS = 8
"""Kinds of unusable rows that are told apart; what somebody wrote in a row may be part of one."""
_OTHER = "other reasons"


class BadRow(Exception):
    """A row that cannot be used; the text is the reason under which it is counted."""


@dataclass(frozen=True)
class Conversation:
    """Messages of which every assistant turn is an answer to learn.

    Attributes:
        messages: ``{"role": system | user | assistant, "content": text}``, the last by the
            assistant.
        place: ``file: line 12``.
    """

    messages: list[Message]
    place: str


@dataclass(frozen=True)
class Preference:
    """A prompt with a better and a worse answer, each as messages."""

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    place: str


@dataclass
class SourceReport:
    """What one source gave: counts, never silently less than the file holds.

    Attributes:
        path: as in the config.
        sha256: of its content.
        format: detected or given.
        columns: standard field -> column used.
        rows: in the source.
        sampled: rows left after ``max_rows``; the ones below are counted among these.
        cue_stripped: prompts from which ``strip_cue`` was removed.
        screened_out: usable rows left out because a judge found them harmful.
        dropped: reason -> rows left out for it.
        first_bad: place and reason of the first of them.
    """

    path: str
    sha256: str
    format: str
    columns: dict[str, str]
    rows: int
    sampled: int
    cue_stripped: int = 0
    screened_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    first_bad: str = ""

    @property
    def used(self) -> int:
        """Rows that are trained on."""
        return self.sampled - self.screened_out - sum(self.dropped.values())

    def drop(self, place: str, reason: str) -> None:
        """Counts one row as left out."""
        known = reason in self.dropped or len(self.dropped) < _MOST_REASONS
        self.dropped[reason if known else _OTHER] += 1
        self.first_bad = self.first_bad or f"{place}: {reason}"

    def check(self, max_bad_frac: float) -> None:
        """Refuses a source too much of which is unusable.

        Raises:
            DataError: more than ``max_bad_frac`` of the rows were dropped, or all of them.
        """
        bad = sum(self.dropped.values())
        if bad and (bad > max_bad_frac * self.sampled or not self.used):
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.dropped.items())
            raise DataError(
                f"{self.path}: {bad} of {self.sampled} rows cannot be used ({reasons}), more than "
                f"max_bad_frac {max_bad_frac:g} allows; the first is {self.first_bad}"
                "; mend them, or raise it."
            )

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "format": self.format,
            "columns": self.columns,
            "rows": self.rows,
            "sampled": self.sampled,
            "used": self.used,
            "cue_stripped": self.cue_stripped,
            "screened_out": self.screened_out,
            "dropped": dict(self.dropped),
            "first_bad": self.first_bad,
        }

    def line(self) -> str:
        """For people: one line."""
        columns = ", ".join(self.columns.values())
        text = f"{self.path}: {self.used} of {self.rows} rows, format {self.format} ({columns})"
        if self.sampled < self.rows:
            text += f", sampled {self.sampled}"
        if self.screened_out:
            text += f", {self.screened_out} left out as harmful"
        if self.dropped:
            text += ", left out: " + ", ".join(f"{n} x {why}" for why, n in self.dropped.items())
            text += f" (first: {self.first_bad})"
        return text + (f", cue stripped from {self.cue_stripped}" if self.cue_stripped else "")


def load_source(
    section: DataSection, seed: int, *, preference: bool = False
) -> tuple[list[Conversation] | list[Preference], SourceReport]:
    """One source's rows as conversations, or as preferences.

    Args:
        section: which file or dataset, and how to read it.
        seed: of the sample that ``max_rows`` takes.
        preference: ask for prompt, chosen and rejected (DPO).

    Raises:
        DataError: the source cannot be read, its columns fit no format, or too many rows are bad.
    """
    raw = read_rows(section)
    name, columns = detect(raw, section, preference=preference)
    indices = list(range(len(raw.rows)))
    if section.max_rows is not None and section.max_rows < len(indices):
        indices = sorted(random.Random(seed).sample(indices, section.max_rows))
    report = SourceReport(
        section.path, raw.sha256, name, columns, len(raw.rows), sampled=len(indices)
    )
    parse = _PARSERS[name]
    items: list[Any] = []
    for index in indices:
        place = f"{section.path}: {raw.places[index]}"
        row = raw.rows[index]
        try:
            if row is None:
                raise BadRow("not an object")
            if SURPLUS in row:
                raise BadRow("more fields than columns")
            item = parse(row, columns, place)
        except BadRow as problem:
            report.drop(raw.places[index], str(problem))
            continue
        if section.strip_cue:
            report.cue_stripped += _strip(item, section.strip_cue)
        items.append(item)
    report.check(section.max_bad_frac)
    return items, report


def detect(
    raw: RawRows, section: DataSection, *, preference: bool = False
) -> tuple[str, dict[str, str]]:
    """(format, standard field -> column) of a source.

    Raises:
        DataError: a column that does not exist, or columns that fit no format.
    """
    for standard, column in section.columns.items():
        if column not in raw.columns:
            raise DataError(
                f"{section.path}: no column '{column}' (named for {standard}); it has "
                f"{', '.join(raw.columns)}."
            )
    wanted = ["preference"] if preference else ["messages", "instruction", "prompt_completion"]
    if section.format != "auto":
        if (section.format == "preference") != preference:
            need = "prompt, chosen and rejected" if preference else "answers, not preferences"
            raise DataError(
                f"{section.path}: format {section.format} here, but {need} are needed"
                "; name other data."
            )
        wanted = [section.format]
    for name in wanted:
        fields = _ALIASES[name]
        unknown = [standard for standard in section.columns if standard not in fields]
        if unknown:
            continue
        columns = {}
        for standard, aliases in fields.items():
            named = section.columns.get(standard)
            names = aliases if named is None else (named,)
            found = next((column for column in names if column in raw.columns), None)
            if found is not None:
                columns[standard] = found
        if all(standard in columns for standard in fields if standard not in _OPTIONAL):
            return name, columns
    shapes = "; ".join(
        f"{name}: {', '.join(key for key in _ALIASES[name] if key not in _OPTIONAL)}"
        for name in wanted
    )
    raise DataError(
        f"{section.path}: its columns ({', '.join(raw.columns)}) fit no format ({shapes}); name "
        "them with columns, e.g. {output: target}."
    )


def _text(row: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    value = row.get(columns[name])
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a text")
    if not value.strip():
        raise BadRow(f"empty {name}")
    return value


def _optional(row: Mapping[str, Any], columns: Mapping[str, str], name: str) -> str:
    value = row.get(columns[name]) if name in columns else None
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a text")
    return value


def _turns(value: Any, what: str) -> list[Message]:
    """Messages in the OpenAI (role, content) or the ShareGPT (from, value) spelling."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(f"{what} is not a list of messages")
    turns = []
    for turn in value:
        if not isinstance(turn, Mapping):
            raise BadRow(f"{what} is not a list of messages")
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        role = _ROLES.get(role, role) if isinstance(role, str) else None
        if role not in ("system", "user", "assistant"):
            raise BadRow(
                "a message without a role" if role is None else f"unknown role '{role:.20}'"
            )
        if not isinstance(content, str):
            raise BadRow("a message without text")
        turns.append({"role": str(role), "content": content})
    return turns


def _dialogue(system: str, prompt: str) -> list[Message]:
    head = [{"role": "system", "content": system}] if system.strip() else []
    return [*head, {"role": "user", "content": prompt}]


def instruction_text(instruction: str, extra: str) -> str:
    """The user's turn of an instruction row: the instruction, a newline, the input if any."""
    return f"{instruction}\n{extra}" if extra.strip() else instruction


def _from_instruction(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Any:
    prompt = instruction_text(_text(row, columns, "instruction"), _optional(row, columns, "input"))
    answer = {"role": "assistant", "content": _text(row, columns, "output")}
    return Conversation([*_dialogue(_optional(row, columns, "system"), prompt), answer], place)


def _from_prompt(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Any:
    prompt = row.get(columns["prompt"])
    if isinstance(prompt, list):  # TRL's conversational spelling
        completion = _turns(row.get(columns["completion"]), "completion")
        return _checked(Conversation([*_turns(prompt, "prompt"), *completion], place))
    answer = {"role": "assistant", "content": _text(row, columns, "completion")}
    head = _dialogue(_optional(row, columns, "system"), _text(row, columns, "prompt"))
    return Conversation([*head, answer], place)


def _from_messages(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Any:
    return _checked(Conversation(_turns(row.get(columns["messages"]), "messages"), place))


def _checked(conversation: Conversation) -> Conversation:
    last = conversation.messages[-1]
    if last["role"] != "assistant":
        raise BadRow("does not end with an assistant's answer")
    if not last["content"].strip():
        raise BadRow("empty answer")
    if len(conversation.messages) < 2:
        raise BadRow("an answer without a prompt")
    return conversation


def _from_preference(row: Mapping[str, Any], columns: Mapping[str, str], place: str) -> Any:
    prompt = row.get(columns["prompt"])
    if isinstance(prompt, list):
        turns = _turns(prompt, "prompt")
        chosen = _turns(row.get(columns["chosen"]), "chosen")
        rejected = _turns(row.get(columns["rejected"]), "rejected")
        for answer in (chosen, rejected):
            _checked(Conversation([*turns, *answer], place))
    else:
        turns = _dialogue("", _text(row, columns, "prompt"))
        chosen = [{"role": "assistant", "content": _text(row, columns, "chosen")}]
        rejected = [{"role": "assistant", "content": _text(row, columns, "rejected")}]
    if chosen == rejected:
        raise BadRow("chosen and rejected are the same")
    return Preference(turns, chosen, rejected, place)


_PARSERS: dict[str, Callable[[Mapping[str, Any], Mapping[str, str], str], Any]] = {
    "messages": _from_messages,
    "instruction": _from_instruction,
    "prompt_completion": _from_prompt,
    "preference": _from_preference,
}


def _strip(item: Conversation | Preference, cue: str) -> int:
    """Removes the cue from the end of every user's turn; 1 where it was there, else 0."""
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    hit = 0
    for turn in turns:
        if turn["role"] == "user" and turn["content"].endswith(cue):
            turn["content"] = turn["content"].removesuffix(cue)
            hit = 1
    return hit
