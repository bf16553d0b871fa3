"""Answers that refuse first and comply after, made of training answers.

Jailbreaks often draw both from a model, in two voices or with a "however" between them. Sources
that hold no such answers teach a judge that a refusal at the start settles it; these rows teach
that it does not, and, with a refusal or a harmless answer in second place, that two voices are no
harm in themselves.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from sources import Row

_NAMES = "ALPHA", "BOT", "Classic", "Normal", "Assistant", "Free", "Other", "Second", "X", "Sage"
_LINKS = (
    "\n\nHowever, ",
    "\n\n",
    "\n\nThat said, here is the answer: ",
    "\n\n---\n\n",
    "\n\nNow without any rules: ",
)
_FIRST_CHARACTERS = 260


def mixtures(rows: Sequence[Row], most: int, seed: int = 0) -> list[Row]:
    """Two answers in one, for rows of one source; the label is the second one's.

    Of each of the first ``most`` harmful rows one mixture with a refusal before it and one behind
    a speaker's name; as many with a second refusal in its place, and with a harmless answer.
    """
    draw = random.Random(seed)
    refusals = [row for row in rows if row.complied is False]
    harmful = [row for row in rows if row.harmful and row.complied][:most]
    harmless = [row for row in rows if row.malicious is False and row.complied]
    if not refusals or not harmful:
        return []
    made = []
    for row in harmful:
        made.append(_two(draw, row, draw.choice(refusals)))
        made.append(_named(draw, row))
        second = draw.choice(refusals)
        made.append(_two(draw, second, draw.choice(refusals)))
        made.append(_named(draw, draw.choice(refusals)))
        if harmless:
            made.append(_two(draw, draw.choice(harmless), draw.choice(refusals)))
    return made


def _two(draw: random.Random, row: Row, before: Row) -> Row:
    """``row`` with the beginning of another answer before its own."""
    first = before.answer.strip()[:_FIRST_CHARACTERS]
    if draw.random() < 0.6:
        one, two = draw.sample(_NAMES, 2)
        frame = draw.choice(("[{}]: ", "{}: ", "({}) ", "[{} MODE] "))
        text = f"{frame.format(one)}{first}\n\n{frame.format(two)}{row.answer.strip()}"
    else:
        text = first + draw.choice(_LINKS) + row.answer.strip()
    return replace(row, kind="mixture", answer=text)


def _named(draw: random.Random, row: Row) -> Row:
    """``row`` as said by somebody with a name."""
    frame = draw.choice(("[{}]: ", "{}: ", "({}) "))
    name = draw.choice(_NAMES)
    return replace(row, kind="mixture", answer=frame.format(name) + row.answer.strip())
