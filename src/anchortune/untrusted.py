"""What strangers wrote (models, data, file names, servers), made safe to show, log and copy."""

from __future__ import annotations

import os
import re
from pathlib import Path

#: Characters that reorder a line, end it, or stand in it unseen. The joiners U+200B to U+200D are
#: left alone: Khmer, Persian and emoji are written with them.
_UNSEEN = {
    *(0x061C, 0x180E, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF),
    *range(0x202A, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFFF9, 0xFFFC),
    *range(0xE0000, 0xE0080),
}
#: What a line of output must not begin with, and what must not stand in it: GitHub would obey.
_WORKFLOW_COMMAND = re.compile(r"(?m)^(\s*):(?=:)|(##)(?=\[)")
#: Names of environment variables that hold secrets.
_SECRET_NAME = re.compile(
    r"(?i)(^|_)(token|secret|password|passwd|key|apikey|credentials?)(_id)?s?$"
)
_LEAST_SECRET = 8
#: Secrets that are known by their form: in an address, in a header, of the Hub and of OpenAI.
_SECRET_FORMS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), "***"),
    (re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{8,}"), r"\1 ***"),
    # Base64 has more than small letters, and "basic instructions" are no secret.
    (re.compile(r"\b((?i:basic))\s+(?=[\w+/-]*[A-Z0-9=])[\w.~+/=-]{8,}"), r"\1 ***"),
    (re.compile(r"\b(hf_|sk-)[\w-]{16,}"), r"\1***"),
)


def shown(text: str) -> str:
    """``text`` with what could deceive a reader made visible: control and direction characters.

    Line breaks and tabs stay. A lone surrogate, which no file can hold, becomes ``U+FFFD``.
    """
    return "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if code < 0x20 and character not in "\n\t":
        return "" if character == "\r" else chr(0x2400 + code)
    if 0x7F <= code < 0xA0 or code in _UNSEEN:
        return f"⟨U+{code:04X}⟩"
    return "\ufffd" if 0xD800 <= code < 0xE000 else character


def inert(text: str) -> str:
    """``text`` for a terminal or a pipeline's log: ``shown``, and no line commands GitHub's runner.

    A workflow command (``::error::``, ``::add-mask::``, ``##[…]``) is broken by a space.
    """
    return _WORKFLOW_COMMAND.sub(lambda found: f"{found[1] or ''}{found[2] or ':'} ", shown(text))


def cell(text: str) -> str:
    """``text`` for a table or a line of rich's: ``inert``, and no markup in it."""
    from rich.markup import escape

    return escape(inert(text))


def markdown_cell(text: str) -> str:
    """Text for a cell of a Markdown table: it cannot end it, nor turn into markup or a link."""
    plain = " ".join(shown(text).split())
    return re.sub(r"[\\|`*_\[\]$&]", lambda found: "\\" + found[0], plain).replace("<", "&lt;")


def drawn(text: str) -> str:
    """``text`` for a picture: ``shown``, and no dollar in it begins a formula of matplotlib's."""
    return shown(text).replace("$", r"\$")


def without_secrets(text: str) -> str:
    """``text`` without what looks like a secret.

    Left out are the values of environment variables whose names say that they hold one (of eight
    characters or more), the user and password of an address, and keys known by their form.
    """
    for name, value in os.environ.items():
        if len(value) >= _LEAST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, f"${name}")
    for form, instead in _SECRET_FORMS:
        text = form.sub(instead, text)
    return text


def stays_inside(file: Path, folder: Path) -> bool:
    """Whether ``file``, its links followed, lies in ``folder``.

    The Hub's cache is made of links from ``snapshots/COMMIT``, or folders in it, to ``blobs``, so
    these count too.
    """
    real, home = file.resolve(), folder.resolve()
    homes = [home, *(up.parent / "blobs" for up in home.parents if up.name == "snapshots")]
    return any(real.is_relative_to(place) for place in homes)
