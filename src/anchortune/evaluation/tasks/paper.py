"""The prompts and the matching of AsFT's authors, told from their public scripts.

They send the text below as it stands; here it is the user's turn of the model's chat template.
Their matching is kept with its faults: an answer that names two of AG News's classes is right where
one of them is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from anchortune.evaluation.tasks.base import Matcher, Reading

_HEAD = "Below is an instruction that describes a task"
_TAIL = "Write a response that appropriately completes the request.\n\n"
_NUMBER = re.compile(r"-?\d+\.?\d*")
_ANSWER = "The final answer is: "
#: Searched anywhere in the answer, in any case.
_AGNEWS = {
    "0": r"\bworld\b",
    "1": r"\bsports\b",
    "2": r"\bbusiness\b",
    "3": r"\b(?:sci/tech|sci|technology|tech)\b",
}


def with_input(instruction: str) -> str:
    """Alpaca's frame around an instruction and an input, ``{text}`` where the input goes."""
    return (
        f"{_HEAD}, paired with an input that provides further context. {_TAIL}"
        f"### Instruction:\n{instruction}\n\n### Input:\n{{text}}\n\n### Response:\n"
    )


def without_input() -> str:
    """Alpaca's frame around an instruction alone."""
    return f"{_HEAD}. {_TAIL}### Instruction:\n{{text}}\n\n### Response:\n"


def one_word(choices: Mapping[str, str]) -> Matcher:
    """Right where the whole answer is the word, its first letter in either case."""

    def match(text: str, target: Any) -> Reading:
        given, word = text.strip(), choices[str(target)]
        if given in (word, word.capitalize()):
            return Reading("right", word)
        return Reading("wrong", why="the answer is not the word alone")

    return match


def agnews(text: str, target: Any) -> Reading:
    """Right where the class is named, be others named as well."""
    if re.search(_AGNEWS[str(target)], text, re.IGNORECASE):
        return Reading("right", why="")
    return Reading("wrong", why="does not name the class")


def last_number(text: str, target: Any) -> Reading:
    """The first number after "The final answer is: ", else the last; commas taken out."""
    found, wanted = _last_number(text), _last_number(str(target))
    if found is None:
        return Reading("unparsed", why="no number")
    if found == wanted:
        return Reading("right", str(found))
    return Reading("wrong", str(found), "another number")


def _last_number(text: str) -> Fraction | None:
    plain = text.replace(",", "")
    everywhere = _NUMBER.findall(plain)
    if not everywhere:
        return None
    parts = plain.split(_ANSWER)
    after = _NUMBER.findall(parts[1]) if len(parts) > 1 else []
    return Fraction((after[0] if after else everywhere[-1]).rstrip("."))
