"""Every command with its arguments and options, made from the commands: a hook of ``mkdocs build``.

In a page, ``<!-- commands -->`` becomes a section for each command.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

MARK = "<!-- commands -->"


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """(path, command) of each command below ``command`` that does something, in order."""
    if not hasattr(command, "commands"):
        yield path, command
        return
    for name, below in command.commands.items():
        if not below.hidden:
            yield from commands(below, f"{path} {name}")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _row(parameter: Any) -> str:
    """A line of a command's table: how it is written, what it means, its default."""
    argument = parameter.param_type_name == "argument"
    names = (
        [(parameter.metavar or parameter.name or "").upper()]
        if argument
        else [*parameter.opts, *parameter.secondary_opts]
    )
    default = parameter.default
    if parameter.required:
        shown = "*required*"
    elif default is None or callable(default) or default in (False, (), []):
        shown = ""
    else:
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
    written = ", ".join(f"`{name}`" for name in names)
    return f"| {_cell(written)} | {_cell(parameter.help or '')} | {_cell(shown)} |"


def render() -> str:
    """The sections of all commands as Markdown."""
    from anchortune.cli.app import app

    parts = []
    for path, command in commands(get_command(app), "anchortune"):
        text = inspect.cleandoc(command.help or "").replace("\b", "").replace("<", "&lt;")
        rows = [_row(one) for one in command.params if not getattr(one, "hidden", False)]
        rows = [row for row in rows if "`--help`" not in row]
        table = "\n".join(["| | meaning | default |", "|---|---|---|", *rows])
        parts.append(f"## `{path}`\n\n{text}\n\n{table}")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page."""
    return markdown.replace(MARK, render()) if MARK in markdown else markdown


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
