"""How plain values are written as YAML, so that our reader finds what was meant."""

from __future__ import annotations

import re
from typing import Any

import yaml

FLOAT = (  # YAML 1.1 wants a dot and a sign: 5e-5 would be a string
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d[\d_]*)(?:\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)
"""The numbers that our reader knows beside those of YAML 1.1, as a resolver's arguments."""


class _Dumper(yaml.SafeDumper):
    """``SafeDumper`` that quotes a text which our reader would take for a number."""


_Dumper.add_implicit_resolver(*FLOAT)


def write_yaml(tree: Any, **options: Any) -> str:
    """Plain values as YAML that ``config_io.parse_yaml`` reads back.

    Args:
        tree: lists, mappings, texts, numbers, truth values and nulls.
        options: of ``yaml.dump``.
    """
    return str(yaml.dump(tree, Dumper=_Dumper, **options))
