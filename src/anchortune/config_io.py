"""Reading a config: YAML with presets and ``--set``, and errors that name the key and the mend."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from anchortune.config import PRESETS
from anchortune.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)
_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    type(None): "null",
}


class _Loader(yaml.SafeLoader):
    """``SafeLoader`` that refuses duplicate keys and reads ``5e-5`` as the number it is."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, typing.Hashable) and key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key '{key}' is given twice; remove one.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(  # YAML 1.1 wants a dot and a sign: 5e-5 would be a string
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML of plain values; tags that would build objects are refused.
        where: the file or flag, for the error.

    Raises:
        ConfigError: not YAML, or a key given twice.
    """
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}: {line}not valid YAML ({problem}).") from None
    finally:
        loader.dispose()


def assign(tree: dict[str, Any], item: str) -> None:
    """Puts one ``key.path=value`` of ``--set`` into a tree of plain values.

    Raises:
        ConfigError: no such form, or a key under what holds none.
    """
    path, equals, text = item.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {item}: expected key.path=value.")
    value = parse_yaml(text, f"--set {item}")
    node: Any = tree
    for depth, key in enumerate(keys):
        index: Any = key
        if isinstance(node, list):
            if not key.isdigit() or int(key) >= len(node):
                raise ConfigError(
                    f"--set {item}: {'.'.join(keys[:depth])} is a list of {len(node)}; "
                    f"'{key}' is not one of its positions (0 to {len(node) - 1})."
                )
            index = int(key)
        elif not isinstance(node, dict):
            raise ConfigError(f"--set {item}: {'.'.join(keys[:depth])} holds no keys.")
        if depth == len(keys) - 1:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            node = node[index]


def _under(file: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """The preset with the file's values over it; a section the file sets to null stays null."""
    merged = dict(preset)
    for key, value in file.items():
        below = preset.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _under(value, below) if both else value  # type: ignore[arg-type]
    return merged


def load_config(path: str | Path, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, checked.

    Args:
        path: the YAML file.
        kind: the config's class.
        overrides: ``key.path=value`` items, the value in YAML; later ones win.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type or value.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path}: cannot read the config ({reason}).") from None
    tree = parse_yaml(text, str(path))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {_describe(tree)}.")
    for item in overrides:
        assign(tree, item)
    preset = tree.get("preset")
    if isinstance(preset, str) and preset in PRESETS and "preset" in kind.model_fields:
        tree = _under(tree, PRESETS[preset])
    return validate(tree, kind, str(path))


def validate(tree: dict[str, Any], kind: type[Config], where: str) -> Config:
    """``tree`` as a ``kind``; the first error as one sentence.

    Raises:
        ConfigError: an unknown key (with the nearest name), a wrong type or value.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error, kind)}") from None


def _parts(annotation: Any) -> list[Any]:
    """The members of a union, ``Annotated`` taken off; one member for anything else."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _parts(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return [part for arg in typing.get_args(annotation) for part in _parts(arg)]
    return [annotation]


def _expected(annotation: Any) -> str:
    names = []
    for part in _parts(annotation):
        origin = typing.get_origin(part)
        if origin is typing.Literal:
            names.append(", ".join(str(choice) for choice in typing.get_args(part)))
        elif origin is list:
            names.append("a list")
        elif origin is dict or (isinstance(part, type) and issubclass(part, BaseModel)):
            names.append("a mapping of keys")
        else:
            names.append(_NAMES.get(part, str(part)))
    return " or ".join(names)


def _describe(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"{str(value).lower()}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return f"the text '{value}'"
    return "a list" if isinstance(value, list) else "a mapping"


def _walk(kind: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], Any, Any]:
    """(path, its annotation, the model that holds its last key) as far as the schema goes.

    Pydantic appends the names of union members to a location; those are not the user's keys.
    """
    path: list[str] = []
    here: Any = kind
    holder: Any = kind
    for step in location:
        models = [p for p in _parts(here) if isinstance(p, type) and issubclass(p, BaseModel)]
        lists = [p for p in _parts(here) if typing.get_origin(p) is list]
        if isinstance(step, int) and lists:
            here = typing.get_args(lists[0])[0]
        elif models and step in models[0].model_fields:
            holder = models[0]
            here = _annotation(holder, str(step))
        else:
            if models and isinstance(step, str):
                holder = models[0]
            break
        path.append(str(step))
    return path, here, holder


def _annotation(kind: type[BaseModel], name: str) -> Any:
    return typing.get_type_hints(kind, include_extras=True)[name]


def _sentence(error: ValidationError, kind: type[BaseModel]) -> str:
    problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    problem = (unknown or problems)[0]
    location = problem["loc"]
    path, annotation, holder = _walk(kind, location)
    if problem["type"] == "extra_forbidden":
        key = str(location[-1])
        known = list(holder.model_fields)
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}."
        return f"unknown key '{'.'.join(map(str, location))}'; {hint}"
    name = ".".join(path) or "the config"
    if problem["type"] == "missing":
        missing = ".".join(map(str, location))
        return f"the key '{missing}' is missing; give {_expected(annotation)}."
    if problem["type"] == "value_error":
        prefix = f"{name}: " if path else ""
        return f"{prefix}{str(problem['msg']).removeprefix('Value error, ')}."
    if problem["type"] == "too_short":
        return f"{name}: expected at least 1 item, found none."
    if problem["type"] == "finite_number":
        return f"{name}: expected a finite number, found {problem['input']}."
    bounds = problem.get("ctx", {})
    limits = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    for mark, word in limits.items():
        if mark in bounds:
            return f"{name}: expected a number {word} {bounds[mark]}, found {problem['input']}."
    return f"{name}: expected {_expected(annotation)}, found {_describe(problem['input'])}."


def dump_yaml(config: BaseModel) -> str:
    """A config with every default filled in, as YAML that ``load_config`` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
