"""One malformed thing: what makes it, the command it is given to, and what that has to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Words = list[str | Path]


@dataclass(frozen=True)
class World:
    """Good things, beside which a case puts one bad thing. Nothing in here is written to.

    Attributes:
        base: a folder of weights, from our own writer.
        aligned: another of the same shapes.
        adapter: a LoRA adapter on ``base``.
        anchor: of ``aligned - base``.
        model: a tiny model that runs, with its tokenizer.
        model_adapter: an adapter on it.
    """

    base: Path
    aligned: Path
    adapter: Path
    anchor: Path
    model: Path
    model_adapter: Path


@dataclass(frozen=True)
class Case:
    """A malformed thing.

    Attributes:
        kind: what of thing it is.
        name: what is wrong with it.
        make: writes it into an empty folder; the words of the command.
        says: a regular expression that the sentence has to match.
        exit_code: of the command.
    """

    kind: str
    name: str
    make: Callable[[Path, World], Words]
    says: str
    exit_code: int = 2
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Its name in a list of tests."""
        return f"{self.kind}: {self.name}"


def put(path: Path, content: bytes | str) -> Path:
    """A file with its folders; a text in UTF-8, its line ends as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def deep(depth: int = 100_000, opening: str = "[", closing: str = "]") -> str:
    """Lists in lists, which a reader that calls itself cannot follow."""
    return opening * depth + closing * depth
