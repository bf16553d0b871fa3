"""How a group of commands tells what it holds."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup


class Group(TyperGroup):
    """Tells each command's whole first sentence, where a plain list would cut it to one line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands into a help."""
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=1000))
                    for name, command in found
                    if command
                ]
            )
