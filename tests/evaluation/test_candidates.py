"""Answers made elsewhere find the items that they answer."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.evaluation.candidates import answers_to, look_at
from anchortune.evaluation.config import CandidateSection
from anchortune.evaluation.items import Item
from tests.evaluation.eval_stand_ins import write_rows


def test_one_prompt_under_two_system_prompts_has_two_answers(tmp_path: Path) -> None:
    rows = [
        {"prompt": "same", "set": "s", "system": system, "answer": f"to {system}"}
        for system in ("one", "two")
    ]
    path = write_rows(tmp_path / "a.jsonl", rows)
    found = look_at("m", CandidateSection(outputs=path))
    items = [Item("s", "same", system=system) for system in ("two", "one")]
    assert [answer.text for answer in answers_to(found, items)] == ["to two", "to one"]
    # Asked under no system prompt that the file knows, set and prompt have to do.
    assert answers_to(found, [Item("s", "same")])[0].item.system is None


def test_a_path_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "a.jsonl", [{"prompt": "p", "answer": "a"}])
    found = look_at("m", CandidateSection(outputs="~/a.jsonl"))
    assert [answer.text for answer in found.given or []] == ["a"]
