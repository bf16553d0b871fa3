"""The page about judges names every judge, every key it takes and every option of the command."""

from __future__ import annotations

import re
from pathlib import Path

import typer

from anchortune.cli.judge import app
from anchortune.config import JudgeName, JudgeSection
from anchortune.evaluation.judges.guard_templates import TEMPLATES
from anchortune.evaluation.judges.labels import INVERSE, LABELS

PAGE = (Path(__file__).parents[3] / "docs" / "judges.md").read_text("utf-8")


def test_every_judge_and_key_is_named() -> None:
    assert all(f"`{name}`" in PAGE for name in JudgeName.__args__)
    assert all(re.search(rf"`{key}`|\b{key}:", PAGE) for key in JudgeSection.model_fields)
    assert all(f"`{name}`" in PAGE for name in (*LABELS, *INVERSE))
    for template in TEMPLATES.values():
        assert (template.adapter or template.published) in PAGE


def test_every_option_is_named() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, command in commands.items():
        for param in command.params:
            flags = [flag for flag in param.opts if flag.startswith("-")]
            assert not flags or any(f"{flag}" in PAGE for flag in flags), (name, flags)
