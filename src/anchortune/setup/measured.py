"""What can be measured here: harmful and harmless prompts, a task with right answers, a judge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.config import DataSection, JudgeSection
from anchortune.data.conversations import detect
from anchortune.data.named import local_path
from anchortune.data.prompts import COLUMNS
from anchortune.data.rows import SUFFIXES, RawRows, read_rows
from anchortune.errors import AnchortuneError, CheckpointError, DataError, EvaluationError, sentence
from anchortune.evaluation.config import PromptSetSection, TaskSection
from anchortune.evaluation.judges.registry import check_judge
from anchortune.evaluation.prompt_sets import PROMPT_SETS, load_prompts
from anchortune.evaluation.tasks.load import load_task
from anchortune.evaluation.tasks.named import TASKS
from anchortune.evaluation.tasks.numbers import find_number
from anchortune.setup.rows import guess_columns, kinds_of, spread

#: The set that is taken where none is named: open to all, with harmless twins of its prompts.
DEFAULT_SET = "jailbreakbench"
_TWINS: dict[str, Any] = {"subset": "behaviors", "split": "benign", "column": "Goal"}
#: Fewer prompts than this are all reported on, none kept for choosing settings.
_FEW_PROMPTS = 200
_MOST_CLASSES = 20
_CLASS_WORDS, _EXACT_WORDS = 4, 12
_MARGIN_TOKENS = 8
_MOST_COUNTED = 2000
_INSTRUCTION = "{instruction}\n{input}"
#: 95 % of a normal distribution lie within this of its middle.
_Z = 1.959964


@dataclass(frozen=True)
class Asked:
    """One set or task, as it stands in a config, and what was seen of it.

    Attributes:
        tree: its section, as plain values.
        told: for a comment.
        prompts: how many.
    """

    tree: dict[str, Any]
    told: str
    prompts: int


@dataclass(frozen=True)
class Measured:
    """What an evaluation can ask and who judges it.

    Attributes:
        harm: sets of harmful prompts.
        benign: sets of harmless prompts.
        tasks: with right answers.
        judges: their sections, as plain values or names.
        selection_frac: the share of every set that is kept for choosing settings.
    """

    harm: list[Asked]
    benign: list[Asked]
    tasks: list[Asked]
    judges: list[Any]
    selection_frac: float

    @property
    def judges_harm(self) -> bool:
        """Whether one of the judges tells harm; ``refusal`` does not."""
        return any(_name(one) != "refusal" for one in self.judges)

    def reported(self, sets: Sequence[Asked]) -> int:
        """About how many prompts of the smallest of ``sets`` are reported on."""
        return int(min(one.prompts for one in sets) * (1 - self.selection_frac))


def _name(judge: Any) -> Any:
    return judge["name"] if isinstance(judge, dict) else judge


def least_prompts(limit: float) -> int:
    """The fewest prompts with which a difference can be shown to lie within ``limit``.

    Where no answer differs, the interval is ± z² / (n + z²): see ``anchortune.maths.stats.tango``.
    """
    return math.ceil(_Z**2 * (1 / limit - 1))


def pick_judges(named: Sequence[JudgeSection]) -> tuple[list[Any], list[str]]:
    """(the judges of a config, what could not be found): those named, else those that are here.

    Raises:
        ConfigError: a named judge lacks what it needs.
    """
    if named:
        for section in named:
            check_judge(section)
        return [section.model_dump(exclude_defaults=True) for section in named], []
    from anchortune.checkpoints.packaged import resolve
    from anchortune.evaluation.judges.builtin_head import load_head

    try:
        resolve(load_head().facts.backbone.path)
    except CheckpointError as error:
        note = (
            f"no judge of harm is here ({sentence(error).rstrip('.')}); refusal phrases are no "
            "judgement of harm, so no limit can be set on it"
        )
        return ["refusal"], [note]
    return ["builtin", "refusal"], []


def find_sets(
    harm: Sequence[str], benign: Sequence[str]
) -> tuple[list[Asked], list[Asked], list[str]]:
    """(harmful sets, harmless sets, what could not be found).

    Args:
        harm: files, Hub datasets or names of known sets; none takes ``DEFAULT_SET`` of the Hub.
        benign: files or Hub datasets.

    Raises:
        AnchortuneError: a named one cannot be read, or nothing is named and the Hub is not there.
    """
    notes: list[str] = []
    if not harm:
        try:
            found = [_set({"name": DEFAULT_SET})]
        except AnchortuneError as error:
            raise EvaluationError(
                f"no harmful prompts to measure with: none are named, and {DEFAULT_SET} cannot be "
                f"had ({sentence(error).rstrip('.')}); give --harm FILE (its column: prompt), or "
                "--train for a config that only trains."
            ) from None
    else:
        found = [_set(_section(name)) for name in harm]
    if benign:
        return found, [_set(_file(name) | {"benign": True}) for name in benign], notes
    if not harm:
        source = PROMPT_SETS[DEFAULT_SET].source.path
        twins = {"path": source, "label": "harmless", **_TWINS, "benign": True}
        try:
            return found, [_set(twins)], notes
        except AnchortuneError as error:
            notes.append(f"the harmless prompts of {DEFAULT_SET}: {sentence(error)}")
    else:
        notes.append(
            "no harmless prompts are named, so nothing tells whether it refuses too much: --benign "
            "FILE adds some"
        )
    return found, [], notes


def _section(name: str) -> dict[str, Any]:
    """A set as a config names it: by its path where there is such a file, else by its name."""
    known = Path(name).suffix.lower() in SUFFIXES or "/" in name or local_path(name).exists()
    return _file(name) if known else {"name": name}


def _file(path: str) -> dict[str, Any]:
    """A file of prompts; with its one column of texts where that has no usual name."""
    raw = read_rows(DataSection(path=path))
    texts = [column for column, kind in kinds_of(raw).items() if kind == "text"]
    if set(COLUMNS) & set(raw.columns) or len(texts) != 1:
        return {"path": path}
    return {"path": path, "column": texts[0]}


def _set(tree: dict[str, Any]) -> Asked:
    loaded = load_prompts(PromptSetSection(**tree), part="all", selection_frac=0.0, seed=0)
    kind = "harmless" if loaded.benign else "harmful"
    column = loaded.source["column"]
    return Asked(
        tree, f"{len(loaded.items)} {kind} prompts, in the column {column}", len(loaded.items)
    )


def selection_frac(sets: Sequence[Asked]) -> float:
    """The share of every set that is kept for choosing settings; 0 where there are few prompts."""
    return 0.5 if min((one.prompts for one in sets), default=0) >= _FEW_PROMPTS else 0.0


def find_task(name: str, columns: Mapping[str, str], tokenizer: Any) -> tuple[Asked | None, str]:
    """(a task made of ``name``, or None; why there is none).

    Args:
        name: a file of the same kind as the training data, or the name of a known task.
        columns: standard field -> column, where the user says so.
        tokenizer: of the model, for the length of answers.

    Raises:
        AnchortuneError: it cannot be read.
    """
    if name in TASKS and not local_path(name).exists():
        if TASKS[name].kind == "win_rate":
            raise EvaluationError(
                f"--test {name}: its answers are compared by a model behind a server, which init "
                "knows nothing of; add it to the written file, as docs/tasks.md shows."
            )
        loaded = load_task(TaskSection(name=name), part="all", selection_frac=0.0, seed=0)
        return Asked({"name": name}, f"{len(loaded.items)} items", len(loaded.items)), ""
    raw = read_rows(DataSection(path=name))
    known = dict(columns) if set(columns.values()) <= set(raw.columns) else {}
    section = DataSection(path=name, columns=known)
    try:
        kind, found = detect(raw, section)
    except DataError:
        section = DataSection(path=name, columns=guess_columns(raw, name))
        kind, found = detect(raw, section)
    if kind == "messages":
        return None, f"{name}: its rows are whole dialogues, and a task has one right answer a row"
    prompt = found["instruction" if kind == "instruction" else "prompt"]
    target = found["output" if kind == "instruction" else "completion"]
    values = [str(row[target]) for row in raw.rows if row is not None and row.get(target)]
    match, told = _match(values)
    if match is None:
        return None, f"{name}: {told}"
    if any(isinstance(row[prompt], list) for row in raw.rows if row is not None and prompt in row):
        return None, f"{name}: its prompts are whole dialogues, and a task asks one text a row"
    template = _template(raw, prompt, found.get("input"))
    if template is None:
        return None, f"{name}: a column's name holds a bracket, which no prompt template can name"
    longest = max(len(tokenizer(one)["input_ids"]) for one in spread(values, _MOST_COUNTED))
    tree: dict[str, Any] = {"path": name, "prompt": template, "target": target, "match": match}
    if template == _INSTRUCTION and not {"prompt", "question"} & set(raw.columns):
        del tree["prompt"]  # a task's own way: as in training, no empty line for an empty input
    tree["max_new_tokens"] = longest + _MARGIN_TOKENS
    loaded = load_task(TaskSection(**tree), part="all", selection_frac=0.0, seed=0)
    return Asked(tree, f"{len(loaded.items)} items; {told}", len(loaded.items)), ""


def _template(raw: RawRows, prompt: str, extra: str | None) -> str | None:
    """The prompt of a task that asks what training asks; None where it cannot be written."""
    columns = [prompt]
    rows = [row for row in raw.rows if row is not None]
    if extra is not None and any(str(row.get(extra) or "").strip() for row in rows):
        columns.append(extra)
    if any("{" in column or "}" in column for column in columns):
        return None
    return "\n".join(f"{{{column}}}" for column in columns)


def _match(values: Sequence[str]) -> tuple[str | None, str]:
    """(how answers are held against these targets, or None; what was seen of them)."""
    texts = [" ".join(value.split()) for value in values]
    distinct = sorted(set(texts))
    if not distinct:
        return None, "no row of it holds a right answer"
    words = max(len(text.split()) for text in distinct)
    folded = len({text.casefold() for text in distinct}) == len(distinct)
    numbers = all(
        find_number(text).value is not None and (len(text) < 20 or "####" in text)
        for text in distinct
    )
    if numbers:
        return "number", "every right answer ends in a number"
    few = 1 < len(distinct) <= min(_MOST_CLASSES, len(texts) // 2)
    if few and words <= _CLASS_WORDS and folded:
        return "choice", f"{len(distinct)} classes: {', '.join(distinct)}"
    if words <= _EXACT_WORDS:
        return "exact", f"right answers of at most {words} words"
    return None, (
        f"its answers have up to {words} words, which no match can call right or wrong; a task "
        "needs short ones"
    )
