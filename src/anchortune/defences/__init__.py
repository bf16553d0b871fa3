"""The ways to fine-tune that are compared: one small module a method, all of one shape.

``from anchortune.defences import Lisa``: the classes are loaded when they are first used, and their
keywords are the keys of YAML. See ``docs/defences.md``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchortune.defences.asft import Asft, AsftAlt
    from anchortune.defences.base import Anchors, Curriculum, Defence, Schedule
    from anchortune.defences.bea import Bea
    from anchortune.defences.csulora import CsuLora
    from anchortune.defences.first_tokens import FirstTokens
    from anchortune.defences.lisa import Lisa
    from anchortune.defences.lox import Lox
    from anchortune.defences.ptst import Ptst
    from anchortune.defences.resta import Resta
    from anchortune.defences.safe_instr import SafeInstr
    from anchortune.defences.safe_layers import SafeLayers
    from anchortune.defences.safe_lora import SafeLora

_HOMES = {
    "Anchors": "base",
    "Asft": "asft",
    "AsftAlt": "asft",
    "Bea": "bea",
    "CsuLora": "csulora",
    "Curriculum": "base",
    "Defence": "base",
    "FirstTokens": "first_tokens",
    "Lisa": "lisa",
    "Lox": "lox",
    "Ptst": "ptst",
    "Resta": "resta",
    "SafeInstr": "safe_instr",
    "SafeLayers": "safe_layers",
    "SafeLora": "safe_lora",
    "Schedule": "base",
}

__all__ = [
    "Anchors",
    "Asft",
    "AsftAlt",
    "Bea",
    "CsuLora",
    "Curriculum",
    "Defence",
    "FirstTokens",
    "Lisa",
    "Lox",
    "Ptst",
    "Resta",
    "SafeInstr",
    "SafeLayers",
    "SafeLora",
    "Schedule",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"anchortune.defences.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'anchortune.defences' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
