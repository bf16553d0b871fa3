"""What an ``adapter_config.json`` says, checked before anything goes by it.

Somebody else wrote it: ranks and scales may be no numbers, and the patterns that choose modules are
regular expressions, of which a short one can keep a matcher busy for years.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchortune.checkpoints.index import read_json
from anchortune.errors import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_RANKS, _ALPHAS = "rank_pattern", "alpha_pattern"
#: Keys whose texts PEFT matches module names against.
_MATCHED = ("target_modules", "exclude_modules", "layers_pattern", "target_parameters")
_LONGEST = 4000
#: In one way through a pattern's alternatives: Unsloth's for all layers of a model has four.
_MOST_REPEATS = 4
#: An escaped character, a set of characters, or what groups, parts or repeats.
_MARK = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[()|*+{]", re.DOTALL)
#: A comment, or a flag by which spaces and what follows a ``#`` count for nothing.
_HIDES = re.compile(r"\(\?(?:#|[a-zA-Z]*x)")


def read_adapter_config(folder: Path, label: str) -> dict[str, Any]:
    """The ``adapter_config.json`` in ``folder``, with ranks, scales and patterns that can be used.

    Args:
        folder: of the adapter.
        label: what the user calls it.

    Raises:
        CheckpointError: it cannot be read, names no ``peft_type``, or holds what PEFT never writes.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if not isinstance(config.get("peft_type"), str):
        raise _broken(label, "names no peft_type")
    if config["peft_type"] == "XLORA" or config.get("megatron_config") is not None:
        raise _broken(label, "it names other adapters, or a module to import, and neither is done")
    plain = config["peft_type"] == "LORA"  # of others we use neither rank nor scale
    for key in ("r", "lora_alpha"):
        if plain and config.get(key) is not None:
            _number(label, key, config[key])
    for key in (_RANKS, _ALPHAS):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict):
            raise _broken(label, f"its {key} is no mapping of modules to numbers")
        for pattern, value in patterns.items():
            _pattern(label, key, pattern)
            if plain:
                _number(label, f"{key} of {pattern!r}", value)
    for key in _MATCHED:
        value = config.get(key)
        if value is not None and not isinstance(value, str) and not _are_texts(value):
            raise _broken(label, f"its {key} is neither a text nor a list of names")
        if isinstance(value, str):
            _pattern(label, key, value)
    saved = config.get("modules_to_save")
    if saved is not None and not _are_texts(saved):
        raise _broken(label, "its modules_to_save is no list of names")
    return config


def scale_of(config: Mapping[str, Any], module: str, held: int) -> float:
    """``s`` of one module: alpha / r, or alpha / sqrt(r) for rsLoRA, with its own patterns.

    Args:
        config: as ``read_adapter_config`` gives it.
        module: its name, without PEFT's prefix.
        held: the rank of its tensors.

    Raises:
        CheckpointError: the rank in the config is not that of the tensors.
    """
    rank = _own(config, _RANKS, module, config.get("r") or 8)
    if rank != held or held < 1:
        raise CheckpointError(f"{module} has rank {held}, {ADAPTER_CONFIG} says {rank}")
    alpha = float(_own(config, _ALPHAS, module, config.get("lora_alpha") or 8))
    return alpha / math.sqrt(held) if config.get("use_rslora") else alpha / held


def _own(config: Mapping[str, Any], key: str, module: str, default: Any) -> Any:
    """The value of the first pattern that fits ``module``, matched as PEFT does it."""
    for pattern, value in (config.get(key) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _number(label: str, what: str, value: Any) -> None:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    if not known or not 0 < value < 1e9:  # NaN is neither above nor below
        raise _broken(label, f"its {what} is {str(value)[:40]!r}, which is no number above 0")


def _pattern(label: str, key: str, pattern: str) -> None:
    """Refuses what is no regular expression, or could take time without end to match.

    That takes a repeat within a repeat, or many repeats in a row; names of modules need neither.
    """
    repeats = None if len(pattern) > _LONGEST or _HIDES.search(pattern) else _repeats(pattern)
    if repeats is None or repeats > _MOST_REPEATS:
        raise _broken(
            label,
            f"its {key} {pattern[:60]!r} is a pattern that may take for ever to match; "
            "name the modules instead",
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _broken(label, f"its {key} {pattern[:60]!r} is no pattern ({error})") from None


def _repeats(pattern: str) -> int | None:
    """The most repeats that one way through the alternatives passes; None of a repeated group."""
    ways = [[0, 0]]  # of every open group: the most of its alternatives, and of the one so far
    for mark in _MARK.finditer(pattern):
        here = ways[-1]
        if mark[0] == "(":
            ways.append([0, 0])
        elif mark[0] == "|":
            here[:] = max(here), 0
        elif mark[0] == ")":
            if pattern[mark.end() : mark.end() + 1] in ("*", "+", "{"):
                return None
            if len(ways) > 1:  # else it closes nothing, and is no pattern
                ways.pop()
                ways[-1][1] += max(here)
        elif mark[0] in "*+{":
            here[1] += 1
    return max(ways[0])


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _broken(label: str, why: str) -> CheckpointError:
    return CheckpointError(f"adapter {label}: {ADAPTER_CONFIG} cannot be used: {why}")
