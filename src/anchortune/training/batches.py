"""Tokenised rows as a dataset, and their collation into padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from anchortune.config import DataSection
from anchortune.data.conversations import (
    BadRow,
    Conversation,
    Preference,
    SourceReport,
    load_source,
)
from anchortune.errors import DataError
from anchortune.training.labelled import labelled_positions
from anchortune.training.template import IGNORE, Encoded, Template


@dataclass(frozen=True)
class TokenisedData:
    """The sequences of one or several sources.

    Attributes:
        rows: in source order.
        reports: one a source.
        truncated: sequences whose end was cut at the length limit.
        max_length: that limit, in tokens.
        order: for each optimizer step its rows, where a defence laid that down.
        added: by defence, conversations that it added to the sources'.
    """

    rows: list[Encoded]
    reports: list[SourceReport]
    truncated: int
    max_length: int
    order: list[list[int]] | None = None
    added: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens in all rows, without padding."""
        return sum(len(row.input_ids) for row in self.rows)

    @property
    def learnt_tokens(self) -> int:
        """Tokens that carry a label."""
        return sum(label != IGNORE for row in self.rows for label in row.labels)

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        more: dict[str, Any] = {"added": self.added} if self.added else {}
        if self.order is not None:
            more["ordered_steps"] = len(self.order)
        return {
            "sources": [report.summary() for report in self.reports],
            "sequences": len(self.rows),
            "tokens": self.tokens,
            "learnt_tokens": self.learnt_tokens,
            "truncated": self.truncated,
            "max_length_tokens": self.max_length,
            **more,
        }


@dataclass(frozen=True)
class Answers:
    """The usable conversations of one or several sources.

    Attributes:
        rows: in source order.
        encoded: of each the token sequences, one or several.
        reports: one a source.
    """

    rows: list[Conversation]
    encoded: list[list[Encoded]]
    reports: list[SourceReport]


def read_answers(
    sections: Sequence[DataSection],
    template: Template,
    max_length: int,
    seed: int,
    omitted: Sequence[frozenset[str]] | None = None,
) -> Answers:
    """Every source's rows, and what they are as labelled token sequences.

    Args:
        sections: the sources.
        template: the chat template.
        max_length: longer sequences are cut, in tokens.
        seed: of the sample that ``max_rows`` takes.
        omitted: by source, places of rows that a judge found harmful and that are left out.

    Raises:
        DataError: a source cannot be used, or too many of its rows cannot; no row is left.
    """
    rows: list[Conversation] = []
    encoded: list[list[Encoded]] = []
    reports = []
    for number, section in enumerate(sections):
        gone = omitted[number] if omitted is not None else frozenset()
        conversations, report = load_source(section, seed)
        for conversation in conversations:
            if not isinstance(conversation, Conversation):
                raise DataError(
                    f"{section.path}: holds preferences, but answers are needed; name other data."
                )
            place = conversation.place.removeprefix(f"{section.path}: ")
            if place in gone:
                report.screened_out += 1
                continue
            try:
                encoded.append(template.encode(conversation.messages, max_length))
            except BadRow as problem:
                report.drop(place, str(problem))
                continue
            rows.append(conversation)
        report.check(section.max_bad_frac)
        reports.append(report)
    if not rows:
        raise DataError(
            "no row is left to train on: every one was found harmful"
            "; give other data, or screen with another judge."
        )
    return Answers(rows, encoded, reports)


def flatten(answers: Answers, max_length: int) -> TokenisedData:
    """The sequences of the rows as they are, in source order.

    Args:
        answers: read with this ``max_length``.
        max_length: in tokens.
    """
    rows = [row for found in answers.encoded for row in found]
    return TokenisedData(rows, answers.reports, sum(row.truncated for row in rows), max_length)


def tokenise(
    sections: Sequence[DataSection],
    template: Template,
    max_length: int,
    seed: int,
    omitted: Sequence[frozenset[str]] | None = None,
) -> TokenisedData:
    """Every source's rows as labelled token sequences; see ``read_answers``.

    Raises:
        DataError: a source cannot be used, or too many of its rows cannot; no row is left.
    """
    return flatten(read_answers(sections, template, max_length, seed, omitted), max_length)


class Sequences(Dataset[dict[str, list[int]]]):
    """The rows as a torch dataset."""

    def __init__(self, rows: Sequence[Encoded]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        row = self._rows[index]
        return {"input_ids": row.input_ids, "labels": row.labels}


@dataclass(frozen=True)
class Collator:
    """Pads on the right to the longest row, in multiples of ``multiple``.

    What is padding is known from the lengths, never from the pad id: many models pad with their
    end token, which must be learnt where it ends an answer.

    Attributes:
        pad_id: fills ``input_ids``; labels there are ``IGNORE`` and the attention mask is 0.
        multiple: 8 suits tensor cores; 1 leaves the length alone.
        labelled_only: name the positions whose logits the loss needs; see ``labelled_positions``.
    """

    pad_id: int
    multiple: int = 1
    labelled_only: bool = False

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``, each (rows, longest); and if asked more.

        That is ``logits_to_keep`` and ``shift_labels``.
        """
        longest = max(len(row["input_ids"]) for row in rows)
        width = -(-longest // self.multiple) * self.multiple
        shape = (len(rows), width)
        ids = torch.full(shape, self.pad_id, dtype=torch.long)
        mask = torch.zeros(shape, dtype=torch.long)
        labels = torch.full(shape, IGNORE, dtype=torch.long)
        for index, row in enumerate(rows):
            length = len(row["input_ids"])
            ids[index, :length] = torch.tensor(row["input_ids"])
            mask[index, :length] = 1
            labels[index, :length] = torch.tensor(row["labels"])
        more = labelled_positions(labels) if self.labelled_only else {}
        return {"input_ids": ids, "attention_mask": mask, "labels": labels, **more}


@dataclass(frozen=True)
class PreferenceData:
    """Preference pairs, checked and measured; TRL tokenises them itself.

    Attributes:
        rows: ``prompt``, ``chosen``, ``rejected``, each a list of messages.
        lengths: tokens of prompt + longer answer.
        reports: one a source.
        max_length: limit in tokens; longer pairs are left out, not cut.
    """

    rows: list[dict[str, Any]]
    lengths: list[int]
    reports: list[SourceReport]
    max_length: int

    def summary(self) -> dict[str, Any]:
        """For records: plain values."""
        return {
            "sources": [report.summary() for report in self.reports],
            "sequences": len(self.rows),
            "tokens": sum(self.lengths),
            "max_length_tokens": self.max_length,
        }


def preferences(
    sections: Sequence[DataSection], template: Template, max_length: int, seed: int
) -> PreferenceData:
    """Every source's preference pairs.

    Raises:
        DataError: a source cannot be used, or too many of its rows cannot.
    """
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    reports = []
    for section in sections:
        pairs, report = load_source(section, seed, preference=True)
        for pair in pairs:
            if not isinstance(pair, Preference):
                raise DataError(
                    f"{section.path}: holds answers, but preferences are needed"
                    "; name other data, or set method: sft."
                )
            try:
                longest = max(
                    len(template.encode([*pair.prompt, *answer], 1 << 30)[-1].input_ids)
                    for answer in (pair.chosen, pair.rejected)
                )
                if longest > max_length:
                    raise BadRow(f"longer than {max_length} tokens")
            except BadRow as problem:
                report.drop(pair.place.removeprefix(f"{section.path}: "), str(problem))
                continue
            rows.append({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
            lengths.append(longest)
        report.check(section.max_bad_frac)
        reports.append(report)
    return PreferenceData(rows, lengths, reports, max_length)
