"""Sets of malicious prompts, and of benign ones that ought to be answered: by name, or a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from anchortune.data.conversations import instruction_text
from anchortune.data.named import stem
from anchortune.data.prompts import COLUMNS
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import PromptSetSection
from anchortune.evaluation.items import Item
from anchortune.evaluation.select import BadRow, Source, collect, digest, select


@dataclass(frozen=True)
class PromptSet:
    """One named set.

    Attributes:
        source: on the Hub.
        column: of the prompts.
        category: the column to report by, or None.
    """

    source: Source
    column: str = "prompt"
    category: str | None = None


#: A new set is one more entry.
PROMPT_SETS: dict[str, PromptSet] = {
    # The paper's 250 prompts are the first rows of this split.
    "beavertails": PromptSet(
        Source("PKU-Alignment/BeaverTails", split="30k_test"), category="category"
    ),
    "advbench": PromptSet(Source("walledai/AdvBench", split="train")),
    "harmbench": PromptSet(
        Source("walledai/HarmBench", subset="standard", split="train"), category="category"
    ),
    "strongreject": PromptSet(Source("walledai/StrongREJECT", split="train"), category="category"),
    "jailbreakbench": PromptSet(
        Source("JailbreakBench/JBB-Behaviors", subset="behaviors", split="harmful"),
        column="Goal",
        category="Category",
    ),
}


@dataclass(frozen=True)
class LoadedPrompts:
    """A set whose prompts are ready to be asked.

    Attributes:
        name: what the report calls it.
        items: what is asked; ``goal`` is the plain request where a wrapper stands round it.
        benign: whether these ought to be answered.
        max_new_tokens: of this set, where it has its own.
        source: where the rows came from, with hashes, and what was done to them.
    """

    name: str
    items: list[Item]
    benign: bool
    max_new_tokens: int | None
    source: dict[str, Any]

    def identity(self) -> dict[str, Any]:
        """Everything that decides what is asked; goes into the record."""
        return dict(self.source)


def load_prompts(
    section: PromptSetSection,
    *,
    part: Literal["selection", "report", "all"],
    selection_frac: float,
    seed: int,
) -> LoadedPrompts:
    """The prompts that ``section`` describes: read, each once, of one part, wrapped.

    Args:
        section: of the config.
        part: which part of the set is asked.
        selection_frac: the share of the set that selects.
        seed: of the sample that ``max_items`` takes, and of the wrapper.

    Raises:
        EvaluationError: an unknown name or column, or nothing to ask.
        DataError: the rows cannot be read or used.
    """
    source, column, category = place_of(section)
    name = section.name or stem(source.path)
    name = section.label or (f"{name}-{section.wrapper}" if section.wrapper else name)
    raw = source.rows("train")
    for key, given in (("column", section.column), ("category", category)):
        if given is not None and given not in raw.columns:
            raise EvaluationError(
                f"{name} ({source.path}): no column '{given}' (named for {key}); it has "
                f"{', '.join(raw.columns)}."
            )
    column = column or next((name for name in COLUMNS if name in raw.columns), None)
    if column is None:
        raise EvaluationError(
            f"{name} ({source.path}): its columns ({', '.join(raw.columns)}) hold no prompts that "
            "are known as such; name theirs in column."
        )

    def item(row: Mapping[str, Any]) -> Item:
        prompt = row.get(column)
        if not isinstance(prompt, str):
            raise BadRow(f"{column} is not a text")
        if column == "instruction" and isinstance(row.get("input"), str):
            prompt = instruction_text(prompt, row["input"])
        if not prompt.strip():
            raise BadRow("empty prompt")
        group = _category(row.get(category)) if category is not None else None
        return Item(set=name, prompt=prompt.strip(), category=group)

    found = collect(raw, f"{name} ({source.path})", item)
    items = select(
        found.items,
        name,
        part=part,
        selection_frac=selection_frac,
        max_items=section.max_items,
        seed=seed,
    )
    if section.wrapper is not None:
        from anchortune.evaluation.wrappers import WRAPPERS

        wrap = WRAPPERS[section.wrapper]
        items = [replace(one, prompt=wrap(one.goal, seed), goal=one.goal) for one in items]
    summary = source.summary("train") | {
        "name": name,
        "set": section.name,
        "column": column,
        "category": category,
        "wrapper": section.wrapper,
        "benign": section.benign,
        "sha256": raw.sha256,
        "rows": found.rows,
        "repeats": found.repeats,
        "dropped": dict(found.dropped),
        "part": part,
        "selection_frac": selection_frac,
        "max_items": section.max_items,
        "seed": seed if section.max_items is not None or section.wrapper is not None else None,
        "n": len(items),
        "items_sha256": digest(items),
    }
    return LoadedPrompts(name, items, section.benign, section.max_new_tokens, summary)


def place_of(section: PromptSetSection) -> tuple[Source, str | None, str | None]:
    """(source, column, category) of a section.

    Raises:
        EvaluationError: an unknown name.
    """
    if section.path is not None:
        own = Source(section.path, section.subset, section.split, section.revision)
        return own, section.column, section.category
    known = PROMPT_SETS.get(str(section.name))
    if known is None:
        import difflib

        near = difflib.get_close_matches(str(section.name).lower(), PROMPT_SETS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise EvaluationError(
            f"harm: there is no prompt set '{section.name}'{hint}; there are "
            f"{', '.join(PROMPT_SETS)}, and any file or Hub dataset by path."
        )
    source = replace(
        known.source,
        subset=section.subset or known.source.subset,
        split=section.split or known.source.split,
        revision=section.revision or known.source.revision,
    )
    return source, section.column or known.column, section.category or known.category


def _category(value: Any) -> str | None:
    """A category as text; of a mapping of flags (BeaverTails) the first that is set."""
    if isinstance(value, Mapping):
        value = next((key for key, flag in value.items() if flag), None)
    if value is None or not str(value).strip():
        return None
    return str(value).strip()
