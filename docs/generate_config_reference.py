"""Tables of every config key, made from the pydantic models: a hook of ``mkdocs build``.

In a page, ``<!-- config:TrainConfig -->`` becomes the tables of that config and its sections,
``<!-- preset:paper -->`` the values of a preset, and ``<!-- defence:lisa -->`` the keys of a
defence. Run as a script, it prints the first two as Markdown.
"""

from __future__ import annotations

import json
import re
import sys
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from anchortune import config, config_mix
from anchortune.config_defences import DefenceSection
from anchortune.evaluation import config as evaluation_config
from anchortune.jobs import config as jobs_config

MARK = re.compile(r"<!-- (config|preset|defence):([\w-]+) -->")
#: What stands beside a value of a preset: where the value comes from.
PRESET_SOURCES: dict[str, dict[str, str]] = {
    "paper": {
        "penalty.operator": "their code: `C = dW·dWᵀ / ‖dW‖_F`",
        "penalty.side": "paper, eq. 4: the part off the aligned direction",
        "penalty.scaled": "their code: the penalty is on B·A, without alpha / r",
        "penalty.lam": "paper: λ = 1; their code: `--lambda_reg 1`",
        "lora.rank": "paper: rank 8; their code: `configs/peft.py`",
        "lora.alpha": "their code: `configs/peft.py`",
        "lora.dropout": "their code: `configs/peft.py`",
        "lora.target_modules": "their code: `configs/peft.py`",
        "training.epochs": "paper: 10 epochs; their code: `--num_epochs 10`",
        "training.batch_size": "paper: batch size 8; their code: `--batch_size_training 8`",
        "training.learning_rate": "paper: 5e-5; their code: `--lr 5e-5`",
        "training.weight_decay": "their code: `configs/training.py`",
        "training.schedule": "their code: `StepLR` with a step of one epoch",
        "training.step_decay": "their code: `gamma` in `configs/training.py`",
        "training.max_grad_norm": "their code clips no gradients",
    }
}


def _members(annotation: Any) -> list[Any]:
    """The members of a union with ``Annotated`` taken off."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for arg in typing.get_args(annotation) for part in _members(arg)]
    return [annotation]


def _type(annotation: Any) -> str:
    """What a value may be, in the words of YAML."""
    words = {int: "whole number", float: "number", str: "text", bool: "`true`, `false`"}
    names = []
    for part in _members(annotation):
        origin = typing.get_origin(part)
        if origin is typing.Literal:
            names.extend(f"`{choice}`" for choice in typing.get_args(part))
        elif origin is list:
            names.append("list")
        elif origin is dict:
            names.append("mapping")
        elif part is not type(None):
            names.append(words.get(part, "section"))
    return ", ".join(dict.fromkeys(names))


def _limits(field: Any) -> str:
    """``above 0, at most 1`` of a number's bounds."""
    signs = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    found = []
    for part in [*field.metadata, *_nested(field.annotation)]:
        found.extend(
            f"{word} {getattr(part, sign):g}"
            for sign, word in signs.items()
            if getattr(part, sign, None) is not None
        )
    return ", ".join(found)


def _nested(annotation: Any) -> list[Any]:
    """The constraints inside an annotation, such as those of one member of a union."""
    if typing.get_origin(annotation) is typing.Annotated:
        first, *rest = typing.get_args(annotation)
        inner = [part for item in rest for part in getattr(item, "metadata", [item])]
        return [*inner, *_nested(first)]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [part for arg in typing.get_args(annotation) for part in _nested(arg)]
    return []


def _default(field: Any) -> str:
    """The default as one writes it in YAML."""
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "*required*"
    if value is None:
        return "unset"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    if isinstance(value, list):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, str) and "\n" in value:
        return f"`{json.dumps(value)}`"
    return f"`{value}`" if value != {} else "`{}`"


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model behind a section, or behind a list or a mapping of them.

    None where it is one of several, which a page of their own describes.
    """
    for part in _members(annotation):
        inner = part
        if typing.get_origin(part) in (list, dict):
            inner, *others = _members(typing.get_args(part)[-1])
            if others:
                continue
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    return None


def _sections(kind: Any, done: set[str]) -> dict[str, type[BaseModel]]:
    """Every section under ``kind``, sections of sections too, by the first key that holds it."""
    found: dict[str, type[BaseModel]] = {}
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        if section is not None and section.__name__ not in done:
            done.add(section.__name__)
            found[name] = section
            found |= _sections(section, done)
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _table(kind: type[BaseModel], names: dict[str, str]) -> str:
    """A table of a section's keys.

    Args:
        kind: of the section.
        names: by class, the heading under which a section of its own has its table.
    """
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in kind.model_fields.items():
        section = _section(field.annotation)
        bounds = _limits(field)
        value = _type(field.annotation) + (f" ({bounds})" if bounds else "")
        text = field.description
        if text is None and section is not None:
            text = (section.__doc__ or "").splitlines()[0]
        if not text:
            raise ValueError(f"{kind.__name__}.{name} has no description: give its Field one")
        if section is not None:
            many = {"list": " or a list", "mapping": " for each name"}
            more = next((words for word, words in many.items() if word in value), "")
            value = f"section `{names.get(section.__name__, name)}`{more}"
        lines.append(f"| `{name}` | {_cell(value)} | {_cell(_default(field))} | {_cell(text)} |")
    return "\n".join(lines)


def render(kind: type[BaseModel], heading: str = "###", done: set[str] | None = None) -> str:
    """A config's keys as Markdown: a table for the top, then one for each section."""
    sections = _sections(kind, set() if done is None else done)
    names = {section.__name__: name for name, section in sections.items()}
    parts = [_table(kind, names)]
    for name, section in sections.items():
        first = (section.__doc__ or "").splitlines()[0]
        parts.append(f"{heading} `{name}`\n\n{first}\n\n{_table(section, names)}")
    return "\n\n".join(parts)


def render_own(kind: type[BaseModel], other: type[BaseModel], *told: type[BaseModel]) -> str:
    """The keys of ``kind`` that ``other`` has not, or has for something else, with their sections.

    Sections that are in ``told`` are left out.
    """
    known = other.model_fields
    fields = {
        key: field
        for key, field in kind.model_fields.items()
        if key not in known or field.annotation != known[key].annotation
    }
    rest = {
        section.__name__
        for one in (other, *told)
        for field in one.model_fields.values()
        if (section := _section(field.annotation))
    }
    own = typing.cast(
        "type[BaseModel]", types.SimpleNamespace(model_fields=fields, __name__=kind.__name__)
    )
    return render(own, done=set(rest))


def render_preset(name: str) -> str:
    """A preset's values, each beside where it comes from."""
    lines = ["| key | value | source |", "|---|---|---|"]
    sources = dict(PRESET_SOURCES[name])
    for section, values in config.PRESETS[name].items():
        for key, value in values.items():
            shown = str(value).lower() if isinstance(value, bool) else str(value)
            if value is None:
                shown = "null"
            if isinstance(value, list):
                shown = f"[{', '.join(value)}]"
            path = f"{section}.{key}"
            lines.append(f"| `{path}` | `{shown}` | {_cell(sources.pop(path))} |")
    if sources:
        raise ValueError(f"sources of values that the preset has not: {', '.join(sources)}")
    return "\n".join(lines)


def render_defence(name: str) -> str:
    """The keys of a method besides its name; a sentence where it has none."""
    kinds = {kind.model_fields["name"].default: kind for kind in _members(DefenceSection)}
    fields = {key: field for key, field in kinds[name].model_fields.items() if key != "name"}
    own = typing.cast("type[BaseModel]", types.SimpleNamespace(model_fields=fields, __name__=name))
    return _table(own, {}) if fields else "It has no keys."


def fill(markdown: str) -> str:
    """``markdown`` with every mark replaced by what it stands for."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "preset":
            return render_preset(match[2])
        if match[1] == "defence":
            return render_defence(match[2])
        if match[2] == "AlignConfig":
            return render_own(config.AlignConfig, config.TrainConfig)
        if match[2] == "JobConfig":
            return render_own(
                jobs_config.JobConfig, config.TrainConfig, evaluation_config.AskSection
            )
        homes = (config, config_mix, evaluation_config)
        return render(next(getattr(home, match[2]) for home in homes if hasattr(home, match[2])))

    return MARK.sub(replace, markdown)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return fill(markdown)


if __name__ == "__main__":
    sys.stdout.write(fill("<!-- config:TrainConfig -->\n\n<!-- config:AlignConfig -->\n"))
    sys.stdout.write("\n" + fill("<!-- preset:paper -->\n"))
