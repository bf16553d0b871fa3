"""Every block of YAML of every page is read as the product reads it, and the settings that pages
tell are those of the code."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from anchortune import attach
from anchortune.config import PRESETS, AlignConfig, TrainConfig
from anchortune.config_io import load_config
from anchortune.config_mix import MixSection
from anchortune.errors import ConfigError
from anchortune.evaluation.config import EvalConfig
from anchortune.jobs.config import JobConfig
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.landscape.config import BasinConfig
from tests.test_docs_commands import PAGES, ROOT, blocks

SCHEMAS: list[type[BaseModel]] = [
    TrainConfig, AlignConfig, JobConfig, EvalConfig, MixSection, SweepConfig, BasinConfig
]  # fmt: skip
#: What a block of YAML for another program has at its top.
FOREIGN = {
    "jobs": "a GitHub workflow",
    "steps": "a GitHub workflow",
    "uses": "a step of a GitHub workflow",
    "base_model": "axolotl",
    "plugins": "axolotl",
    "distributed_type": "accelerate",
    "model_name_or_path": "LLaMA-Factory",
    "test-release": "a GitLab job",
    "gate": "a GitLab job",
}


def fits(text: str, folder: Path) -> list[str]:
    """Why a block of YAML fits none of our schemas; empty where it fits one.

    A block that lacks nothing but required keys is a part of a config.
    """
    file = folder / "block.yaml"
    file.write_text(text, "utf-8")
    said = []
    for schema in SCHEMAS:
        try:
            load_config(file, schema)
        except ConfigError as error:
            cause = error.__context__
            others = (
                [e for e in cause.errors() if e["type"] != "missing"]
                if isinstance(cause, ValidationError)
                else [error]
            )
            if others:
                said.append(f"{schema.__name__}: {error}")
                continue
        return []
    return said


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_yaml_is_read_by_something(page: Path, tmp_path: Path) -> None:
    for block in blocks(page, "yaml", "yml"):
        tree = yaml.safe_load(block)
        first = tree[0] if isinstance(tree, list) else tree
        if isinstance(first, dict) and set(first) & set(FOREIGN):
            continue
        assert not (said := fits(block, tmp_path)), "\n".join([block, *said])


def parts(annotation: Any) -> list[Any]:
    """The members of a union, ``Annotated`` taken off."""
    if typing.get_origin(annotation) is typing.Annotated:
        return parts(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [one for arg in typing.get_args(annotation) for one in parts(arg)]
    return [annotation]


def default(schema: type[BaseModel], key: str) -> Any:
    """What a config has at ``key`` that does not name it."""
    *sections, name = key.split(".")
    for section in sections:
        [schema] = [
            one
            for one in parts(schema.model_fields[section].annotation)
            if isinstance(one, type) and issubclass(one, BaseModel)
        ]
    found = schema.model_fields[name].get_default(call_default_factory=True, validated_data={})
    if sections == ["penalty"] and found is None:  # "unset takes the library's default"
        return inspect.signature(attach).parameters[name].default
    return found


def test_our_defaults_beside_the_papers_settings_are_those_of_the_code() -> None:
    text = (ROOT / "docs/paper-settings.md").read_text("utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    held = []
    for row in rows:
        if len(row) != 5 or "`" not in row[3] or row[4] == "–":
            continue
        keys = re.findall(r"`([a-z_.]+)(?:: [^`]*)?`", row[3])
        schema: type[BaseModel] = TrainConfig
        if keys[0].partition(".")[0] not in TrainConfig.model_fields:
            schema = MixSection if "mix" in row[3] else EvalConfig
        told = row[4].split(", ") if len(keys) == len(row[4].split(", ")) else [row[4]]
        for key, cell in zip(keys, told, strict=False):  # one cell may tell the first key alone
            value = default(schema, key)
            if cell == "*none*":
                assert not value, key
            elif cell == "the same":
                assert value == re.findall(r"`(\w+)`", row[1]), key
            elif cell == "*required*":
                with pytest.raises(ValidationError, match=key):
                    schema.model_validate({"benign": "task.jsonl"})
            else:
                assert str(value).lower() == cell.replace("`", "").partition(":")[
                    0
                ] or value == float(cell)
            held.append(key)
    assert {key for key in held if key in told_by_the_preset()} == told_by_the_preset() - {
        "training.step_decay"
    }
    assert len(held) >= 21


def told_by_the_preset() -> set[str]:
    """The keys that ``preset: paper`` sets."""
    return {f"{name}.{key}" for name, values in PRESETS["paper"].items() for key in values}


def test_the_papers_settings_are_those_of_the_preset() -> None:
    text = (ROOT / "docs/paper-settings.md").read_text("utf-8")
    for name, values in PRESETS["paper"].items():
        for key, value in values.items():
            [cell] = [
                line.split("|")[2].strip()
                for line in text.splitlines()
                if f"`{name}.{key}`" in line and "range" not in line
            ]
            if isinstance(value, float | int) and not isinstance(value, bool):
                assert float(re.findall(r"[0-9.e-]+", cell)[0]) == value, key
            elif isinstance(value, list):
                assert re.findall(r"`(\w+)`", cell) == value, key


def test_the_reference_has_every_public_name() -> None:
    """What the package offers, and all that a page's Python imports."""
    import anchortune
    from anchortune import defences

    texts = [page.read_text("utf-8") for page in PAGES]
    told = [name for text in texts for name in re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)]
    assert len(told) == len(set(told))
    offered = {f"anchortune.{name}" for name in anchortune.__all__ if name != "__version__"}
    offered |= {f"anchortune.defences.{name}" for name in defences.__all__}
    for page in PAGES:
        for block in blocks(page, "python") if ROOT / "docs" in page.parents else ():
            offered |= {
                f"{node.module}.{alias.name}"
                for node in ast.walk(ast.parse(block))
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchortune")
                for alias in node.names
            }
    for name in sorted(offered):
        module, _, last = name.rpartition(".")
        home = getattr(importlib.import_module(module), last).__module__
        assert f"{home}.{last}" in told or home in told, f"{home}.{last}"


def test_the_faq_quotes_what_is_said_and_names_keys_that_are_there() -> None:
    text = (ROOT / "docs/faq.md").read_text("utf-8")
    source = "".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)  # a sentence over several lines of code
    quoted = re.findall(r'^\| "([^"]+)" \|', text, re.MULTILINE)
    assert quoted
    assert all(part.strip() in source for one in quoted for part in one.split("…"))
    keys = set(re.findall(r"`((?:penalty|training|machine|lora)\.\w+)`", text))
    assert len(keys) >= 4
    for key in keys:
        default(TrainConfig, key)  # raises where there is none
