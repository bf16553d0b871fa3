"""What a shell offers after Tab: names of judges and devices, keys of configs and their values.

Nothing is imported before Tab is pressed. File names and commands the shell and typer find alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

import typer

#: The config that a command's ``--set`` changes.
_CONFIGS = {
    "align": ("anchortune.config", "AlignConfig"),
    "basin": ("anchortune.landscape.config", "BasinConfig"),
    "eval": ("anchortune.evaluation.config", "EvalConfig"),
    "mix": ("anchortune.config_mix", "MixSection"),
    "run": ("anchortune.jobs.config", "JobConfig"),
    "sweep": ("anchortune.jobs.sweep_config", "SweepConfig"),
    "train": ("anchortune.config", "TrainConfig"),
}


def judges(incomplete: str) -> list[str]:
    """Names of judges."""
    from anchortune.config import JudgeName

    return [name for name in get_args(JudgeName) if name.startswith(incomplete)]


def devices(ctx: typer.Context, incomplete: str) -> list[str]:
    """Where it may be computed."""
    names = ["auto", "cpu", "cuda"] + ([] if ctx.info_name == "build" else ["mps"])
    return [name for name in names if name.startswith(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """``key.path=`` of the command's config; behind the sign the values, where they are few."""
    module, name = _CONFIGS[ctx.info_name or ""]
    found = dict(_keys(getattr(import_module(module), name)))
    key, equals, _ = incomplete.partition("=")
    told = (
        [f"{key}={value}" for value in found.get(key, ())] if equals else [f"{k}=" for k in found]
    )
    return [text for text in told if text.startswith(incomplete)]


def _keys(model: Any, above: str = "") -> Iterator[tuple[str, list[str]]]:
    """Each key below a section and the values that it may have; empty where there is no list."""
    for name, field in model.model_fields.items():
        kinds = list(_parts(field.annotation))
        sections = [kind for kind in kinds if hasattr(kind, "model_fields")]
        if len(sections) == 1:
            yield from _keys(sections[0], f"{above}{name}.")
            continue
        values = [str(value) for kind in kinds if get_origin(kind) is Literal
                  for value in get_args(kind)]  # fmt: skip
        yield above + name, values + (["true", "false"] if bool in kinds else [])


def _parts(annotation: Any) -> Iterator[Any]:
    """The alternatives of a union, without what is said about them; a list is none."""
    if get_origin(annotation) in (list, dict, tuple, Literal):
        yield annotation
    elif get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
