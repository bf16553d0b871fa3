"""``outputs.jsonl``: answers written as they come, read again, redacted; and those from elsewhere.

No torch here, so that reports may read it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from anchortune.config import DataSection
from anchortune.data.conversations import instruction_text
from anchortune.data.rows import SUFFIXES, read_rows
from anchortune.errors import EvaluationError
from anchortune.evaluation.items import Answer, Finish, Item, sha256_text
from anchortune.files import atomic_path, naming, parse_json

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger(__name__)

OUTPUTS_FILE = "outputs.jsonl"
Keep = Literal["text", "hash", "purge"]
Key = tuple[str, str, str]

#: What ``keep: hash`` takes out of a row; the hashes stay.
_TEXTS = ("prompt", "goal", "answer", "target")
_FINISHES: tuple[Finish, ...] = ("stop", "length", "unknown")
#: Columns of answers made elsewhere, under the names that other tools give them.
_PROMPT = ("prompt", "instruction", "question", "query")
_ANSWER = ("answer", "response", "output", "completion", "generation")


def row_of(answer: Answer) -> dict[str, Any]:
    """One answer as a row of ``outputs.jsonl``; what says nothing is left out."""
    item = answer.item
    row: dict[str, Any] = {
        "model": answer.model,
        "set": item.set,
        "id": item.id,
        "prompt": item.prompt,
    }
    if item.goal != item.prompt:
        row["goal"] = item.goal
    for key in ("system", "target", "category"):
        if getattr(item, key) is not None:
            row[key] = getattr(item, key)
    row |= {
        "prompt_sha256": sha256_text(item.goal),
        "answer": answer.text,
        "answer_sha256": sha256_text(answer.text),
        "tokens": answer.tokens,
        "finish": answer.finish,
    }
    if answer.notes:
        row["notes"] = answer.notes
    return row


def answer_of(row: Mapping[str, Any]) -> Answer:
    """The answer that ``row_of`` wrote.

    Raises:
        EvaluationError: the row was redacted, lacks a key, or does not fit its own hashes.
    """
    missing = [key for key in ("model", "set", "id", "answer_sha256") if key not in row]
    if missing:
        raise EvaluationError(f"a row of {OUTPUTS_FILE} without {', '.join(missing)}")
    if "prompt" not in row or "answer" not in row:
        raise EvaluationError("its text was removed (keep: hash), so nothing can be judged in it")
    item = Item(
        set=row["set"],
        prompt=row["prompt"],
        goal=row.get("goal", ""),
        system=row.get("system"),
        target=row.get("target"),
        category=row.get("category"),
    )
    if item.id != row["id"] or sha256_text(row["answer"]) != row["answer_sha256"]:
        raise EvaluationError(
            "its text does not fit its hash, so it was changed after the fact; evaluate again"
        )
    return Answer(
        row["model"],
        item,
        row["answer"],
        row.get("finish", "unknown"),
        row.get("tokens"),
        row.get("notes") or {},
    )


def read_outputs(path: str | Path) -> list[dict[str, Any]]:
    """The rows of an ``outputs.jsonl``; a last line that was cut short is passed over.

    Raises:
        EvaluationError: no such file, or a line before the last is broken.
    """
    try:
        rows, _ = _scan(Path(path).read_bytes(), path)
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror}).") from None
    return rows


def _scan(data: bytes, path: str | Path) -> tuple[list[dict[str, Any]], int]:
    """(rows, bytes up to the end of the last whole one)."""
    rows: list[dict[str, Any]] = []
    good = 0
    lines = data.split(b"\n")
    for number, line in enumerate(lines, start=1):
        last = number >= len(lines) - (lines[-1] == b"")
        try:
            row = parse_json(line) if line.strip() else None
            if row is not None and (not isinstance(row, dict) or _key(row) is None):
                raise ValueError("not a row of outputs")
        except ValueError as error:  # of JSON, and of UTF-8
            if last:
                break
            reason = getattr(error, "msg", None) or error
            raise EvaluationError(f"{path}: line {number}: not an output ({reason}).") from None
        if number == len(lines):  # no newline: written only in part, whatever it looks like
            break
        good += len(line) + 1
        if row is not None:
            rows.append(row)
    return rows, good


def _key(row: Mapping[str, Any]) -> Key | None:
    key = (row.get("model"), row.get("set"), row.get("id"))
    return key if all(isinstance(part, str) for part in key) else None  # type: ignore[return-value]


class RowLog:
    """Rows appended to a JSONL file as they come, each line flushed: a cut loses none.

    On opening, a last line that was cut short is removed. Use as a context manager.

    Args:
        path: of the file; made where missing.

    Attributes:
        rows: what the file holds, in order.

    Raises:
        EvaluationError: a line before the last is broken.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = self.path.read_bytes() if self.path.is_file() else b""
        self.rows, good = _scan(data, self.path)
        if good < len(data):
            logger.info("%s: the last line was cut short; it is made again", self.path)
            with self.path.open("rb+") as stream:
                stream.truncate(good)
        self._stream: TextIO = self.path.open("a", encoding="utf-8", newline="\n")

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row at the end."""
        text = json.dumps(row, ensure_ascii=False).encode("utf-8", errors="replace").decode("utf-8")
        with naming(self.path):
            self._stream.write(text + "\n")
            self._stream.flush()
        self.rows.append(row)

    def close(self) -> None:
        """Closes the file."""
        with naming(self.path):
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class OutputLog(RowLog):
    """Answers appended to ``outputs.jsonl``; what is there already is known by (model, set, id).

    Args:
        path: of ``outputs.jsonl``; made where missing.

    Raises:
        EvaluationError: a line before the last is broken.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.done: set[Key] = {key for row in self.rows if (key := _key(row)) is not None}

    def __contains__(self, key: Key) -> bool:
        return key in self.done

    def append(self, answer: Answer) -> None:
        """Writes one answer; one whose key is there already is not written again."""
        key = (answer.model, answer.item.set, answer.item.id)
        if key not in self.done:
            self.write(row_of(answer))
            self.done.add(key)

    def answers(self, model: str) -> Iterator[Answer]:
        """What ``model`` has answered so far, in order of writing."""
        return (answer_of(row) for row in self.rows if row["model"] == model)


def redact(path: str | Path, keep: Keep) -> None:
    """Leaves of a judged ``outputs.jsonl`` what ``keep`` says: all, hashes only, or no file."""
    file = Path(path)
    if keep == "text" or not file.is_file():
        return
    if keep == "purge":
        file.unlink()
        return
    rows = read_outputs(file)
    with atomic_path(file) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            kept = {key: value for key, value in row.items() if key not in _TEXTS}
            stream.write(json.dumps(kept, ensure_ascii=False) + "\n")


def read_answers(
    path: str | Path, *, model: str | None = None, set_name: str | None = None
) -> list[Answer]:
    """Answers made elsewhere: JSON, JSONL, CSV or Parquet with a prompt and an answer a row.

    The prompt is called prompt, instruction (with input), question or query; the answer is called
    answer, response, output, completion or generation. The columns model, set, goal, system,
    category, target, tokens, finish and notes are read where they are there, so that an
    ``outputs.jsonl`` is such a file as well.

    Args:
        path: the file.
        model: the name of the model that answered, where no column says it; the file's name else.
        set_name: the same for the set.

    Raises:
        EvaluationError: no such file, none or two of the columns, a value of the wrong type, or
            two answers to one prompt; naming file, line and column.
    """
    file = Path(path).expanduser()
    if not file.is_file() or file.suffix.lower() not in SUFFIXES:
        raise EvaluationError(f"{path}: no file of answers ({', '.join(SUFFIXES)}); name one.")
    raw = read_rows(DataSection(path=str(file)))
    if "prompt_sha256" in raw.columns and "answer" not in raw.columns:
        raise EvaluationError(f"{path}: holds hashes only (keep: hash); its answers are gone.")
    names = {"prompt": _one(raw.columns, _PROMPT, path), "answer": _one(raw.columns, _ANSWER, path)}
    answers: list[Answer] = []
    seen: dict[Key, tuple[str, str]] = {}
    same = 0
    for row, place in zip(raw.rows, raw.places, strict=True):
        reader = _Reader(row, f"{path}: {place}")
        answer = _made_elsewhere(reader, names, model or file.stem, set_name or file.stem)
        key = (answer.model, answer.item.set, answer.item.id)
        if key in seen:
            before, text = seen[key]
            if text != answer.text:
                raise EvaluationError(
                    f"{path}: {before} and {place} answer the same prompt in two ways; keep one, "
                    "or tell them apart by a column 'model' or 'set'."
                )
            same += 1
            continue
        seen[key] = (place, answer.text)
        answers.append(answer)
    if same:
        logger.info("%s: %d rows repeat a prompt with the same answer; counted once", path, same)
    return answers


def _one(columns: list[str], names: tuple[str, ...], path: str | Path) -> str:
    found = [name for name in names if name in columns]
    if len(found) == 1 or found[:1] == ["prompt"]:
        return found[0]
    if not found:
        raise EvaluationError(
            f"{path}: no column {names[0]} ({', '.join(names[1:])} would do); it has "
            f"{', '.join(columns)}."
        )
    raise EvaluationError(
        f"{path}: the columns {' and '.join(found)} could both be the {names[0]}; rename or "
        "remove one."
    )


class _Reader:
    """One row's values, checked; errors name the place and the column."""

    def __init__(self, row: dict[str, Any] | None, place: str) -> None:
        if row is None:
            raise EvaluationError(
                f"{place}: not an object with a prompt and an answer; write it as one."
            )
        self._row, self._place = row, place

    def text(self, column: str, *, empty: bool = False) -> str:
        """A text that has to be there."""
        value = self._row.get(column)
        if not isinstance(value, str):
            found = "nothing" if value is None else f"a {type(value).__name__}"
            raise self.wrong(column, f"expected a text, found {found}")
        if not empty and not value.strip():
            raise self.wrong(column, "is empty")
        return value

    def optional(self, column: str) -> str | None:
        """A text, or None where the column is missing, null or empty."""
        value = self._row.get(column)
        return None if value is None or value == "" else self.text(column)

    def count(self, column: str) -> int | None:
        """A whole number of at least 0, or None; CSV has it as text."""
        value = self._row.get(column)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not str(value).isdecimal() or len(str(value)) > 18:
            raise self.wrong(column, "expected a whole number")
        return int(value)

    def plain(self, column: str) -> Any:
        """Whatever is there; a text that holds nothing is None."""
        value = self._row.get(column)
        return None if value == "" else value

    def label(self, column: str) -> str | None:
        """A name to group by: a text, or a number as text; None where there is none."""
        value = self._row.get(column)
        if isinstance(value, bool | int | float):
            return (
                None if value != value else f"{value:g}" if isinstance(value, float) else str(value)
            )
        return self.optional(column)

    def wrong(self, column: str, what: str) -> EvaluationError:
        """The error, placed."""
        return EvaluationError(f"{self._place}, column '{column}': {what}.")


def _made_elsewhere(reader: _Reader, names: Mapping[str, str], model: str, set_name: str) -> Answer:
    prompt = reader.text(names["prompt"])
    if names["prompt"] == "instruction":
        prompt = instruction_text(prompt, reader.optional("input") or "")
    finish = reader.optional("finish") or "unknown"
    if finish not in _FINISHES:
        raise reader.wrong("finish", f"expected {', '.join(_FINISHES)}")
    notes = reader.plain("notes")
    if notes is not None and not isinstance(notes, dict):
        raise reader.wrong("notes", "expected a mapping")
    item = Item(
        set=reader.optional("set") or set_name,
        prompt=prompt,
        goal=reader.optional("goal") or "",
        system=reader.optional("system"),
        target=reader.plain("target"),
        category=reader.label("category"),
    )
    return Answer(
        reader.optional("model") or model,
        item,
        reader.text(names["answer"], empty=True),
        next(known for known in _FINISHES if known == finish),
        reader.count("tokens"),
        notes or {},
    )
