from __future__ import annotations

import math

import numpy as np
import pytest

from anchortune.maths.seeds import paired_over_seeds, student_p
from anchortune.maths.stats import mcnemar, paired, t95, tango


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    [  # Student's table, two-sided
        (12.706205, 1, 0.05),
        (63.656741, 1, 0.01),
        (636.61925, 1, 0.001),
        (2.2281389, 10, 0.05),
        (4.5868939, 10, 0.001),
        (1.9839715, 100, 0.05),
        (1.9599640, math.inf, 0.05),
        (0.0, 7, 1.0),
    ],
)
def test_p_of_students_t(t: float, freedom: float, p: float) -> None:
    assert student_p(t, freedom) == pytest.approx(p, rel=1e-5)
    assert student_p(-t, freedom) == student_p(t, freedom)


def test_p_goes_with_the_quantile_and_stays_one_at_any_freedom() -> None:
    for freedom in (1.3, 2.0, 29.9, 30.1, 4000.0):
        assert student_p(t95(freedom), freedom) == pytest.approx(0.05, rel=1e-4)
    assert student_p(1.96, 1e7) == pytest.approx(math.erfc(1.96 / math.sqrt(2)))
    assert 0 <= student_p(90.0, 5000.0) < 1e-12
    with pytest.raises(ValueError, match="at least 1 degree of freedom"):
        student_p(1.0, 0.5)


def test_one_seed_is_the_paired_difference_of_one_evaluation() -> None:
    row = [1] * 12 + [-1] * 3 + [0] * 35
    found = paired_over_seeds([row])
    one = paired([x == 1 for x in row], [x == -1 for x in row])
    assert (found.value, found.low, found.high) == (one.value, one.low, one.high)
    assert found.p == mcnemar(12, 3)
    assert (found.seeds, found.n, found.pairs, found.up, found.down) == (1, 50, 50, 12, 3)


def test_two_seeds_by_hand() -> None:
    # Seeds' differences 2/4 and 1/4: mean 3/8, by seed (1/8)²·2/(2-1)/2 = 1/64.
    rows = [[1, 1, 0, 0], [1, 0, 0, 0]]
    # Pulls of the prompts: (1-.5 + 1-.25)/8 = .15625, (.5 - .25)/8 = .03125, (-.75)/8 twice.
    pulls = [0.15625, 0.03125, -0.09375, -0.09375]
    by_prompt, by_seed = sum(u * u for u in pulls) * 4 / 3, 1 / 64
    variance = by_prompt + by_seed
    freedom = variance**2 / (by_seed**2 / 1 + by_prompt**2 / 3)
    effective = (0.375 - 0.375**2) / variance
    found = paired_over_seeds(rows)
    low, high = tango(0.375 * effective, 0, effective, t95(freedom))
    assert found.value == 0.375
    assert found.p == pytest.approx(student_p(math.sqrt(0.375 * effective), freedom))
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert (found.seeds, found.n, found.pairs, found.up, found.down) == (2, 4, 8, 3, 0)


def test_equal_seeds_tell_no_more_than_one_and_agreement_has_width() -> None:
    same = paired_over_seeds([[0] * 30] * 3)
    assert (same.value, same.p) == (0.0, 1.0)
    assert (same.low, same.high) == pytest.approx(tango(0, 0, 30))
    always = paired_over_seeds([[1] * 30] * 3)
    assert always.value == 1.0
    assert always.low == pytest.approx(tango(30, 0, 30)[0])
    assert always.p < 1e-6


def test_seeds_that_disagree_leave_little() -> None:
    found = paired_over_seeds([[1] * 40 + [0] * 60, [0] * 100])
    assert found.low < -0.3
    assert found.high > 0.8
    assert found.p > 0.1


def test_what_is_missing_is_left_out() -> None:
    whole = paired_over_seeds([[1, 0, 0, -1, 1], [1, 1, 0, 0, 1]])
    holes = paired_over_seeds([[1, 0, None, 0, -1, 1], [1, 1, None, 0, 0, 1]])
    assert holes == whole
    part = paired_over_seeds([[1, None, 1, 0], [0, 0, None, 1]])
    assert part.value == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert (part.n, part.pairs) == (4, 6)
    with pytest.raises(ValueError, match="a seed has no pair"):
        paired_over_seeds([[1, 0], [None, None]])
    with pytest.raises(ValueError, match="the same prompts"):
        paired_over_seeds([[1, 0], [1]])


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Crossed design: prompts of their own difficulty, seeds of their own level, true gap 0.2."""
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(150):
        hard = rng.normal(0, 0.1, 80)
        level = rng.normal(0, 0.05, 3)
        up = np.clip(0.35 + hard[None, :] + level[:, None], 0, 1)
        draw = rng.random((3, 80))
        rows = np.where(draw < up, 1, np.where(draw > 0.85, -1, 0))
        found = paired_over_seeds(rows.tolist(), resamples=200)
        held += found.low <= 0.2 <= found.high
    assert held / 150 > 0.93
