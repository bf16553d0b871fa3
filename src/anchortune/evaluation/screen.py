"""Training data judged before any training, by the same judges: which rows look harmful.

A row is harmful if any of its answers is, each with the user's turn before it; it is unscored if
none is and the judge cannot tell of one. Rows are named by their place, their text is not shown.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anchortune.config import DataSection, TrainConfig
from anchortune.data.conversations import Conversation, Preference, load_source
from anchortune.data.rows import read_rows
from anchortune.data.screened import (
    SCREEN_FILE,
    Action,
    HarmfulRow,
    Screened,
    ScreenedSource,
    screened_from,
)
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.judges.base import Exchange, Judge, Verdict
from anchortune.files import parse_json, sha256_text
from anchortune.progress import Progress

logger = logging.getLogger(__name__)

#: What the rate of a judge of harm is.
HARM = "harmful score"


class TooMuchHarm(EvaluationError):
    """Data of which more is harmful than its config allows: a failed gate, not a mistake."""

    exit_code = 3


def exchanges(row: Conversation | Preference) -> list[Exchange]:
    """Every answer of a row with the user's turn before it; of a preference, the chosen one."""
    turns = row.messages if isinstance(row, Conversation) else [*row.prompt, *row.chosen]
    found, asked = [], ""
    for turn in turns:
        if turn["role"] == "user":
            asked = turn["content"]
        elif turn["role"] == "assistant" and turn["content"].strip():
            found.append(Exchange(asked, turn["content"]))
    return found


def screen(
    sections: Sequence[DataSection],
    judge: Judge,
    *,
    seed: int = 0,
    action: Action = "report",
) -> Screened:
    """Judges every row that training on ``sections`` would use.

    Args:
        sections: sources of data.
        judge: who says what is harmful.
        seed: of the sample that ``max_rows`` takes; training's own, so that it is the same sample.
        action: what the caller will do about it; only ``drop`` leaves rows out.

    Raises:
        DataError: a source cannot be read, or none of its rows.
    """
    sources = [screen_source(section, judge, seed=seed) for section in sections]
    return Screened(judge.identity(), action, sources)


def screen_source(section: DataSection, judge: Judge, *, seed: int = 0) -> ScreenedSource:
    """Judges the rows of one source; see ``screen``.

    Unusable rows are counted as not read whatever their share: training itself refuses them.

    Raises:
        DataError: the source cannot be read, or none of its rows.
        EvaluationError: the judge says nothing of harm.
    """
    if judge.measure != HARM:
        raise EvaluationError(
            f"the judge {judge.name} tells a {judge.measure} and says nothing of harm; screen with "
            "another, e.g. builtin."
        )
    columns = read_rows(section).columns
    preference = section.format == "preference" or (
        section.format == "auto" and {"chosen", "rejected"} <= set(columns)
    )
    lenient = section.model_copy(update={"max_bad_frac": 1.0})
    loaded, report = load_source(lenient, seed, preference=preference)
    rows: list[Conversation | Preference] = [*loaded]
    flat = [(at, exchange) for at, row in enumerate(rows) for exchange in exchanges(row)]
    with Progress(f"{judge.name} judges {section.path}", len(flat)) as tell:
        verdicts = judge.judge([exchange for _, exchange in flat], tell)
    by_row: list[list[Verdict]] = [[] for _ in rows]
    for (at, _), verdict in zip(flat, verdicts, strict=True):
        by_row[at].append(verdict)
    harmful, unscored = [], 0
    for row, found in zip(rows, by_row, strict=True):
        if any(verdict.outcome == "harmful" for verdict in found):
            harmful.append(_harmful(row.place.removeprefix(f"{section.path}: "), found))
        elif any(verdict.outcome == "unscored" for verdict in found):
            unscored += 1
    return ScreenedSource(
        path=section.path,
        sha256=report.sha256,
        rows=report.rows,
        judged=len(rows) - unscored,
        harmful=harmful,
        unscored=unscored,
        unread=report.rows - len(rows),
    )


def _harmful(place: str, verdicts: Sequence[Verdict]) -> HarmfulRow:
    bad = [verdict for verdict in verdicts if verdict.outcome == "harmful"]
    scores = [verdict.score for verdict in bad if verdict.score is not None]
    named: dict[str, None] = {}
    for verdict in bad:
        categories = verdict.details.get("categories", verdict.details.get("category"))
        listed = [categories] if isinstance(categories, str) else categories or []
        named.update(dict.fromkeys(str(name) for name in listed))
    return HarmfulRow(place, max(scores) if scores else None, list(named))


def screen_for_training(config: TrainConfig, judge: Judge | None = None) -> Screened | None:
    """What the config's ``screen`` section asks for; None where it has none.

    What an earlier attempt at the same run found is taken from ``screen.json`` in its folder.

    Args:
        config: of the training.
        judge: in place of the one that the section names.

    Raises:
        TooMuchHarm: a greater share of the rows is harmful than the section allows.
        AnchortuneError: the judge or the data cannot be used.
    """
    section = config.screen
    if section is None:
        return None
    if judge is None:
        from anchortune.evaluation.judges.registry import make_judge

        machine = EvalMachine(device=config.machine.device, dtype=config.machine.dtype)
        judge = make_judge(section.judge, machine)
    key = _key(config, judge)
    found = _kept(Path(config.output).expanduser() / SCREEN_FILE, key)
    if found is None:
        found = screen(config.data, judge, seed=config.seed, action=section.action)
    found = Screened(found.judge, section.action, found.sources, key)
    for source in found.sources:
        logger.info("screen  %s", source.line())
    limit = section.max_harmful_frac
    if limit is None and section.action == "stop":
        limit = 0.0
    if limit is not None and found.harmful_frac > limit:
        raise TooMuchHarm(
            f"{found.harmful} rows look harmful to {judge.name} (a share of "
            f"{found.harmful_frac:.3g}, allowed {limit:g}; the first is {_first(found)}); see "
            "`anchortune screen`, clean the data, or raise screen.max_harmful_frac."
        )
    return found


def _first(found: Screened) -> str:
    source = next(source for source in found.sources if source.harmful)
    return f"{source.path}: {source.harmful[0].place}"


def _key(config: TrainConfig, judge: Judge) -> str:
    """Everything that decides what is found: the judge, the data's content, how it is read."""
    decides: dict[str, Any] = {
        "judge": judge.identity(),
        "data": [
            [section.model_dump(mode="json"), read_rows(section).sha256] for section in config.data
        ],
        "seed": config.seed,
    }
    return sha256_text(json.dumps(decides, sort_keys=True, default=str))


def _kept(path: Path, key: str) -> Screened | None:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
        return screened_from(value) if value["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or of another version: it is judged again
