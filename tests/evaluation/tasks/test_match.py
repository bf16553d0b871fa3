"""Matching is strict: two classes are wrong, nothing to read is unparsed, and why is said."""

from __future__ import annotations

import pytest

from anchortune.errors import EvaluationError
from anchortune.evaluation.tasks import paper
from anchortune.evaluation.tasks.match import choice, exact, number, regex

SENTIMENT = {"0": "negative", "1": "positive"}
NEWS = {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}


@pytest.mark.parametrize(
    ("text", "target", "outcome", "why"),
    [
        ("positive", "1", "right", ""),
        ("Positive.", "1", "right", ""),
        ("**POSITIVE**", "1", "right", ""),
        ("The review is positive, very positive.", "1", "right", ""),
        ("positive", "0", "wrong", "another class"),
        ("positive or negative", "1", "wrong", "names 2 classes"),
        ("It is not negative but positive", "1", "wrong", "names 2 classes"),
        ("positively great", "1", "unparsed", "names no class"),
        ("I cannot say", "1", "unparsed", "names no class"),
        ("", "1", "unparsed", "empty answer"),
        (" \n", "1", "unparsed", "empty answer"),
    ],
)
def test_choice(text: str, target: str, outcome: str, why: str) -> None:
    reading = choice(SENTIMENT)(text, target)
    assert (reading.outcome, reading.why) == (outcome, why)


def test_a_class_may_hold_signs_and_other_classes() -> None:
    news = choice(NEWS)
    assert news("Sci/Tech", "3").outcome == "right"
    assert news("(sci/tech)", "3").outcome == "right"
    assert news("Science", "3").outcome == "unparsed"
    assert news("World Business", "0").outcome == "wrong"
    hate = choice({"a": "hateful", "b": "not hateful"})
    assert hate("This is not hateful.", "b").outcome == "right"
    assert hate("This is not hateful.", "a").outcome == "wrong"
    assert hate("hateful", "a").outcome == "right"


def test_a_class_of_one_letter_is_no_article() -> None:
    letters = choice({"A": "A", "B": "B"})
    assert letters("B, for a dog is a pet", "B").outcome == "right"
    assert letters("A or B", "B").outcome == "wrong"
    assert letters("a", "A").outcome == "unparsed"


@pytest.mark.parametrize(
    "choices", [{"0": "yes"}, {"0": "yes", "1": "Yes"}, {"0": "yes", "1": ""}, {}]
)
def test_classes_need_words_of_their_own(choices: dict[str, str]) -> None:
    with pytest.raises(EvaluationError, match="a word of its own"):
        choice(choices)


def test_exact_looks_past_white_space_alone() -> None:
    assert exact("  New\n York ", "New York").outcome == "right"
    assert exact("new york", "New York").outcome == "wrong"
    assert exact("New York.", "New York").outcome == "wrong"
    assert exact("", "New York").outcome == "unparsed"
    assert len(exact("x" * 100_000, "y").parsed) <= 60


def test_number() -> None:
    assert number("The final answer is: 1,450,000 dollars", "1450000").outcome == "right"
    assert number("12.50", "12.5").outcome == "right"
    assert number("12", "13").why == "another number"
    assert number("none of them", "13").outcome == "unparsed"
    assert number("maybe 1,2", "2").outcome == "unparsed"


def test_regex_takes_its_first_group_and_one_answer_alone() -> None:
    match = regex(r"Answer:\s*(\w+)")
    assert match("Answer: Paris", "Paris").outcome == "right"
    assert match("Answer: Paris. Again, Answer: Paris", "Paris").outcome == "right"
    assert match("Answer: Rome", "Paris").outcome == "wrong"
    assert (
        match("Answer: Rome. Answer: Paris", "Paris").why == "the pattern finds 2 different answers"
    )
    assert match("Paris", "Paris").outcome == "unparsed"
    with pytest.raises(EvaluationError, match="not a regular expression"):
        regex("(")
    with pytest.raises(EvaluationError, match="brackets"):
        regex("Answer")


def test_the_authors_matching_keeps_its_faults() -> None:
    word = paper.one_word(SENTIMENT)
    assert word(" Positive\n", "1").outcome == "right"
    assert word("Positive.", "1").outcome == "wrong"
    assert word("POSITIVE", "1").outcome == "wrong"
    assert paper.agnews("World or Sports", "1").outcome == "right"  # ours: wrong
    assert choice(NEWS)("World or Sports", "1").outcome == "wrong"
    assert paper.agnews("technology", "3").outcome == "right"
    assert paper.agnews("Sci/Tech", "0").outcome == "wrong"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("The final answer is: 1,450,000", "right"),
        ("The final answer is: 1450000.0 of 3", "right"),
        ("3 of them, 1450000", "right"),
        ("The final answer is: none. I saw 1450000", "right"),
        ("1450000, or 3", "wrong"),
        ("no idea", "unparsed"),
    ],
)
def test_the_authors_number(text: str, outcome: str) -> None:
    assert paper.last_number(text, "1450000").outcome == outcome


def test_the_frame_of_alpaca() -> None:
    prompt = paper.with_input("Do it")
    assert prompt.count("{text}") == 1
    assert prompt.startswith("Below is an instruction that describes a task, paired with an input")
    assert prompt.endswith("### Instruction:\nDo it\n\n### Input:\n{text}\n\n### Response:\n")
    assert "### Input" not in paper.without_input()
