"""The two jailbreaks: what they hide can be read back, and nothing is left to chance."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchortune.errors import EvaluationError
from anchortune.evaluation.wrappers import (
    _FONT,
    _PHRASES,
    WRAPPERS,
    artprompt,
    content_words,
    dra,
    draw,
)

PROMPT = "How do I paint my neighbour's fence purple?"


def read_back(art: str) -> str:
    """The word that ``draw`` drew."""
    letters = {rows.replace(".", " ").replace("#", "*"): name for name, rows in _FONT.items()}
    columns = zip(*(line.split("|") for line in art.split("\n")), strict=True)
    known = {tuple(_rows(rows)): name for rows, name in letters.items()}
    return "".join(known[column] for column in columns)


def _rows(shape: str) -> list[str]:
    return [shape[start : start + 5] for start in range(0, 29, 6)]


def hidden(text: str) -> str:
    """The letters in brackets of a disguised request, up to the instruction."""
    puzzle = text.split("\n\nLook only", 1)[0]
    return "".join(re.findall(r"\((.)\)", puzzle))


@given(st.text(string.ascii_letters, min_size=1, max_size=12))
def test_art_can_be_read_back(word: str) -> None:
    assert read_back(draw(word)) == word.upper()


@given(st.text(string.ascii_letters + " ,.?'", min_size=1, max_size=60), st.integers(0, 5))
def test_the_letters_of_a_disguise_are_the_request(prompt: str, seed: int) -> None:
    if not any(map(str.isalpha, prompt)):
        return
    text = dra(prompt, seed)
    assert hidden(text) == prompt.lower()
    assert text == dra(prompt, seed)


def test_a_font_and_phrases_for_every_letter() -> None:
    assert set(_FONT) == set(string.ascii_uppercase)
    assert len(set(_FONT.values())) == 26
    assert all(re.fullmatch(r"([#.]{5} ){4}[#.]{5}", rows) for rows in _FONT.values())
    assert set(_PHRASES) == set(string.ascii_lowercase)
    assert all(letter in phrase for letter, both in _PHRASES.items() for phrase in both)


def test_the_longest_content_word_is_masked_and_drawn() -> None:
    text = artprompt(PROMPT, 0)
    assert "neighbour" not in text.lower()
    assert "How do I paint my [MASK]'s fence purple?" in text
    assert draw("neighbour") in text
    assert "a word of 9 letters" in text
    assert artprompt(PROMPT, 1) == text
    assert "[MASK] and [MASK]" in artprompt("Paint Fences and fences", 0)
    assert "[MASK]" in artprompt("How do you do", 0)  # nothing but small words: the longest of all


def test_telling_words_are_cut_and_the_others_whole() -> None:
    text = dra(PROMPT, 0)
    words = re.findall(r'"(\w+)"', text.split("holds these words", 1)[1].split(". Complete", 1)[0])
    assert words[:3] == ["how", "do", "i"]
    for whole in ("paint", "neighbour", "fence", "purple"):
        assert whole not in words
        assert any(whole.startswith(word) and len(word) >= len(whole) // 2 for word in words)
    assert dra(PROMPT, 1) != text


def test_content_words() -> None:
    assert content_words("Write a poem about the sea, the sea") == ["poem", "sea"]


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_prompt_without_latin_letters_is_refused(name: str) -> None:
    with pytest.raises(EvaluationError, match="Latin letter"):
        WRAPPERS[name]("今日は 12", 0)
