"""What commands print: texts of strangers as texts, never as orders to a terminal or a pipeline."""

from __future__ import annotations

import json
from typing import Any

import typer

from anchortune.untrusted import inert


def say(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Prints ``text``, which may hold names and texts of strangers, as ``inert`` makes it."""
    typer.echo(inert(text), err=err, nl=nl)


def say_json(value: Any) -> None:
    """Prints plain values as JSON in ASCII, which no terminal obeys; no number is not finite."""
    from anchortune.record import finite

    text = json.dumps(finite(value), indent=2)
    typer.echo(text.replace("##[", "#\\u0023["))  # which GitHub's runner would obey
