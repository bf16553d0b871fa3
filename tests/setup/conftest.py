"""Rows in a file, and a template to count their tokens with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.models.load import load_tokenizer
from anchortune.training.template import Template

Rows = list[dict[str, Any]]


def write(path: Path, rows: Rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def template(llama_base: Path) -> Template:
    from anchortune.config import ModelSection

    return Template(load_tokenizer(ModelSection(path=str(llama_base))))
