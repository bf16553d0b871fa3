"""The methods by name, and chains of them from what a config says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anchortune.defences.base import Defence

#: Filled by name -> class; a method's module is imported when it is asked for.
_MODULES: dict[str, tuple[str, str]] = {
    "asft": ("asft", "Asft"),
    "asft-alt": ("asft", "AsftAlt"),
    "lisa": ("lisa", "Lisa"),
    "safe-instr": ("safe_instr", "SafeInstr"),
    "bea": ("bea", "Bea"),
    "safe-lora": ("safe_lora", "SafeLora"),
    "lox": ("lox", "Lox"),
    "csulora": ("csulora", "CsuLora"),
    "resta": ("resta", "Resta"),
    "ptst": ("ptst", "Ptst"),
    "safe-layers": ("safe_layers", "SafeLayers"),
    "first-tokens": ("first_tokens", "FirstTokens"),
}
NAMES: tuple[str, ...] = tuple(_MODULES)


def defence_class(name: str) -> type[Defence]:
    """The class of a method."""
    from importlib import import_module

    module, cls = _MODULES[name]
    found: type[Defence] = getattr(import_module(f"anchortune.defences.{module}"), cls)
    return found


def defences_of(sections: Sequence[Any]) -> list[Defence]:
    """The methods that a config's ``defence`` lists, in its order.

    Args:
        sections: of ``anchortune.config_defences``.
    """
    return [defence_class(section.name)(**dict(section)) for section in sections]
