"""How a group of commands tells what it holds, and how it ends by Ctrl-C."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

from anchortune.cli.complete import join_words
from anchortune.cli.say import say
from anchortune.deprecations import with_new_options

#: As shells count a process that SIGINT ended.
STOPPED = 130
#: Commands that keep what is done and go on from there.
_GO_ON = {"align", "basin", "eval", "run", "sweep", "train"}


class Group(TyperGroup):
    """Tells each command's whole first sentence, where a plain list would cut it to one line."""

    #: Whether what is read begins with a command's name, so that no option can be in it.
    _bare = False

    def main(self, *args: Any, **options: Any) -> Any:
        """Reads the command line and runs what it says, or answers a shell that completes it."""
        join_words()
        return super().main(*args, **options)

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

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Reads its own options, if one is given; else there is only a command's name.

        For options that are not given typer would load pydantic, which takes longer than a help.
        """
        self._bare = bool(args) and not args[0].startswith("-")
        try:
            return super().parse_args(ctx, args)
        finally:
            self._bare = False

    def get_params(self, ctx: Any) -> Any:
        """Its own options."""
        return [] if self._bare else super().get_params(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command and its arguments, those options that have a new name under it."""
        name, command, rest = super().resolve_command(ctx, args)
        path = [*ctx.command_path.split()[1:], name or ""]
        return name, command, with_new_options(rest, " ".join(path))

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; one that is stopped by hand says how to go on, with exit code 130."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say(f"anchortune: {stopped(ctx.invoked_subcommand)}", err=True)
            raise SystemExit(STOPPED) from None


def stopped(command: str | None) -> str:
    """What there is to say after Ctrl-C."""
    if command in _GO_ON:
        return "stopped by hand; the same command goes on from what is done."
    return "stopped by hand; nothing half-written is left, so run the same command again."
