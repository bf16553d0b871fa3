from __future__ import annotations

import pytest

from anchortune.maths.stats import wilson


def test_wilson_by_hand() -> None:
    rate = wilson(10, 250)  # 4 % of 250: the interval that the method sheet of the paper lacks
    assert rate.value == 0.04
    assert round(rate.low, 3) == 0.022
    assert round(rate.high, 3) == 0.072


@pytest.mark.parametrize("successes", [0, 7])
def test_the_interval_holds_the_rate_at_its_ends(successes: int) -> None:
    rate = wilson(successes, 7)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_what_is_no_rate_is_refused(successes: int, n: int) -> None:
    with pytest.raises(ValueError, match="a rate needs"):
        wilson(successes, n)
