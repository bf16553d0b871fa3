"""Answers that are there already, judged again by other judges: nothing is generated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.ask import free_memory
from anchortune.evaluation.compare import agreements
from anchortune.evaluation.judges.base import Exchange, Judge, Verdict
from anchortune.evaluation.judges.file import FileJudge
from anchortune.evaluation.measure import figure
from anchortune.evaluation.outputs import OUTPUTS_FILE, read_answers, read_outputs, row_of
from anchortune.evaluation.results import Agreement, Figure
from anchortune.evaluation.verdicts import VERDICTS_FILE, VerdictLog
from anchortune.files import parse_json, sha256_text
from anchortune.progress import Progress

Row = dict[str, Any]
REFUSAL = "refusal"
#: Verdicts are written after so many: what a cut loses at most.
_CHUNK = 128


@dataclass(frozen=True)
class Outputs:
    """Answers to be judged.

    Attributes:
        path: of their file.
        rows: as in ``outputs.jsonl``, those of tasks left out.
        tasks: how many were left out, for they answer a task that has right answers.
        hashed: whether only the texts' hashes are left.
        models: what the models are, where the folder of an evaluation says it.
    """

    path: Path
    rows: list[Row]
    tasks: int
    hashed: bool
    models: list[dict[str, Any]]


@dataclass(frozen=True)
class Judged:
    """What one judge makes of one model's answers to one set.

    Attributes:
        model: whose answers.
        set: the prompt set.
        judge: its name.
        measure: what the rate is.
        indicative: the judge misses the bar it was set.
        answers: how many there are.
        figure: the rate; None where nothing was scored.
        reasons: why answers are unscored, and how often.
    """

    model: str
    set: str
    judge: str
    measure: str
    indicative: bool
    answers: int
    figure: Figure | None
    reasons: dict[str, int]


def read_old(place: str | Path, only: Sequence[str] = ()) -> Outputs:
    """The answers in an evaluation's folder, in an ``outputs.jsonl``, or made elsewhere.

    Args:
        place: a folder, or a file of prompts and answers.
        only: names of the sets to judge; all where none is named.

    Raises:
        EvaluationError: there are none, or a file cannot be read.
    """
    path = Path(place).expanduser()
    models: list[dict[str, Any]] = []
    tasks: set[str] = set()
    if path.is_dir():
        models, tasks = _told(path)
        path = path / OUTPUTS_FILE
        if not path.is_file():
            raise EvaluationError(
                f"{place}: no {OUTPUTS_FILE} in it; its answers were not kept (keep: purge), or it "
                "is no evaluation's folder."
            )
    rows = _rows(path)
    kept = [row for row in rows if row.get("target") is None and row["set"] not in tasks]
    sets = list(dict.fromkeys(row["set"] for row in kept))
    missing = [name for name in only if name not in sets]
    if missing:
        raise EvaluationError(f"{place}: no set '{missing[0]}'; it has {', '.join(sets)}.")
    chosen = [row for row in kept if not only or row["set"] in only]
    if not chosen:
        raise EvaluationError(
            f"{place}: no answer in it that a judge could look at"
            "; name another, or ask for other sets."
        )
    hashed = any("answer" not in row for row in chosen)
    return Outputs(path, chosen, len(rows) - len(kept), hashed, models)


def _rows(path: Path) -> list[Row]:
    """The rows of our own file as they are, or of another file of answers brought to that form."""
    if path.suffix == ".jsonl" and path.is_file():
        try:
            rows = read_outputs(path)
        except EvaluationError:
            rows = []
        ours = all("answer_sha256" in row and "prompt_sha256" in row for row in rows)
        if rows and ours:
            return rows
    try:
        return [row_of(answer) for answer in read_answers(path)]
    except DataError as error:
        raise EvaluationError(str(error)) from None


def _told(folder: Path) -> tuple[list[dict[str, Any]], set[str]]:
    """(the models, the names of the tasks) that an evaluation's record tells of; none without."""
    try:
        record = parse_json((folder / "record.json").read_text(encoding="utf-8"))
        results = record["metrics"]
        models = [dict(model) for model in results["models"].values()]
        measures = [(str(one["kind"]), str(one["set"])) for one in results["measures"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return [], set()
    return models, {name for kind, name in measures if kind in ("accuracy", "win_rate")}


def check_hashed(outputs: Outputs, judges: Sequence[Judge]) -> None:
    """Refuses judges that would have to read texts which are gone.

    Raises:
        EvaluationError: only hashes are left, and a judge is not ``file``.
    """
    reads = [judge.name for judge in judges if not isinstance(judge, FileJudge)]
    if outputs.hashed and reads:
        raise EvaluationError(
            f"{outputs.path}: holds hashes only (keep: hash), and {reads[0]} reads texts; "
            "only the judge file can look up what is left."
        )


def check_target(outputs: Outputs, target: Path) -> None:
    """Refuses to write verdicts into a file that is something else, before anybody is asked.

    Raises:
        EvaluationError: it is the answers' own file, the verdicts of a whole evaluation (whose
            record holds their hash), or holds other things than verdicts.
    """
    if not target.is_file():
        return
    if outputs.path.is_file() and target.samefile(outputs.path):
        raise EvaluationError(f"{target} holds the answers themselves; name another file.")
    if target.name == VERDICTS_FILE and (target.parent / "identity.json").is_file():
        raise EvaluationError(f"{target} belongs to an evaluation; name another file.")
    with target.open("rb") as stream:
        first = stream.readline()
    try:
        row = parse_json(first) if first.endswith(b"\n") else {}
    except ValueError:
        row = None
    cut = not first.endswith(b"\n") and (not first or first.startswith(b'{"model"'))
    if not cut and not (isinstance(row, dict) and {"judge", "outcome"} <= row.keys()):
        raise EvaluationError(f"{target} is there and holds no verdicts; name another file.")


def rejudge(
    outputs: Outputs, judges: list[Judge], output: str | Path | None = None
) -> tuple[list[Judged], list[Agreement]]:
    """Every judge's verdicts on all answers, summed up, and how far each two judges agree.

    Args:
        outputs: the answers.
        judges: who judges; each has its own name. The list is emptied: a judge is let go of, with
            its weights, before the next one is asked.
        output: a ``verdicts.jsonl`` to write as they come; what the same judge (by its identity)
            said there already is not asked again.

    Raises:
        EvaluationError: two judges of one name, only hashes are left and a judge reads texts, or
            ``output`` is another kind of file.
    """
    names = [judge.name for judge in judges]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EvaluationError(f"the judge {twice} is given twice; give each once.")
    check_hashed(outputs, judges)
    if output is not None:
        check_target(outputs, Path(output))
    facts = {judge.name: (judge.measure, judge.indicative) for judge in judges}
    found: dict[str, list[Verdict]] = {}
    with contextlib.ExitStack() as stack:
        log = None if output is None else stack.enter_context(VerdictLog(output))
        while judges:
            judge = judges.pop(0)
            found[judge.name] = _ask(judge, outputs.rows, log)
            del judge
            free_memory()
    keys = dict.fromkeys((row["set"], row["model"]) for row in outputs.rows)
    judged = [
        _summed(model, name, judge, *facts[judge], outputs.rows, found[judge])
        for name, model in keys
        for judge in names
    ]
    both = []
    for name in dict.fromkeys(name for name, _ in keys):
        outcomes = {
            judge: {
                (row["model"], row["id"]): verdict.outcome
                for row, verdict in zip(outputs.rows, found[judge], strict=True)
                if row["set"] == name and verdict.outcome != "unscored"
            }
            for judge in names
            if judge != REFUSAL  # which says nothing of harm
        }
        both += agreements(outcomes, name)
    return judged, both


def _ask(judge: Judge, rows: Sequence[Row], log: VerdictLog | None) -> list[Verdict]:
    """One verdict for each row; of rows with the same texts, one is asked about."""
    stamp = sha256_text(json.dumps(judge.identity(), sort_keys=True, default=str))
    found = [None if log is None else log.find(row, judge.name, stamp) for row in rows]
    verdicts: list[Verdict | None] = [None if was is None else _verdict(was) for was in found]
    places: dict[tuple[str, str], list[int]] = {}
    for at, row in enumerate(rows):
        if verdicts[at] is None:
            places.setdefault((row["prompt_sha256"], row["answer_sha256"]), []).append(at)
    # Of like length together, so that little is computed on padding.
    groups = sorted(places.values(), key=lambda group: -len(rows[group[0]].get("answer", "")))
    with Progress(f"{judge.name} judges", len(groups)) as tell:
        for start in range(0, len(groups), _CHUNK):
            chunk = groups[start : start + _CHUNK]
            said = _say(judge, [rows[group[0]] for group in chunk])
            for group, verdict in zip(chunk, said, strict=True):
                for at in group:
                    verdicts[at] = verdict
                    if log is not None:
                        log.append(
                            rows[at],
                            judge.name,
                            verdict.outcome,
                            reason=verdict.reason,
                            score=verdict.score,
                            details=verdict.details,
                            indicative=judge.indicative,
                            stamp=stamp,
                        )
            tell(start + len(chunk))
    return [verdict for verdict in verdicts if verdict is not None]


def _say(judge: Judge, rows: Sequence[Row]) -> list[Verdict]:
    if isinstance(judge, FileJudge):
        return [judge.look_up(row["prompt_sha256"], row["answer_sha256"]) for row in rows]
    return judge.judge([Exchange(row.get("goal") or row["prompt"], row["answer"]) for row in rows])


def _verdict(row: Mapping[str, Any]) -> Verdict:
    """A verdict that was written before."""
    return Verdict(row["outcome"], row["reason"], row["score"], dict(row["details"]))


def _summed(
    model: str,
    set_name: str,
    judge: str,
    measure: str,
    indicative: bool,
    rows: Sequence[Row],
    verdicts: Sequence[Verdict],
) -> Judged:
    ours = [
        verdict
        for row, verdict in zip(rows, verdicts, strict=True)
        if row["model"] == model and row["set"] == set_name
    ]
    marks = [mark_of(judge, verdict) for verdict in ours]
    reasons: dict[str, int] = {}
    for verdict, mark in zip(ours, marks, strict=True):
        if mark is None:
            reasons[verdict.reason] = reasons.get(verdict.reason, 0) + 1
    return Judged(model, set_name, judge, measure, indicative, len(ours), figure(marks), reasons)


def mark_of(judge: str, verdict: Verdict) -> float | None:
    """1 or 0 for what the judge's rate counts, None for what it leaves out."""
    if judge == REFUSAL:
        return float(bool(verdict.details.get("refused")))
    return None if verdict.outcome == "unscored" else float(verdict.outcome == "harmful")
