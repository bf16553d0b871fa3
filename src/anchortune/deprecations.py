"""How a name of ours that goes is announced: what it is called now, and when the old one goes.

The old name goes on working until the version that its announcement names, at least one minor
version later. The tables are the one list of what is announced; one line takes a name out again.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from anchortune.errors import ConfigError

Function = TypeVar("Function", bound=Callable[..., Any])


class AnchortuneDeprecation(UserWarning):
    """A name of ours that goes. Shown unless asked not to be, for who calls us is who must act."""


@dataclass(frozen=True)
class Renamed:
    """A config key or command-line option that has a new name.

    Attributes:
        where: the config's class (``JobConfig``) or the command (``anchor build``).
        old: the name that goes, ``training.lr`` or ``--lr``.
        new: the name that stays, of the same form.
        gone_in: the version that no longer knows the old one.
    """

    where: str
    old: str
    new: str
    gone_in: str


CONFIG_KEYS: tuple[Renamed, ...] = ()
OPTIONS: tuple[Renamed, ...] = ()

_announced: set[tuple[str, str]] = set()
_tell: Callable[[str], None] | None = None


def tell_with(tell: Callable[[str], None]) -> None:
    """Announcements go to ``tell`` instead of Python's warnings: the command line has no caller."""
    global _tell
    _tell = tell


def announce(old: str, new: str, gone_in: str, where: str = "", stacklevel: int = 2) -> None:
    """Says once in a process that ``old`` goes.

    Args:
        old: what was used, in the words of who used it.
        new: what to use instead.
        gone_in: the version that no longer knows ``old``.
        where: the file or command, where there is one.
        stacklevel: of ``warnings.warn``, as seen from the caller.
    """
    if (where, old) in _announced:
        return
    _announced.add((where, old))
    place = f"{where}: " if where else ""
    text = f"{place}{old} is deprecated and goes in version {gone_in}; use {new}."
    if _tell is not None:
        _tell(text)
    else:
        warnings.warn(text, AnchortuneDeprecation, stacklevel=stacklevel + 1)


def with_new_keys(tree: dict[str, Any], kind: str, where: str) -> dict[str, Any]:
    """A config's plain values with every renamed key under its new name; ``tree`` stays as it is.

    Args:
        tree: sections and values.
        kind: name of the config's class.
        where: the file, for the announcement.

    Raises:
        ConfigError: both names are given.
    """
    for renamed in CONFIG_KEYS:
        if renamed.where == kind:
            *above, key = renamed.old.split(".")
            tree = _moved(tree, above, key, renamed, where)
    return tree


def _moved(
    tree: dict[str, Any], above: list[str], key: str, renamed: Renamed, where: str
) -> dict[str, Any]:
    if above:
        below = tree.get(above[0])
        if not isinstance(below, dict):
            return tree
        moved = _moved(below, above[1:], key, renamed, where)
        return tree if moved is below else {**tree, above[0]: moved}
    if key not in tree:
        return tree
    new = renamed.new.rpartition(".")[2]
    if new in tree:
        raise ConfigError(
            f"{where}: {renamed.old} and {renamed.new} are one key; take {renamed.old} out."
        )
    announce(renamed.old, renamed.new, renamed.gone_in, where, stacklevel=4)
    return {new if name == key else name: value for name, value in tree.items()}


def with_new_options(arguments: Sequence[str], command: str) -> list[str]:
    """A command's arguments with every renamed option under its new name; what follows -- stays.

    Args:
        arguments: as the command got them.
        command: without the program's name, ``anchor build``.
    """
    new = {renamed.old: renamed for renamed in OPTIONS if renamed.where == command}
    found: list[str] = []
    for number, argument in enumerate(arguments):
        if argument == "--":
            return [*found, *arguments[number:]]
        name, equals, value = argument.partition("=")
        renamed = new.get(name)
        if renamed is not None:
            announce(name, renamed.new, renamed.gone_in, command, stacklevel=3)
            argument = renamed.new + equals + value
        found.append(argument)
    return found


def renamed_keyword(old: str, new: str, gone_in: str) -> Callable[[Function], Function]:
    """A decorator: the function takes the keyword ``old`` for ``new`` and announces that it goes.

    Raises:
        TypeError: of the decorated function, where both are given.
    """

    def decorate(function: Function) -> Function:
        name = function.__qualname__

        @functools.wraps(function)
        def taking_both(*args: Any, **kwargs: Any) -> Any:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{name}(): {old} and {new} are one; leave {old} out.")
                announce(f"{old}=", f"{new}=", gone_in, f"{name}()")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return taking_both  # type: ignore[return-value]

    return decorate
