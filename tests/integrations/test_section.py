"""The section in the config of somebody else's trainer."""

from __future__ import annotations

from typing import Any

import pytest

from anchortune.errors import ConfigError
from anchortune.integrations.section import penalty_section


def test_keys_that_a_host_fills_in_are_unset() -> None:
    section = penalty_section({"anchor": "a.safetensors", "lam": None}, "no section", "a host")
    assert section.anchor == "a.safetensors"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "no section: give it an anchor"),
        ({}, "no section: give it an anchor"),
        ("anchor.safetensors", "is 'anchor.safetensors'; make it a section"),
        (["anchor.safetensors"], "make it a section, with anchor: FILE in it"),
        ({"anchor": "a", "lamb": 1.0}, "lamb"),
        ({"anchor": "a", "lam": "auto", "steer": "probe"}, "steer: probe needs a probe's rows"),
    ],
)
def test_what_is_no_section_is_one_sentence(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        penalty_section(given, "no section", "a host")
