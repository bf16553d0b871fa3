"""A YAML file written line by line, with comments, so that what is read back is what was meant."""

from __future__ import annotations

import json
import textwrap
from typing import Any

import yaml

from anchortune.config_io import parse_yaml
from anchortune.errors import sentence
from anchortune.untrusted import shown

_WIDTH = 100


def plain(text: str) -> str:
    """``text`` for a comment: one line, with nothing in it that could deceive a reader."""
    return sentence(shown(text))


def scalar(value: Any) -> str:
    """A plain value, a list or a mapping of them, on one line of YAML.

    A text that our reader would take for another kind of value (``1e5``) is put in quotes.
    """
    dumped = yaml.safe_dump(
        value, default_flow_style=True, width=1 << 20, allow_unicode=False, sort_keys=False
    )
    text = str(dumped).removesuffix("\n").removesuffix("\n...")
    return text if parse_yaml(text, "the value") == value else json.dumps(value)


class Page:
    """The lines of a file."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def note(self, text: str, depth: int = 0) -> None:
        """A comment on lines of its own, wrapped."""
        start = "  " * depth + "# "
        self._lines += textwrap.wrap(
            plain(text),
            _WIDTH,
            initial_indent=start,
            subsequent_indent=start,
            break_long_words=False,
            break_on_hyphens=False,
        )

    def gap(self) -> None:
        """An empty line."""
        self._lines.append("")

    def put(self, key: str, value: Any = None, comment: str = "", *, depth: int = 0) -> None:
        """``key: value`` with a comment behind it, or above where the line would be too long.

        Args:
            key: of the config; ``- key`` begins an item of a list.
            value: plain; None begins a section.
            comment: in a sentence or less.
            depth: levels that it stands in.
        """
        line = "  " * depth + f"{key}:" + ("" if value is None else f" {scalar(value)}")
        whole = f"{line}  # {plain(comment)}" if comment else line
        if comment and len(whole) > _WIDTH:
            self.note(comment, depth)
            whole = line
        self._lines.append(whole)

    def item(self, tree: dict[str, Any], comment: str = "", *, depth: int = 0) -> None:
        """A mapping as an item of a list."""
        line = "  " * depth + f"- {scalar(tree)}"
        if comment and len(f"{line}  # {plain(comment)}") <= _WIDTH:
            line += f"  # {plain(comment)}"
        elif comment:
            self.note(comment, depth)
        self._lines.append(line)

    def text(self) -> str:
        """The whole file."""
        return "\n".join(self._lines) + "\n"
