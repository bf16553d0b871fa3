from __future__ import annotations

import math

import numpy as np
import pytest

from anchortune.maths.ranking import auc, recall_at
from anchortune.maths.stats import wilson


def naive_auc(scores: list[float], labels: list[bool]) -> float:
    pairs = [
        (a, b)
        for a, x in zip(scores, labels, strict=True)
        for b, y in zip(scores, labels, strict=True)
        if x and not y
    ]
    return sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs)


def drawn(n: int, seed: int, step: float = 0.0) -> tuple[list[float], list[bool]]:
    draw = np.random.default_rng(seed)
    labels = draw.random(n) < 0.4
    scores = draw.normal(size=n) + labels
    if step:
        scores = np.round(scores / step) * step
    return scores.tolist(), labels.tolist()


@pytest.mark.parametrize("step", [0.0, 0.5, 2.0])
def test_auc_is_the_share_of_pairs_in_order(step: float) -> None:
    scores, labels = drawn(80, 1, step)
    area = auc(scores, labels)
    assert area.value == pytest.approx(naive_auc(scores, labels))
    assert area.low < area.value < area.high
    assert area.positives + area.negatives == 80


def test_the_interval_of_auc_holds_the_truth_about_as_often_as_it_says() -> None:
    """Normal scores one apart: the true area is Phi(1 / sqrt 2)."""
    truth = 0.5 * (1 + math.erf(0.5))
    inside = 0
    for seed in range(300):
        scores, labels = drawn(120, seed)
        area = auc(scores, labels)
        inside += area.low <= truth <= area.high
    assert 0.91 <= inside / 300 <= 0.985


def test_auc_where_the_classes_are_apart() -> None:
    area = auc([1, 2, 3, 4, 5], [False, False, True, True, True])
    assert (area.value, area.high) == (1.0, 1.0)
    assert area.low == pytest.approx(0.342, abs=1e-3)  # Wilson, 2 of 2
    turned = auc([1, 2, 3, 4, 5], [True, True, True, False, False])
    assert (turned.value, turned.low) == (0.0, 0.0)
    assert turned.high == pytest.approx(1 - 0.342, abs=1e-3)
    assert auc([1, 1], [True, False]).value == 0.5


def test_recall_by_hand() -> None:
    negatives, positives = list(range(20)), [18.5, 19.5, 5, 30]
    scores, labels = [*negatives, *positives], [False] * 20 + [True] * 4
    found = recall_at(scores, labels, 0.05)  # one negative, 19, may be flagged
    assert (found.value, found.threshold, found.false_positive_rate) == (0.75, 18.5, 0.05)
    assert found.low <= 0.75 <= found.high
    assert (found.positives, found.negatives) == (4, 20)
    strict = recall_at(scores, labels, 0.0)
    assert (strict.value, strict.threshold, strict.false_positive_rate) == (0.5, 19.5, 0.0)
    loose = recall_at(scores, labels, 0.3)
    assert loose.value == 0.75
    assert loose.false_positive_rate <= 0.3


def test_recall_of_a_judge_that_says_only_yes_or_no() -> None:
    """Tied negatives cannot be flagged in part."""
    scores, labels = [1.0, 0, 0, 0, 1, 1, 0], [False] * 4 + [True] * 3
    assert recall_at(scores, labels, 0.25).value == pytest.approx(2 / 3)
    none = recall_at(scores, labels, 0.2)
    assert (none.value, none.threshold) == (0.0, math.inf)


def test_the_interval_of_recall_is_by_seed() -> None:
    scores, labels = drawn(200, 3)
    first = recall_at(scores, labels, seed=1, resamples=200)
    assert first == recall_at(scores, labels, seed=1, resamples=200)
    assert first != recall_at(scores, labels, seed=2, resamples=200)
    assert 0 <= first.low < first.high <= 1


@pytest.mark.parametrize(
    ("scores", "labels", "said"),
    [
        ([1.0], [True, False], "1 scores cannot be held against 2 labels"),
        ([1.0, 2.0], [True, True], "both classes are needed"),
        ([], [], "both classes are needed"),
        ([1.0, math.nan], [True, False], "not finite"),
    ],
)
def test_what_cannot_be_ranked_is_refused(
    scores: list[float], labels: list[bool], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        auc(scores, labels)
    with pytest.raises(ValueError, match=said):
        recall_at(scores, labels)


def test_a_rate_is_below_one() -> None:
    with pytest.raises(ValueError, match=r"is in \[0, 1\), not 1"):
        recall_at([1.0, 0.0], [True, False], 1.0)


def test_recall_of_everything_is_not_known_exactly() -> None:
    few = recall_at([0.9] * 3 + [0.1] * 3, [True] * 3 + [False] * 3)
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low == wilson(3, 3).low
    none = recall_at([0.1] * 3 + [0.9] * 3, [True] * 3 + [False] * 3)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == wilson(0, 3).high
