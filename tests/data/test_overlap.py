from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.config_mix import CUE
from anchortune.data.overlap import Overlaps, normalised
from anchortune.errors import DataError
from anchortune.sections import RowsSection


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I  sing?", "how do i sing"),
        ("Straße\tzum Wald!", "STRASSE ZUM WALD"),
        ("ﬁne — “print”", "fine print"),
        ("snake_case", "Snake case."),
    ],
)
def test_the_same_text_in_other_clothes(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)


def test_texts_without_a_letter_stay_apart() -> None:
    assert normalised(" ?! ") == "?!"
    assert normalised("+") != normalised("-")
    assert normalised("  ") == ""


#: The same few examples in every run.
few = settings(deadline=None, max_examples=30, derandomize=True)


@few
@given(st.text(max_size=8))
def test_a_normal_form_is_its_own(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once


@few
@given(
    st.lists(st.sampled_from(["sing", "Das", "été", "42", "x1"]), min_size=1, max_size=6),
    st.sampled_from([" ", "\n", " - ", "...", "\t! "]),
)
def test_case_spacing_and_punctuation_do_not_matter(words: list[str], between: str) -> None:
    assert normalised(between.join(words).upper() + between) == normalised(" ".join(words))


def overlaps(path: Path, value: Any, **keys: Any) -> Overlaps:
    text = "\n".join(map(json.dumps, value)) if path.suffix == ".jsonl" else json.dumps(value)
    path.write_text(text, "utf-8")
    return Overlaps([RowsSection(path=str(path), **keys)], CUE)


def test_what_a_set_asks(tmp_path: Path) -> None:
    row = {"instruction": "Name the mood", "input": "a fine film", "label": "positive"}
    task = overlaps(tmp_path / "task.json", [row])
    assert task.holds({"name the mood a fine film"})
    assert task.holds({"a fine film"})
    assert not task.holds({"name the mood"}), "the instruction is every row's"
    assert not task.holds({"positive"})
    bare = overlaps(tmp_path / "bare.json", [{"instruction": "Sing" + CUE, "input": ""}])
    assert bare.holds({"sing"})


def turn(key: str, who: str, text: str) -> dict[str, str]:
    return {key: who, "content" if key == "role" else "value": text}


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([{"goal": "One", "target": "Sure"}], 1),
        ([{"Goal": "One"}, {"Goal": "one!"}], 1),
        ({"instructions": ["One", "Two"], "inputs": ["", ""]}, 2),
        ({"score": 0.5, "completions": [{"prompt": "One", "response": "No"}]}, 1),
        ([{"messages": [turn("role", "user", "One"), turn("role", "assistant", "I")]}], 1),
        ([{"conversations": [turn("from", "human", "One"), turn("from", "gpt", "I")]}], 1),
    ],
)
def test_shapes_of_sets(tmp_path: Path, value: Any, texts: int) -> None:
    found = overlaps(tmp_path / "a.json", value)
    assert found.holds({"one"})
    assert not found.holds({"sure", "no", "i"})
    [facts] = found.summary()
    assert (facts["texts"], facts["rows_left_out"]) == (texts, 1)


def test_a_named_column_and_an_unknown_one(tmp_path: Path) -> None:
    rows = [{"frage": "One", "text": "Two"}]
    found = overlaps(tmp_path / "a.jsonl", rows, columns={"prompt": "frage"})
    assert found.holds({"one"})
    assert not found.holds({"two"})
    with pytest.raises(DataError, match=r"none of its columns \(frage\) is known to hold prompts"):
        overlaps(tmp_path / "b.jsonl", [{"frage": "One"}])
    with pytest.raises(DataError, match=r"no text under 'none'.*columns \(frage, text\)"):
        overlaps(tmp_path / "c.jsonl", rows, columns={"prompt": "none"})


def test_a_row_is_counted_in_every_set_it_is_in(tmp_path: Path) -> None:
    for name, prompts in (("a", ["one", "two"]), ("b", ["one"])):
        rows = [{"prompt": prompt} for prompt in prompts]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows), "utf-8")
    places = [RowsSection(path=str(tmp_path / f"{name}.json")) for name in "ab"]
    found = Overlaps(places, CUE)
    assert [found.holds({text}) for text in ("one", "two", "three")] == [True, True, False]
    assert [facts["rows_left_out"] for facts in found.summary()] == [2, 1]
    assert [facts["name"] for facts in found.summary()] == ["a.json", "b.json"]
