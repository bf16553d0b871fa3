"""The number an answer ends on."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchortune.evaluation.tasks.numbers import find_number, show


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("595", "595"),
        ("So there are 595.", "595"),
        ("The final answer is:  1,450,000", "1450000"),
        ("12 eggs, then 7.\n#### 72", "72"),
        ("#### 72\nThat took 3 steps.", "72"),
        ("It costs $1,234.50.", "1234.5"),
        ("He owes -$5", "-5"),
        ("It is $-4", "-4"),
        ("It was −3.5 °C", "-3.5"),
        ("x = -7", "-7"),
        ("£3,000 in all", "3000"),
        ("18 dollars", "18"),
        ("50%", "50"),
        (".5 of it", "0.5"),
        ("1.5e3", "1500"),
        ("1/2 cup", "0.5"),
        ("a third, 1/3", "1/3"),
        (r"so \boxed{42}", "42"),
        (r"so $\boxed{\frac{1}{2}}$", "0.5"),
        ("**Answer:** 7\n\nI took 3 steps", "7"),
        ("The answer is 5 + 3 = 8 apples", "8"),
        ("The final answer is:\n12", "12"),
        ("The final answer is unknown to me. I have 7.", "7"),
        ("#### 5\n#### 9", "9"),
        ("5-3", "3"),
        ("5 - 3", "3"),
        ("(5)-3", "3"),
        ("10-15 apples", "15"),
        ("- 5 apples", "5"),
        ("1. Take 3\n2. Then 4", "4"),
        ("12/25/2020 was 4 years ago", "4"),
        ("007", "7"),
        ("v2 makes 3", "3"),
    ],
)
def test_a_number_is_found(text: str, value: str) -> None:
    found = find_number(text)
    assert found.value == Fraction(value)
    assert found.why == ""


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no number"),
        ("seventy-two", "no number"),
        ("a1b2", "no number"),
        ("One is 3. They are 1,2", "cannot be read"),
        ("version 2.5.1", "cannot be read"),
        ("1,00,000", "cannot be read"),
        ("4/0", "over zero"),
        ("9" * 5000, "too many digits"),
        ("1e999999999", "too many digits"),
        ("1e400", "too many digits"),
        ("1" * 59 + "e7", "too many digits"),  # found by fuzzing: not what it is shown as
    ],
)
def test_what_is_no_number_is_said(text: str, why: str) -> None:
    found = find_number(text)
    assert found.value is None
    assert why in found.why


@given(st.integers(-(10**15), 10**15), st.sampled_from(["{}", "{:,}", "#### {:,}", "so {} apples"]))
def test_every_integer_comes_back(value: int, form: str) -> None:
    assert find_number(form.format(value)).value == value
    assert show(Fraction(value)) == str(value)


@given(st.text(max_size=300))
def test_any_text_is_read_without_an_error(text: str) -> None:
    found = find_number(text)
    assert (found.value is None) == bool(found.why)


def test_a_long_text_is_read_quickly() -> None:
    assert find_number("1,2." * 50_000 + " and 7").value == 7
    assert find_number("7 " + "answer is " * 20_000).value == 7


@given(
    st.from_regex(
        r"-?[0-9]{1,62}(\.[0-9]{1,62})?(e[+-]?[0-9]{1,2})?(/[0-9]{1,62})?", fullmatch=True
    )
)
def test_what_is_shown_is_read_back(text: str) -> None:
    value = find_number(text).value
    assert value is None or find_number(show(value)).value == value
