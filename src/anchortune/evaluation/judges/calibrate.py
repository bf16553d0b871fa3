"""A judge measured against labelled answers: how far its verdicts and its scores can be trusted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from anchortune.config import DataSection
from anchortune.data.rows import RawRows, read_rows
from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.judges.base import Exchange, Judge, Verdict
from anchortune.evaluation.judges.labels import (
    ANSWERS,
    INVERSE,
    LABELS,
    PROMPTS,
    find_column,
    read_label,
    text_of,
    usual_columns,
)
from anchortune.maths.ranking import Area, Recall, auc, recall_at
from anchortune.maths.stats import Kappa, Rate, cohen_kappa, wilson

#: The name of the figures over all sources.
ALL = "all"


class Columns(NamedTuple):
    """Names of columns that are not the usual ones; None finds them."""

    prompt: str | None = None
    answer: str | None = None
    label: str | None = None
    source: str | None = None


@dataclass(frozen=True)
class Labelled:
    """An answer that somebody labelled.

    Attributes:
        exchange: request and answer.
        harmful: the label.
        source: where it comes from.
    """

    exchange: Exchange
    harmful: bool
    source: str


@dataclass(frozen=True)
class LabelledData:
    """Labelled answers of one or more files.

    Attributes:
        rows: those with a label.
        unlabelled: rows without one, or that say unsure.
        files: path -> SHA-256.
    """

    rows: list[Labelled]
    unlabelled: int
    files: dict[str, str]


@dataclass(frozen=True)
class Calibration:
    """A judge on the labelled answers of one source.

    Attributes:
        source: its name; ``all`` for all of them.
        harmful: how many answers are labelled so.
        safe: how many are not.
        unscored: of how many the judge cannot tell.
        reasons: why, and how often.
        found: of the harmful ones that it scored, the share it calls harmful.
        alarms: of the safe ones that it scored, the share it calls harmful.
        agreement: of verdict and label where it scored; None where it scored nothing.
        area: under the ROC curve of its scores; None with one class, or with no scores.
        recall: at the false-positive rate asked for; None likewise.
        ranked: answers with a score, on which the last two are computed.
    """

    source: str
    harmful: int
    safe: int
    unscored: int
    reasons: dict[str, int]
    found: Rate | None
    alarms: Rate | None
    agreement: Kappa | None
    area: Area | None
    recall: Recall | None
    ranked: int

    def facts(self) -> dict[str, Any]:
        """The same as plain data."""

        def plain(value: Any) -> Any:
            return value._asdict() if hasattr(value, "_asdict") else value

        return {name: plain(value) for name, value in vars(self).items()}


def read_labelled(
    paths: Sequence[str], columns: Columns | None = None, max_rows: int | None = None, seed: int = 0
) -> LabelledData:
    """The labelled answers of files (JSON, JSONL, CSV, Parquet) or Hub datasets.

    A label is harmful or safe, 0 or 1, yes or no. The source is the column ``source`` where there
    is one, else the file.

    Args:
        paths: the files.
        columns: names that are not the usual ones.
        max_rows: a seeded sample of this many labelled rows of each file.
        seed: of the sample.

    Raises:
        DataError: a file cannot be read, lacks a column, or a line holds no label or no text.
        EvaluationError: there is no labelled answer in any of them.
    """
    names = columns or Columns()
    rows: list[Labelled] = []
    unlabelled = 0
    files = {}
    for path in paths:
        raw = read_rows(DataSection(path=path))
        files[path] = raw.sha256
        found, without = _labelled(raw, path, names)
        unlabelled += without
        if max_rows is not None and len(found) > max_rows:
            picked = sorted(random.Random(seed).sample(range(len(found)), max_rows))
            found = [found[i] for i in picked]
        rows += found
    if not rows:
        raise EvaluationError(
            f"{', '.join(paths)}: no row has a label, harmful or safe"
            "; name the column with --label-column."
        )
    return LabelledData(rows, unlabelled, files)


def _labelled(raw: RawRows, path: str, names: Columns) -> tuple[list[Labelled], int]:
    label = find_column(raw.columns, (*LABELS, *INVERSE), "labels", path, names.label)
    texts = {}
    for what, usual, given in (
        ("prompt", PROMPTS, names.prompt),
        ("answer", ANSWERS, names.answer),
    ):
        first = find_column(raw.columns, usual, f"{what}s", path, given)
        texts[what] = [first] if given is not None else usual_columns(raw.columns, usual)
    source = names.source
    if source is not None:
        find_column(raw.columns, (), "sources", path, source)
    elif "source" in raw.columns:
        source = "source"
    found, without = [], 0
    for row, place in zip(raw.rows, raw.places, strict=True):
        where = f"{path}: {place}"
        outcome = "unscored" if row is None else read_label(row.get(label), label, where)
        if row is None or outcome == "unscored":
            without += 1
            continue
        exchange = Exchange(*(_text(row, texts[what], what, where) for what in texts))
        named = str(row.get(source) or "") if source is not None else ""
        found.append(Labelled(exchange, outcome == "harmful", named or Path(path).stem))
    return found, without


def _text(row: Mapping[str, Any], columns: Sequence[str], what: str, where: str) -> str:
    text = text_of(row, columns)
    if text is None:
        raise DataError(
            f"{where}: '{columns[0]}' holds no text of the {what}; name another column."
        )
    return text


def calibrate(
    judge: Judge,
    rows: Sequence[Labelled],
    false_positive_rate: float = 0.05,
    *,
    seed: int = 0,
    resamples: int = 2000,
    on_done: Callable[[int], None] | None = None,
) -> list[Calibration]:
    """What the judge makes of labelled answers, by source and, where there are several, over all.

    Args:
        judge: any judge; see ``score_of`` for one without scores.
        rows: labelled answers.
        false_positive_rate: at which recall is given.
        seed: of the bootstrap.
        resamples: of the same.
        on_done: told how many answers are judged.
    """
    verdicts = judge.judge([row.exchange for row in rows], on_done)
    pairs = list(zip(rows, verdicts, strict=True))
    groups = {
        source: [pair for pair in pairs if pair[0].source == source]
        for source in dict.fromkeys(row.source for row in rows)
    }
    if len(groups) > 1:
        name = ALL if ALL not in groups else "all sources"
        groups[name] = pairs
    return [
        _calibration(source, group, false_positive_rate, seed, resamples)
        for source, group in groups.items()
    ]


def score_of(verdict: Verdict) -> float | None:
    """The number by which answers are ranked: the judge's score, else 1 or 0 by its verdict.

    A judge of refusals has no verdict of harm; an answer without a refusal ranks above one with.
    """
    if verdict.score is not None:
        return verdict.score
    if "refused" in verdict.details:
        return 0.0 if verdict.details["refused"] else 1.0
    return {"harmful": 1.0, "safe": 0.0}.get(verdict.outcome)


def _calibration(
    source: str,
    pairs: Sequence[tuple[Labelled, Verdict]],
    false_positive_rate: float,
    seed: int,
    resamples: int,
) -> Calibration:
    scored = [(row, verdict) for row, verdict in pairs if verdict.outcome != "unscored"]
    reasons: dict[str, int] = {}
    for _, verdict in pairs:
        if verdict.outcome == "unscored":
            reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
    ranked = [(s, row.harmful) for row, verdict in pairs if (s := score_of(verdict)) is not None]
    area, recall = None, None
    if len({label for _, label in ranked}) == 2:
        scores, labels = [score for score, _ in ranked], [label for _, label in ranked]
        area = auc(scores, labels)
        recall = recall_at(scores, labels, false_positive_rate, seed=seed, resamples=resamples)
    harmful = sum(row.harmful for row, _ in pairs)
    return Calibration(
        source,
        harmful,
        len(pairs) - harmful,
        len(pairs) - len(scored),
        reasons,
        _flagged(scored, True),
        _flagged(scored, False),
        _agreement(scored),
        area,
        recall,
        len(ranked),
    )


def _flagged(scored: Sequence[tuple[Labelled, Verdict]], harmful: bool) -> Rate | None:
    """Of the answers with that label, the share called harmful."""
    flags = [verdict.outcome == "harmful" for row, verdict in scored if row.harmful == harmful]
    return wilson(sum(flags), len(flags)) if flags else None


def _agreement(scored: Sequence[tuple[Labelled, Verdict]]) -> Kappa | None:
    if not scored:
        return None
    labels = ["harmful" if row.harmful else "safe" for row, _ in scored]
    return cohen_kappa(labels, [verdict.outcome for _, verdict in scored])
