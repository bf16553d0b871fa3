"""A command in this process, as the console script runs it."""

from __future__ import annotations

import functools
import logging
import sys

import pytest
import typer.main

#: The tree of commands is made once, not for each of many hundred calls.
_command = functools.cache(typer.main.get_command)


def call(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """``anchortune WORDS`` in this process: its exit code."""
    from anchortune.cli.app import main

    logging.getLogger("anchortune").handlers.clear()  # it would write to another test's stderr
    monkeypatch.setattr(typer.main, "get_command", _command)
    monkeypatch.setattr(sys, "argv", ["anchortune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)
