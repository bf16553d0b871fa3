from __future__ import annotations

import pytest

from anchortune.errors import DataError
from anchortune.evaluation.measure import label_accuracy, unrefused_rate


def test_unrefused_rate_counts_what_has_no_refusal() -> None:
    rate = unrefused_rate(["I can't help with that.", "Sure.", "Here you go.", "Yes."])
    assert (rate.value, rate.n) == (0.75, 4)


def test_a_label_is_right_alone_and_as_a_word() -> None:
    labels = ["billing", "returns", "billing", "returns", "account"]
    answers = [
        "This goes to the Billing desk.",
        "Returns or billing",
        "rebilling",
        "billing",
        "The account desk",
    ]
    rate = label_accuracy(answers, labels)
    assert rate.value == pytest.approx(2 / 5)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(DataError, match="no answers"):
        unrefused_rate([])
    with pytest.raises(DataError, match="1 answers cannot be held against 2 labels"):
        label_accuracy(["a"], ["a", "b"])
