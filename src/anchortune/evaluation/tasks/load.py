"""A task's section of the config -> items to ask and a way to read the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from anchortune.data.conversations import instruction_text
from anchortune.data.named import stem
from anchortune.data.rows import RawRows
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import TaskSection
from anchortune.evaluation.items import Item
from anchortune.evaluation.judges.refusal import has_refusal
from anchortune.evaluation.select import BadRow, Source, collect, digest, select
from anchortune.evaluation.tasks.base import LoadedTask, Matcher, Reading
from anchortune.evaluation.tasks.match import choice, exact, number, regex
from anchortune.evaluation.tasks.named import TASKS, TaskSpec
from anchortune.evaluation.tasks.numbers import find_number, show

_FIELD = re.compile(r"\{\{|\}\}|\{([^{}]+)\}")
_PROMPTS = ("prompt", "question", "instruction", "sentence", "text", "input")
_TARGETS = ("target", "label", "answer", "output", "completion", "response", "reference")
_MOST_CLASSES = 100
#: For files of one's own.
MAX_NEW_TOKENS = 128


def load_task(
    section: TaskSection,
    *,
    part: Literal["selection", "report", "all"],
    selection_frac: float,
    seed: int,
) -> LoadedTask:
    """The task that ``section`` describes, its rows read, checked and chosen.

    Args:
        section: of the config.
        part: which part of the set is asked.
        selection_frac: the share of the set that selects.
        seed: of the sample that ``max_items`` takes.

    Raises:
        EvaluationError: an unknown name, a key that would do nothing, or nothing to ask.
        DataError: the rows cannot be read or used.
    """
    spec = spec_of(section)
    source = place_of(section, spec)
    where = section.label or section.name or stem(source.path)
    raw = source.rows(spec.split)
    asked = _Rows(section, spec, raw, where)
    found = collect(raw, f"{where} ({source.path})", asked.item)
    items = select(
        found.items,
        where,
        part=part,
        selection_frac=selection_frac,
        max_items=section.max_items,
        seed=seed,
    )
    summary = source.summary(spec.split) | {
        "name": where,
        "task": section.name,
        "kind": spec.kind,
        "preset": section.preset,
        "prompt": asked.template,
        "match": asked.how,
        "choices": dict(asked.choices),
        "pattern": section.pattern,
        "system": section.system,
        "sha256": raw.sha256,
        "rows": found.rows,
        "skipped": dict(found.skipped),
        "repeats": found.repeats,
        "dropped": dict(found.dropped),
        "part": part,
        "selection_frac": selection_frac,
        "max_items": section.max_items,
        "seed": seed if section.max_items is not None else None,
        "n": len(items),
        "items_sha256": digest(items),
    }
    longest = section.max_new_tokens or asked.max_new_tokens
    if spec.kind == "win_rate":
        from anchortune.evaluation.tasks.pairwise import pair_reader

        has_reference = all(item.target is not None for item in items)
        reader = pair_reader(section, seed)
        summary["judge"] = reader.identity()
        return LoadedTask(
            where,
            spec.kind,
            items,
            longest,
            summary,
            pairs=reader,
            needs_reference=not has_reference,
        )
    return LoadedTask(where, spec.kind, items, longest, summary, matcher=asked.matcher())


def fields_of(template: str) -> list[str]:
    """The columns that a prompt names, in its order."""
    return [match[1] for match in _FIELD.finditer(template) if match[1]]


def place_of(section: TaskSection, spec: TaskSpec) -> Source:
    """Where the rows of a section lie: where it says, else where its named task's do."""
    if section.path is not None:
        return Source(section.path, section.subset, section.split, section.revision)
    return replace(
        spec.source,
        subset=section.subset or spec.source.subset,
        split=section.split or spec.source.split,
        revision=section.revision or spec.source.revision,
    )


def spec_of(section: TaskSection) -> TaskSpec:
    """What the section's name stands for, or the spec of a file of one's own.

    Raises:
        EvaluationError: an unknown name, or a key that would do nothing.
    """
    name = section.name
    if name is not None and name not in TASKS:
        import difflib

        near = difflib.get_close_matches(name.lower(), TASKS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise EvaluationError(
            f"tasks: there is no task '{name}'{hint}; there are {', '.join(TASKS)}, and a file of "
            "one's own by path without a name."
        )
    spec = TASKS[name] if name is not None else None
    if spec is None:
        if section.preset != "default":
            raise EvaluationError(f"{section.path}: preset: paper is for named tasks; drop it.")
        if section.match is None:
            raise EvaluationError(
                f"{section.path}: say how an answer is matched: exact, regex, number or choice."
            )
        spec = TaskSpec(
            source=Source(str(section.path)),
            text=_PROMPTS,
            target=_TARGETS,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    match = section.match or spec.match
    own = section.preset == "default" and spec.kind == "accuracy"
    for key, useful, why in (
        ("match", name is None, "its answers are read in one way"),
        ("target", spec.kind != "over_refusal", "it has no right answers"),
        ("choices", own and match == "choice", "it is for match: choice"),
        ("pattern", own and match == "regex", "it is for match: regex"),
        ("judge", spec.kind == "win_rate", "it is for alpaca"),
    ):
        if getattr(section, key) is not None and not useful:
            raise EvaluationError(f"tasks: {key} does nothing for {name or section.path}: {why}.")
    if own and match == "regex" and section.pattern is None:
        raise EvaluationError(f"{name or section.path}: match: regex needs a pattern.")
    if section.preset == "paper" and spec.paper is None:
        raise EvaluationError(f"{name}: there is no preset paper, for {spec.no_paper}; drop it.")
    if spec.kind == "win_rate" and section.judge is None:
        raise EvaluationError(
            f"{name}: a pairwise judge is needed: judge: {{url: …/v1, model: …}} of an "
            "OpenAI-compatible server."
        )
    return spec


class _Rows:
    """How the rows of one source become items."""

    def __init__(self, section: TaskSection, spec: TaskSpec, raw: RawRows, where: str) -> None:
        self.section, self.spec, self.where = section, spec, where
        self.paper = spec.paper if section.preset == "paper" else None
        self.max_new_tokens = self.paper.max_new_tokens if self.paper else spec.max_new_tokens
        self.match = section.match or spec.match
        self.how = "the authors' own" if self.paper else str(self.match or spec.kind)
        self.template = section.prompt or (self.paper.prompt if self.paper else spec.prompt)
        named = fields_of(self.template)
        own = section.name is None and section.prompt is not None  # else {text} is the item's
        for column in named:
            if column not in raw.columns and (own or column != "text"):
                raise EvaluationError(
                    f"{where}: prompt names the column '{column}', which is not there; there are "
                    f"{', '.join(raw.columns)}"
                    "; name one of them."
                )
        if not named:
            raise EvaluationError(
                f"{where}: its prompt is the same for every row; put {{column}} where a column's "
                "text goes."
            )
        for key in ("target", "category"):
            column = getattr(section, key)
            if column is not None and column not in raw.columns:
                raise EvaluationError(
                    f"{where}: no column '{column}' (named for {key}); it has "
                    f"{', '.join(raw.columns)}."
                )
        if section.name is None:
            self._known_columns(raw.columns)
        self.text_column = _first(spec.text, raw.columns)
        self.target_column = section.target or _first(spec.target, raw.columns)
        rows = [row for row in raw.rows if row is not None]
        self.choices: Mapping[str, str] = {}
        if self.match == "choice":
            self.choices = section.choices or spec.choices or self._classes(rows)
        self._matcher = self._make_matcher()

    def _known_columns(self, columns: list[str]) -> None:
        """Refuses a file of one's own in which no prompt or no target is to be found."""
        for key, names in (("prompt", _PROMPTS), ("target", _TARGETS)):
            if getattr(self.section, key) is None and not set(names) & set(columns):
                raise EvaluationError(
                    f"{self.where}: none of its columns ({', '.join(columns)}) is known as a "
                    f"{key}; say which with {key}."
                )

    def _classes(self, rows: list[dict[str, Any]]) -> dict[str, str]:
        """The classes of a file that names none: the values of its target column."""
        found = (row.get(self.target_column or "") for row in rows)
        values = {_key(value) for value in found if value is not None}
        if len(values) > _MOST_CLASSES:
            raise EvaluationError(
                f"{self.where}: its target column has {len(values)} values; name the classes in "
                "choices, or take match: exact."
            )
        return {value: value for value in sorted(values)}

    def _make_matcher(self) -> Matcher | None:
        if self.paper is not None:
            return self.paper.matcher
        if self.match == "choice":
            return choice(self.choices)
        if self.match == "regex":
            return regex(self.section.pattern or "")
        return {"exact": exact, "number": number}.get(str(self.match))

    def matcher(self) -> Matcher:
        """Reads one answer."""
        if self._matcher is not None:
            return self._matcher
        return refusal

    def item(self, row: dict[str, Any]) -> Item:
        """One row's item."""
        if self.spec.prepare is not None:
            row = self.spec.prepare(row)
        text = self._text(row)
        category = self.section.category or self.spec.category
        value = row.get(category) if category is not None else None
        return Item(
            set=self.where,
            prompt=self._prompt(row, text),
            goal=text,
            system=self.section.system,
            target=self._checked(row.get(self.target_column or "")),
            category=None if value is None else str(value),
        )

    def _text(self, row: dict[str, Any]) -> str:
        if self.section.name is None and self.section.prompt is not None:
            # By what the template takes from the row, so that other words round it change no part.
            named = dict.fromkeys(found[1] for found in _FIELD.finditer(self.template) if found[1])
            own = [str(row[name]) for name in named if row.get(name) is not None]
            if not any(map(str.strip, own)):
                raise BadRow(f"nothing in the columns {', '.join(named)}")
            return "\n".join(own)
        column = self.text_column or ""
        if row.get(column) is None:
            raise BadRow(f"no {column}")
        text = str(row[column])
        extra = row.get("input")
        if column == "instruction" and isinstance(extra, str):
            text = instruction_text(text, extra)
        if not text.strip():
            raise BadRow(f"empty {column}")
        return text

    def _prompt(self, row: dict[str, Any], text: str) -> str:
        """The template filled; a row that brings its own instruction is asked in its words."""
        own, extra = row.get("instruction"), row.get("input")
        ours = self.section.prompt is None and self.paper is None and "input" in self.spec.text
        if ours and isinstance(own, str) and isinstance(extra, str) and extra.strip():
            return instruction_text(own, extra)

        def put(match: re.Match[str]) -> str:
            if match[1] is None:
                return match[0][0]
            if match[1] == "text" and (self.section.name is not None or "text" not in row):
                return text
            value = row.get(match[1])
            return "" if value is None else str(value)

        return _FIELD.sub(put, self.template)

    def _checked(self, value: Any) -> Any:
        """The target in the form its matcher compares with."""
        if not self.spec.target:
            return None
        if value is None or not str(value).strip():
            if self.spec.kind == "win_rate":
                return None
            raise BadRow("no right answer")
        if self.choices:
            word = str(value).strip().casefold()
            if _key(value) in self.choices:
                return _key(value)
            named = [key for key, name in self.choices.items() if name.casefold() == word]
            if not named:
                raise BadRow("a target that is none of the classes")
            return named[0]
        if self.match == "number":
            found = find_number(str(value)).value
            if found is None:
                raise BadRow("a target without a number")
            return show(found)
        return str(value)


def _first(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The first of ``names`` that is a column, else the first: made while rows are prepared."""
    return next((name for name in names if name in columns), names[0] if names else None)


def _key(value: Any) -> str:
    """A target as a key: ``1`` for 1, ``1.0`` and ``"1"``."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def refusal(text: str, target: Any) -> Reading:
    """Whether a prompt that ought to be answered was refused, by phrases; see the refusal judge."""
    if not text.strip():
        return Reading("unparsed", why="empty answer")
    if has_refusal(text):
        return Reading("wrong", "refused", "holds a phrase of refusal")
    return Reading("right", "answered")
