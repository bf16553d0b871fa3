"""The number that an answer ends on: commas, currencies, signs, fractions, and where to look."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

#: What announces a final answer; the last of them in a text counts.
_MARK = re.compile(
    r"\#{4} | \\boxed\s*\{ | \bfinal\ answer\b(?:\s+is\b)? | \banswer(?:\s+is\b|\s*[:=])",
    re.IGNORECASE | re.VERBOSE,
)
_TOKEN = re.compile(
    r"""(?P<before>(?<![\w.,)])[-−–+])?  # a sign, unless it subtracts or begins a list's item
        (?:[$€£¥]\s?)?
        (?P<inner>(?<=[$€£¥])[-−–+])?
        (?P<digits>(?<![\w/])(?:\d[\d.,]*\d|\d|\.\d+))
        (?P<power>[eE][+-]?\d+)?
        (?:\s?/\s?(?P<under>\d[\d,]{0,60})(?![\d/]))?
        (?!\d)""",
    re.VERBOSE,
)
_FRAC = re.compile(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}")
_PLAIN = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+")
#: A number with more digits than this, written out, is no answer to anything.
_LONGEST = 60
#: Characters after a mark among which its number is looked for.
_LINE = 400


class Found(NamedTuple):
    """A number found in a text, or why there is none."""

    value: Fraction | None
    why: str = ""


def find_number(text: str) -> Found:
    r"""The final number of an answer.

    After the last of ``####``, ``\boxed{``, ``final answer``, ``answer is`` and ``answer:`` that
    is followed by a number on its line: the first number there, or the first after the line's last
    ``=``. Without such a mark, the last number of the text. Thousands commas, a currency sign, a
    unit, a per cent sign and a final full stop are left aside; ``3/4`` is a fraction. Where commas
    or points cannot be read as one number (``1,2``) there is none.
    """
    text = _FRAC.sub(r"\1/\2", text)
    for mark in reversed(list(_MARK.finditer(text))):
        line = text[mark.end() : mark.end() + _LINE].lstrip(" :*$\\(\n").split("\n", 1)[0]
        tokens = list(_TOKEN.finditer(line.rsplit("=", 1)[-1]))
        if tokens:
            return _value(tokens[0])
    tokens = list(_TOKEN.finditer(text))
    if not tokens:
        return Found(None, "no number")
    return _value(tokens[-1])


def _value(token: re.Match[str]) -> Found:
    digits = token["digits"].rstrip(".,")
    power = token["power"] or "e0"
    if len(digits) > _LONGEST or len(power) > 4 or abs(int(power[1:])) > _LONGEST:
        return Found(None, "a number of too many digits")
    if not _PLAIN.fullmatch(digits):
        return Found(None, "a number whose commas or points cannot be read")
    value = Fraction(digits.replace(",", "") + power)
    under = (token["under"] or "").replace(",", "")
    if under:
        if not int(under):
            return Found(None, "a fraction over zero")
        value /= int(under)
    if max(value.numerator, value.denominator) >= 10**_LONGEST:  # could not be shown and read back
        return Found(None, "a number of too many digits")
    sign = ((token["before"] or "") + (token["inner"] or "")).strip()
    return Found(-value if sign in ("-", "−", "–") else value)


def show(value: Fraction) -> str:
    """A number as people write it: ``72``, ``0.5``, ``1/3``."""
    if value.denominator == 1:
        return str(value.numerator)
    text = f"{float(value):.12g}"
    return text if Fraction(text) == value else str(value)
