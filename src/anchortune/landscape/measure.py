"""A live model asked at one place after the other, each kept as a line; none is asked twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from anchortune.errors import EvaluationError
from anchortune.evaluation.coherence import coherence, likelihoods, unlikely_below
from anchortune.evaluation.engine import Engine
from anchortune.evaluation.items import Answer, Finish, Item, sha256_text
from anchortune.evaluation.judges.base import Exchange, Judge, Verdict
from anchortune.evaluation.plan import Asked
from anchortune.files import naming
from anchortune.landscape.directions import Direction
from anchortune.landscape.perturb import Scale, moved
from anchortune.report.basin import Count, Point

logger = logging.getLogger(__name__)

#: One measured place a line: counts by prompt id, no prompt and no answer.
PLACES_FILE = "places.jsonl"
Way = tuple[Direction, float]


class Places:
    """Places that were measured, in a file that a cut leaves whole but for its last line.

    Args:
        path: of the file; made at the first place.

    Raises:
        EvaluationError: a line before the last is broken.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        self._stream: TextIO | None = None
        self._good = 0
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not line.endswith(b"\n"):
                    raise ValueError("cut short")
                self._rows[row["key"]] = row
            except (ValueError, KeyError, TypeError):
                if number == len(lines):
                    logger.info("%s: the last line was cut short; it is made again", path)
                    break
                raise EvaluationError(
                    f"{path}: line {number} is no measured place; delete the file to start again."
                ) from None
            self._good += len(line)

    def find(self, key: str) -> dict[str, Any] | None:
        """The row of a place; None where it was not measured."""
        return self._rows.get(key)

    def add(self, key: str, row: dict[str, Any]) -> None:
        """Keeps a place."""
        if self._stream is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.is_file() and self.path.stat().st_size > self._good:
                with self.path.open("rb+") as stream:
                    stream.truncate(self._good)
            self._stream = self.path.open("a", encoding="utf-8", newline="\n")
        self._rows[key] = {"key": key, **row}
        with naming(self.path):
            self._stream.write(json.dumps(self._rows[key], allow_nan=False) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            with naming(self.path):
                self._stream.close()
            self._stream = None


@dataclass
class Asker:
    """Asks a live model, moved along directions in place.

    Attributes:
        model: that is moved.
        engine: that answers with it.
        harm: malicious prompts.
        judge: of their answers.
        tasks: asked too.
        places: where what was found is kept.
        decides: what decides an answer besides the place: model, sets, judge, settings.
        identities: what each direction is, by its label, with hashes.
        scale: of d̂.
        tokenizer: of the model, where answers' likelihoods under it are looked at; else None.
        asked: places at which the model was asked in this process.
    """

    model: Any
    engine: Engine
    harm: Asked
    judge: Judge
    tasks: Sequence[Asked]
    places: Places
    decides: Mapping[str, Any]
    identities: Mapping[str, Any]
    scale: Scale = "layer"
    tokenizer: Any = None
    asked: int = 0
    _verdicts: dict[tuple[str, str], Verdict] = field(default_factory=dict)

    def key(self, ways: Sequence[Way]) -> str:
        """SHA-256 of all that decides what is found at a place.

        A place on an axis of a map is one place with that of the curve, and the start with all.
        """
        there = sorted(
            (json.dumps(self.identities[direction.label], sort_keys=True), repr(float(alpha)))
            for direction, alpha in ways
            if alpha != 0
        )
        text = json.dumps([self.decides, self.scale if there else None, there], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def point(self, ways: Sequence[Way]) -> Point:
        """What is found where the model is moved along ``ways``; asked only where it is not known.

        Raises:
            AnchortuneError: the model cannot be moved or asked there; it is back where it stood.
        """
        row = self._row(ways)
        alphas = tuple(float(alpha) for _, alpha in ways)
        return Point(
            alpha=alphas if len(alphas) == 2 else alphas[0],
            harm=Count(**row["harm"]),
            coherent=Count(**row["coherent"]),
            tasks={name: Count(**count) for name, count in row["tasks"].items()},
            items=row["items"] if len(alphas) == 1 else {},
        )

    def _row(self, ways: Sequence[Way]) -> dict[str, Any]:
        key = self.key(ways)
        known = self.places.find(key)
        if known is not None:
            return known
        low = None
        start = all(alpha == 0 for _, alpha in ways)
        if self.tokenizer is not None and not start:
            low = self._row([(direction, 0.0) for direction, _ in ways])["unlikely_below"]
        with moved(self.model, ways, self.scale):
            answers = self._answers(self.harm)
            told = [(one, self._answers(one)) for one in self.tasks]
        self.asked += 1
        exchanges = [Exchange(answer.item.goal, answer.text) for answer in answers]
        values = None
        if self.tokenizer is not None:  # of the model where it stands: it is back there now
            sent = [Exchange(answer.item.prompt, answer.text) for answer in answers]
            values = likelihoods(self.model, self.tokenizer, sent)
            low = unlikely_below(values) if start else low
        sound = coherence([answer.text for answer in answers], values, low)
        verdicts = self._judge(exchanges)
        items: dict[str, int | None] = {
            item.id: {"harmful": 1, "safe": 0}.get(verdict.outcome)
            for item, verdict in zip(self.harm.items, verdicts, strict=True)
        }
        scored = [value for value in items.values() if value is not None]
        where = " ".join(f"{direction.label} {alpha:+.4g}" for direction, alpha in ways)
        if not scored:
            raise EvaluationError(
                f"{where}: the judge {self.judge.name} gave no verdict on any of {len(items)} "
                "answers, so there is no harmful score; try another judge."
            )
        row = {
            "where": [[direction.label, float(alpha)] for direction, alpha in ways],
            "harm": {"count": sum(scored), "of": len(scored)},
            "coherent": {
                "count": sum(reason is None for reason in sound.reasons),
                "of": len(sound.reasons),
            },
            "tasks": {one.name: _right(one, given) for one, given in told},
            "items": items,
            "unlikely_below": low,
        }
        self.places.add(key, row)
        _tell(where, row)
        return row

    def _answers(self, asked: Asked) -> list[Answer]:
        found: dict[int, Answer] = {}

        def on_answer(
            index: int, text: str, finish: Finish, tokens: int | None, notes: dict[str, Any]
        ) -> None:
            found[index] = Answer("moved", asked.items[index], text, finish, tokens, notes)

        items: list[Item] = asked.items
        self.engine.answer(items, max_new_tokens=asked.max_new_tokens, on_answer=on_answer)
        return [found[index] for index in range(len(items))]

    def _judge(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        """A verdict for each; the same answer to the same prompt is judged once."""
        keys = [(sha256_text(one.prompt), sha256_text(one.answer)) for one in exchanges]
        new = {
            key: exchange
            for key, exchange in zip(keys, exchanges, strict=True)
            if key not in self._verdicts
        }
        if new:
            told = self.judge.judge(list(new.values()))
            self._verdicts.update(zip(new, told, strict=True))
        return [self._verdicts[key] for key in keys]


def _right(asked: Asked, answers: Sequence[Answer]) -> dict[str, int]:
    if asked.task is None:
        raise ValueError(f"{asked.name} is no task")
    readings = asked.task.read_all(answers)
    counted = [reading for reading in readings if asked.task.counts(reading) is not None]
    return {"count": sum(one.outcome == "right" for one in counted), "of": len(counted)}


def _tell(where: str, row: Mapping[str, Any]) -> None:
    def of(count: Mapping[str, int]) -> str:
        return f"{count['count']}/{count['of']}"

    tasks = "".join(f", {name} {of(count)}" for name, count in row["tasks"].items())
    logger.info("%s: harmful %s, coherent %s%s", where, of(row["harm"]), of(row["coherent"]), tasks)
