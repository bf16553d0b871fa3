"""Prompts without answers, and that a probe asks nothing that is reported on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchortune.data.prompts import check_disjoint, read_prompts
from anchortune.errors import DataError
from anchortune.sections import PromptsSection


def test_prompts_are_read_once_each_and_sampled_the_same_way(tmp_path: Path) -> None:
    rows = [{"goal": f"Do {i}!"} for i in range(9)] + [{"goal": " do 3 "}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "b.json").write_text(json.dumps([{"instruction": "Cut", "input": "this"}]))
    sections = [PromptsSection(path=str(tmp_path / name)) for name in ("a.jsonl", "b.json")]
    found = read_prompts(sections)
    assert found.texts == [*(f"Do {i}!" for i in range(9)), "Cut\nthis"]
    assert [(one["path"], one["column"], one["rows"]) for one in found.sources] == [
        ("a.jsonl", "goal", 10), ("b.json", "instruction", 1),
    ]  # fmt: skip
    some = read_prompts(sections, 4)
    assert len(some.texts) == 4
    assert [text for text in found.texts if text in some.texts] == some.texts
    assert some == read_prompts(sections, 4)
    assert some.summary()["prompts"] == 4
    assert some.summary()["prompts_sha256"] != found.summary()["prompts_sha256"]


def test_rows_and_columns_without_a_prompt_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "x"}\n{"prompt": " "}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: line 2: no text in column 'prompt'"):
        read_prompts([PromptsSection(path=str(path))])
    path.write_text('{"odd": "x"}\n')
    with pytest.raises(DataError, match="no column of prompts; it has odd"):
        read_prompts([PromptsSection(path=str(path))])
    assert read_prompts([PromptsSection(path=str(path), column="odd")]).texts == ["x"]


def test_a_probe_of_reported_prompts_is_refused_whatever_its_spelling() -> None:
    told = ("prompts of the probe", "the test set", "give others")
    check_disjoint(["Do this"], ["Do that"], *told)
    said = r"1 of the 2 prompts of the probe are in the test set, which is reported on; give others"
    with pytest.raises(DataError, match=said):
        check_disjoint(["Do  THIS!", "other"], ["do this", "do that"], *told)
