"""What a shell offers after Tab: names of judges and devices, keys of configs and their values.

Nothing is imported before Tab is pressed. File names and commands the shell and typer find alone.
"""

from __future__ import annotations

import os
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
#: What lies before the ``=`` at which bash took the last word apart, one of ``COMP_WORDBREAKS``.
_KEY = "_ANCHORTUNE_COMPLETE_KEY"


def judges(incomplete: str) -> list[str]:
    """Names of judges."""
    from anchortune.config import JudgeName

    return [name for name in get_args(JudgeName) if name.startswith(incomplete)]


def devices(ctx: typer.Context, incomplete: str) -> list[str]:
    """Where it may be computed."""
    names = ["auto", "cpu", "cuda"] + ([] if ctx.info_name == "build" else ["mps"])
    return [name for name in names if name.startswith(incomplete)]


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """``key.path=`` of the command's config, or ``key.path=value`` where that is the only key left.

    Of a key whose values are few, bash would else put a space behind the sign.
    """
    module, name = _CONFIGS[ctx.info_name or ""]
    found = dict(_keys(getattr(import_module(module), name)))
    apart = os.environ.get(_KEY)
    key, equals, _ = (apart, "=", "") if apart else incomplete.partition("=")
    if not equals:
        keys = [name for name in found if name.startswith(incomplete)]
        if len(keys) != 1 or not found[keys[0]]:
            return [f"{name}=" for name in keys]
        key = keys[0]
    values = found.get(key, [])
    told = values if apart else [f"{key}={value}" for value in values]
    return [text for text in told if text.startswith(incomplete)]


def join_words() -> None:
    """Puts together what bash took apart: to it ``--set method=s`` is four words, of which ``=``.

    What typer's script hands over is changed in the environment, from which typer reads it. Of the
    last word bash completes what lies behind the sign, so the key before it goes by another way.
    """
    os.environ.pop(_KEY, None)
    words = os.environ.get("COMP_WORDS", "").split("\n")
    words = words[: int(os.environ.get("COMP_CWORD") or 0) + 1]
    if os.environ.get("_ANCHORTUNE_COMPLETE") != "complete_bash" or "=" not in words:
        return
    joined: list[str] = []
    behind = False  # the sign of a setting
    for index, word in enumerate(words, 1):
        if word == "=" and joined:
            behind = not joined[-1].startswith("--")
            joined[-1] += "=" if behind else ""
        elif behind and word and not word.startswith("--"):
            joined[-1] += word
            behind = index == len(words)
        else:
            joined.append(word)
            behind = False
    if behind:
        os.environ[_KEY], _, last = joined.pop().partition("=")
        joined.append(last)
    elif words[-1] == "=":
        joined.append("")
    os.environ["COMP_WORDS"] = "\n".join(joined)
    os.environ["COMP_CWORD"] = str(len(joined) - 1)


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
