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
from anchortune.config_defences import named_methods
from anchortune.deprecations import with_new_keys
from anchortune.errors import ConfigError
from anchortune.sections import Shorthand
from anchortune.yaml_text import FLOAT, write_yaml

Config = TypeVar("Config", bound=BaseModel)
_POSITION = re.compile(r"[0-9]{1,9}")
_MOST_BYTES = 1 << 20
_MOST_VALUES = 10_000
"""What a config may come to with its aliases written out: ten lines of them can make a billion."""
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
            if not isinstance(key, typing.Hashable):
                continue  # which the parent refuses
            if key in seen:
                line = key_node.start_mark.line + 1
                raise ConfigError(f"line {line}: the key '{key}' is given twice; remove one.")
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(*FLOAT)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Args:
        text: YAML of plain values; tags that would build objects are refused.
        where: the file or flag, for the error.

    Raises:
        ConfigError: not YAML, a key given twice, a value that is none of its kind (a date without
            a 13th month), or more values than any config has.
    """
    try:
        loader = _Loader(text)  # which looks for characters that YAML has not
        try:
            value = loader.get_single_data()
        finally:
            loader.dispose()
        _count(value, (), {})
        return value
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{where}: {line}not valid YAML ({problem}).") from None
    except RecursionError:
        raise ConfigError(
            f"{where}: its values lie too deep in each other; write them flatter."
        ) from None
    except (ValueError, AttributeError, OverflowError) as error:
        # PyYAML's own readers of numbers and dates, of what only looks like one
        raise ConfigError(f"{where}: not valid YAML ({error}).") from None


def _count(value: Any, above: tuple[int, ...], known: dict[int, int]) -> int:
    """How many values ``value`` comes to, those under an alias counted at each of its places.

    Raises:
        ConfigError: more than ``_MOST_VALUES``, or one that holds itself.
    """
    if not isinstance(value, dict | list):
        return 1
    place = id(value)
    if place in above:
        raise ConfigError("an alias (*) stands within what it stands for; write it out.")
    if place not in known:
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        known[place] = 1 + sum(_count(one, (*above, place), known) for one in inner)
    if known[place] > _MOST_VALUES:
        raise ConfigError(
            f"its values, aliases written out, are more than {_MOST_VALUES}; write fewer."
        )
    return known[place]


def assign(tree: dict[str, Any], item: str, kind: type[BaseModel] | None = None) -> None:
    """Puts one ``key.path=value`` of ``--set`` into a tree of plain values.

    Args:
        tree: is changed.
        item: the value in YAML.
        kind: what the tree is to become: a section that it names by one text (``model: NAME``) is
            spelt out where a key of it is set.

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
            if not _POSITION.fullmatch(key) or int(key) >= len(node):
                mend = f"choose one of 0 to {len(node) - 1}" if node else "set it as a whole"
                raise ConfigError(
                    f"--set {item}: {'.'.join(keys[:depth])} is a list of {len(node)}; "
                    f"'{key}' is not one of its positions; {mend}."
                )
            index = int(key)
        elif not isinstance(node, dict):
            above = ".".join(keys[:depth])
            raise ConfigError(
                f"--set {item}: {above} is {_describe(node)}, which holds no keys; set it as "
                f"a whole, --set '{above}={{…}}'."
            )
        if depth == len(keys) - 1:
            node[index] = value
        else:
            if isinstance(node, dict) and node.get(index) is None:
                node[index] = {}
            elif kind is not None and isinstance(node[index], str):
                node[index] = _spelt_out(node[index], kind, keys[: depth + 1])
            node = node[index]


def _spelt_out(text: str, kind: type[BaseModel], keys: Sequence[str]) -> Any:
    """The section that ``text`` stands for at a place of the config, or the text."""
    places = [int(key) if _POSITION.fullmatch(key) else key for key in keys]
    path, here, _ = _walk(kind, places)
    if len(path) < len(keys):
        return text
    while typing.get_origin(here) is not None:  # Annotated, within unions or around them
        for mark in getattr(here, "__metadata__", ()):
            made = getattr(mark, "func", None)
            if isinstance(made, Shorthand):
                return made(text)
        parts = [part for part in typing.get_args(here) if part is not type(None)]
        here = parts[0] if parts else None
    return text


def _under(file: dict[str, Any], preset: dict[str, Any]) -> dict[str, Any]:
    """The preset with the file's values over it; a section the file sets to null stays null."""
    merged = dict(preset)
    for key, value in file.items():
        below = preset.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _under(value, below) if both else value  # type: ignore[arg-type]
    return merged


def _read_tree(file: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a file over those of the file that it extends."""
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        named = f" that {above[-1]} extends" if above else ""
        raise ConfigError(f"{file}: cannot read the config{named} ({reason}).") from None
    if len(text) > _MOST_BYTES:
        raise ConfigError(
            f"{file}: longer than {_MOST_BYTES} characters, so no config; name another file."
        )
    tree = parse_yaml(text, str(file))
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: expected a mapping of keys, found {_describe(tree)}.")
    if "extends" not in tree:
        return tree
    other = tree.pop("extends")
    if not isinstance(other, str):
        raise ConfigError(
            f"{file}: extends is the name of one file, not {_describe(other)}; give it."
        )
    below = file.parent / other
    chain = (*above, file)
    if below.resolve() in [one.resolve() for one in chain]:
        raise ConfigError(f"{file}: extends {other}, which extends it; take one of them out.")
    return _under(tree, _read_tree(below, chain))


def load_config(path: str | Path, kind: type[Config], overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, checked.

    A key ``extends`` names another YAML file, by its place beside this one, whose values this one
    overrides key by key; it may extend a third.

    Args:
        path: the YAML file.
        kind: the config's class.
        overrides: ``key.path=value`` items, the value in YAML; later ones win.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type or value.
    """
    tree = _read_tree(Path(path))
    for item in overrides:
        assign(tree, item, kind)
    if "preset" in kind.model_fields:
        tree = with_preset(tree)
    return validate(tree, kind, str(path))


def with_preset(tree: dict[str, Any]) -> dict[str, Any]:
    """A config's plain values over those of the preset that it names, if any.

    Where ``defence`` says how safety is kept and neither ``asft`` nor ``asft-alt`` is in it, the
    preset's penalty is left out.
    """
    preset = tree.get("preset")
    if not isinstance(preset, str) or preset not in PRESETS:
        return tree
    below = PRESETS[preset]
    if "defence" in tree and "penalty" not in tree:
        _, names = named_methods(tree["defence"])
        if "asft" not in names and "asft-alt" not in names:
            below = {key: value for key, value in below.items() if key != "penalty"}
    return _under(tree, below)


def validate(tree: dict[str, Any], kind: type[Config], where: str) -> Config:
    """``tree`` as a ``kind``; the first error as one sentence.

    Raises:
        ConfigError: an unknown key (with the nearest name), a wrong type or value.
    """
    tree = with_new_keys(tree, kind.__name__, where)
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


def _is_section(part: Any) -> bool:
    # Python 3.10 takes list[int] for a type, and then it is no subclass of anything.
    return (
        isinstance(part, type) and typing.get_origin(part) is None and issubclass(part, BaseModel)
    )


def _expected(annotation: Any) -> str:
    names = []
    for part in _parts(annotation):
        origin = typing.get_origin(part)
        if origin is typing.Literal:
            names.append(", ".join(str(choice) for choice in typing.get_args(part)))
        elif origin is list:
            names.append("a list")
        elif origin is dict or _is_section(part):
            names.append("a mapping of keys")
        else:
            names.append(_NAMES.get(part, str(part)))
    return " or ".join(dict.fromkeys(names))


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


def _tagged(models: Sequence[type[BaseModel]], tag: str | int) -> type[BaseModel] | None:
    """The member of a union whose ``name`` is ``tag``."""
    for model in models if len(models) > 1 else ():
        field = model.model_fields.get("name")
        if field is not None and tag in typing.get_args(field.annotation):
            return model
    return None


def _walk(kind: type[BaseModel], location: Sequence[str | int]) -> tuple[list[str], Any, Any]:
    """(path, its annotation, the model that holds its last key) as far as the schema goes.

    Pydantic appends the names of union members to a location; those are not the user's keys. Where
    a member is told by its ``name``, the rest of the location is under it.
    """
    path: list[str] = []
    here: Any = kind
    holder: Any = kind
    for step in location:
        models = [p for p in _parts(here) if _is_section(p)]
        lists = [p for p in _parts(here) if typing.get_origin(p) is list]
        mappings = [p for p in _parts(here) if typing.get_origin(p) is dict]
        member = _tagged(models, step)
        if member is not None:
            here = holder = member
            continue
        if isinstance(step, int) and lists:
            here = typing.get_args(lists[0])[0]
        elif isinstance(step, str) and mappings:
            here = typing.get_args(mappings[0])[1]
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
        hint = _nearest(key, list(holder.model_fields))
        return f"unknown key '{'.'.join([*path, key])}'; {hint}"
    name = ".".join(path) or "the config"
    if problem["type"] == "union_tag_invalid":
        tags = re.findall(r"'([^']+)'", str(problem["ctx"]["expected_tags"]))
        tag = str(problem["ctx"]["tag"])
        return f"{name}: there is no '{tag}'; {_nearest(tag, tags)}"
    if problem["type"] == "union_tag_not_found":
        return f"the key '{name}.name' is missing; give the name of a method."
    if problem["type"] == "missing":
        missing = name if path and path[-1] == location[-1] else ".".join(map(str, location))
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


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}."


def dump_yaml(config: BaseModel) -> str:
    """A config with every default filled in, as YAML that ``load_config`` reads back."""
    return write_yaml(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
