"""What ``init`` writes is read back as it was meant."""

from __future__ import annotations

from typing import Any

import pytest

from anchortune.setup.page import Page, plain, scalar


@pytest.mark.parametrize(
    "value",
    ["1e5", "yes", "a: b # c", "é\n\u202e", "", "~", "0x1", "- a", [1e-3, "no"], {"on": "5e-5"}],
)
def test_what_is_written_is_read_back(value: Any) -> None:
    from anchortune.config_io import parse_yaml

    page = Page()
    page.put("key", value, "a comment\n#: \u202e" + "x" * 200)
    assert parse_yaml(page.text(), "p") == {"key": value}
    assert parse_yaml(f"[{scalar(value)}]", "p") == [value]
    assert "\u202e" not in plain("\u202e")
