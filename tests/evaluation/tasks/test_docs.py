"""The page on tasks names what there is, and its examples are configs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from anchortune.evaluation.coherence import KINDS
from anchortune.evaluation.config import AskSection, Match
from anchortune.evaluation.prompt_sets import PROMPT_SETS
from anchortune.evaluation.tasks.named import TASKS
from anchortune.evaluation.wrappers import WRAPPERS

PAGE = (Path(__file__).parents[3] / "docs" / "tasks.md").read_text("utf-8")


def test_everything_named_stands_in_a_table() -> None:
    for name in (*TASKS, *PROMPT_SETS, *WRAPPERS, *get_args(Match)):
        assert f"| `{name}` |" in PAGE
    for kind in set(KINDS.values()):
        assert f"| {kind} |" in PAGE
    for spec in TASKS.values():
        repository = "/".join(spec.source.path.removeprefix("hf://datasets/").split("/")[:2])
        assert f"`{repository}`" in PAGE
    for known in PROMPT_SETS.values():
        assert f"`{known.source.path}`" in PAGE


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_every_example_is_a_config(block: str) -> None:
    found = yaml.safe_load(block)
    config = found if isinstance(found, dict) else {"tasks": found}
    AskSection.model_validate({"judges": ["refusal"], **config})
