"""What a hostile model, file or server may hold: texts that would act, and a pickle that does."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path

import torch

#: Names and answers that would do something where they are shown as they are.
TEXTS = (
    "\x1b[31mred\x1b[0m\x1b[2J",
    "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07",
    "\x1b]0;title\x07\x1bP+q\x1b\\",
    "\x9b31mred \x9d0;t\x9c",
    "good\u202excod.exe\u2066x\u2069",
    "line\r\nnext\u2028other\u2029last",
    "x\n::error file=a,line=1::boo\n::stop-commands::t",
    "##[add-mask]secret ##[error]x",
    "[red]m[/red][link=http://evil.example]l[/link]",
    "[/]",
    "</title></script><script>document.title='ran'</script><img src=x onerror=\"x\">",
    "' onmouseover='x' \" autofocus onfocus=\"x",
    "a|b\n|---|\n`code` *b* _i_ [l](javascript:x) ![p](http://evil.example/p.png)",
    '=HYPERLINK("http://evil.example","x")',
    "@SUM(1+1)",
    "[2pt] \\input{/etc/passwd} \\write18{x} $\\frac{ % & # ~ ^ {",
    "tag\U000e0041\ufeff\ufff9",
    "lone \ud800 nul \x00",
)
#: What no terminal may be sent: control characters besides line breaks and tabs, and directions.
ACTS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029\u2066-\u2069\ufeff]")
#: What GitHub's runner obeys.
COMMANDS = re.compile(r"(?m)^\s*::|##\[")


def assert_inert(text: str) -> None:
    """Nothing in ``text`` is an order to a terminal or to GitHub's runner."""
    assert not ACTS.findall(text)
    assert not COMMANDS.findall(text)


class _Boom:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> object:
        return Path.touch, (self.marker,)


def boom(marker: Path) -> bytes:
    """A pickle that makes the file ``marker`` when it is read."""
    return pickle.dumps(_Boom(marker))


def boom_zip(marker: Path) -> bytes:
    """The same as ``torch.save`` would write it."""
    stream = io.BytesIO()
    torch.save({"state": _Boom(marker)}, stream)
    assert zipfile.is_zipfile(stream)
    return stream.getvalue()
