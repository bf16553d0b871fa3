"""How an answer is held against its target: exact, regex, number, choice. Strict on purpose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anchortune.errors import EvaluationError
from anchortune.evaluation.tasks.base import Matcher, Reading
from anchortune.evaluation.tasks.numbers import find_number, show

_SHORT = 60


def short(text: str) -> str:
    """The beginning of a text, on one line, for a table."""
    line = " ".join(text.split())
    return line if len(line) <= _SHORT else line[: _SHORT - 1] + "…"


def spaced(text: str) -> str:
    """The text with runs of white space as one space, and none at its ends."""
    return " ".join(text.split())


def exact(text: str, target: Any) -> Reading:
    """Right where answer and target are equal, white space aside; case counts."""
    given = spaced(text)
    if not given:
        return Reading("unparsed", why="empty answer")
    if given == spaced(str(target)):
        return Reading("right", short(given))
    return Reading("wrong", short(given), "not the target")


def number(text: str, target: Any) -> Reading:
    """Right where the answer's final number equals the target's; see ``find_number``."""
    if not text.strip():
        return Reading("unparsed", why="empty answer")
    found = find_number(text)
    if found.value is None:
        return Reading("unparsed", why=found.why)
    if found.value == find_number(str(target)).value:
        return Reading("right", show(found.value))
    return Reading("wrong", show(found.value), "another number")


def regex(pattern: str) -> Matcher:
    """Right where the pattern's first group, in the whole answer, is the target and nothing else.

    Raises:
        EvaluationError: it is no regular expression, or has no group.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise EvaluationError(f"pattern {pattern!r}: not a regular expression ({error}).") from None
    if not compiled.groups:
        raise EvaluationError(
            f"pattern {pattern!r}: put the part that is the answer in (brackets)."
        )

    def match(text: str, target: Any) -> Reading:
        if not text.strip():
            return Reading("unparsed", why="empty answer")
        found = list(dict.fromkeys(spaced(hit[1] or "") for hit in compiled.finditer(text)))
        if not found:
            return Reading("unparsed", why="the pattern is not in it")
        if len(found) > 1:
            return Reading("wrong", why=f"the pattern finds {len(found)} different answers")
        if found[0] == spaced(str(target)):
            return Reading("right", short(found[0]))
        return Reading("wrong", short(found[0]), "not the target")

    return match


def choice(choices: Mapping[str, str]) -> Matcher:
    """Right where the answer uses the word of its own class and the word of no other.

    A word counts where it stands by itself, in any case; a word of one letter only as it is
    written, or an article would be an answer. Where one word holds another (``not hateful``,
    ``hateful``) the longer is read.

    Args:
        choices: target value -> the word an answer must use.

    Raises:
        EvaluationError: fewer than two classes, an empty word, or two classes with one word.
    """
    words = {word.casefold(): word for word in choices.values()}
    known = sorted(words.values(), key=len, reverse=True)
    if len(words) < 2 or len(words) < len(choices) or not all(map(str.strip, words)):
        raise EvaluationError(
            "choices: give two or more classes, each with a word of its own, e.g. "
            "{0: negative, 1: positive}."
        )
    parts = [  # each a group: by its number the word is known, whatever letters matched it
        f"({re.escape(word)})" if len(word) == 1 else f"((?i:{re.escape(word)}))" for word in known
    ]
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)")

    def match(text: str, target: Any) -> Reading:
        if not text.strip():
            return Reading("unparsed", why="empty answer")
        hits = (hit.lastindex for hit in pattern.finditer(text))
        named = list(dict.fromkeys(known[number - 1] for number in hits if number))
        if not named:
            return Reading("unparsed", why="names no class")
        if len(named) > 1:
            return Reading("wrong", ", ".join(named), f"names {len(named)} classes")
        if named[0] == choices[str(target)]:
            return Reading("right", named[0])
        return Reading("wrong", named[0], "another class")

    return match
