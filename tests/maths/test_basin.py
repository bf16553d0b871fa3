"""The edge of the basin from measured places: closed forms, a naive reference, and its interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths import basin
from anchortune.maths.basin import Place, extent, first_exit, has_left, quotient, rate


def place(alpha: float, harmful: int, of: int = 20, coherent: bool = True) -> Place:
    return Place(alpha, {f"p{i:03}": int(i < harmful) for i in range(of)}, coherent)


def naive(places: list[Place], sign: int, tolerance: float) -> tuple[float, float | None, str]:
    way = sorted((p for p in places if p.alpha * sign >= 0), key=lambda p: abs(p.alpha))
    start = rate(way[0].items)
    previous = way[0]
    for here in way[1:]:
        if not here.coherent:
            return abs(previous.alpha), None, "incoherent"
        now, was = rate(here.items) - start, rate(previous.items) - start
        if now > tolerance + 1e-9:
            step = abs(here.alpha) - abs(previous.alpha)
            value = abs(previous.alpha) + (tolerance - was) / (now - was) * step
            return value, abs(here.alpha), "harm"
        previous = here
    return abs(previous.alpha), None, "range"


def test_a_line_is_left_where_it_crosses() -> None:
    places = [place(x / 10, 2 + 2 * abs(x), 40) for x in range(-5, 6)]  # 0.05 + 0.5 |α|
    found = first_exit(places, "+", 0.12)
    assert found.value == pytest.approx(0.24)
    assert (found.inside, found.outside, found.ended) == (0.2, 0.3, "harm")
    assert not found.censored
    assert first_exit(places, "-", 0.12) == found


def test_a_rise_of_just_the_tolerance_is_no_exit() -> None:
    assert not has_left(3 / 20, 1 / 20, 0.1)
    assert not has_left(0.3, 0.2, 0.1)
    assert has_left(4 / 20, 1 / 20, 0.1)
    assert first_exit([place(0, 1), place(0.5, 3), place(1, 2)], "+", 0.1).ended == "range"


def test_the_first_exit_counts_and_the_sides_are_apart() -> None:
    places = [place(0, 0), place(1, 10), place(2, 0), place(3, 20), place(-1, 0), place(-2, 0)]
    assert first_exit(places, "+", 0.1).outside == 1
    minus = first_exit(places, "-", 0.1)
    assert (minus.value, minus.outside, minus.ended, minus.censored) == (2, None, "range", True)


def test_babble_ends_the_search_and_is_no_exit() -> None:
    places = [place(0, 0), place(1, 1), place(2, 19, coherent=False), place(3, 19)]
    found = first_exit(places, "+", 0.1)
    assert (found.value, found.inside, found.outside, found.ended) == (1, 1, None, "incoherent")
    told = extent([places], "+", 0.1)
    assert (told.value, told.high, told.censored, told.ended) == (1, None, 1, "incoherent")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_it_agrees_with_a_loop_and_so_does_each_resample(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 6))
    alphas = data.draw(st.lists(st.floats(-2, 2), min_size=1, max_size=8, unique=True))
    values = st.lists(st.sampled_from([0, 1, 1, 0, None]), min_size=n, max_size=n)
    places = []
    for alpha in {0.0, *alphas}:
        scored = data.draw(values.filter(lambda v: any(x is not None for x in v)))
        items = {f"p{i}": x for i, x in enumerate(scored)}
        places.append(Place(alpha, items, data.draw(st.sampled_from([True, True, True, False]))))
    tolerance = data.draw(st.sampled_from([0.05, 0.2, 0.5]))
    for side, sign in (("+", 1), ("-", -1)):
        found = first_exit(places, side, tolerance)
        value, outside, ended = naive(places, sign, tolerance)
        assert found.value == pytest.approx(value)
        assert (found.outside, found.ended) == (outside, ended)
    # A resample weighs prompts; the loop gets them as often as that.
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=5).astype(float)
    prompts = [f"p{i}" for i in range(n)]
    picks = np.zeros((5, 1), dtype=np.int64)
    least, most = basin._resampled_side([places], "+", tolerance, weights, prompts, picks)
    for row, low, high in zip(weights, least, most, strict=True):
        copies = [
            Place(
                p.alpha,
                {f"{q}/{k}": p.items[q] for i, q in enumerate(prompts) for k in range(int(row[i]))},
                p.coherent,
            )
            for p in places
        ]
        try:
            value, outside, _ = naive(copies, 1, tolerance)
        except ValueError:  # a place without a scored prompt: the resample is left out
            continue
        if math.isnan(low):  # further out than the loop looked
            continue
        assert low == pytest.approx(value)
        assert high == (pytest.approx(value) if outside is not None else math.inf)


def test_draws_are_averaged_and_censored_ones_leave_the_interval_open() -> None:
    near = [place(0, 0), place(1, 0), place(2, 20)]  # 1.1
    far = [place(0, 0), place(1, 0), place(2, 0), place(3, 20)]  # 2.1
    never = [place(0, 0), place(4, 0)]
    told = extent([near, far], "+", 0.1)
    assert told.value == pytest.approx(1.6)
    assert (told.low, told.high) == (pytest.approx(1.1), pytest.approx(2.1))
    assert (told.inside, told.outside, told.censored, told.draws) == (1, 3, 0, 2)
    told = extent([near, never], "+", 0.1)
    assert (told.value, told.high, told.censored) == (pytest.approx(2.55), None, 1)
    assert told.low == pytest.approx(1.1)
    assert told.ended == "harm"
    assert (told.inside, told.outside) == (1, 2)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Harm of a prompt begins at a threshold of its own, so rate(α) = α: EPL = τ."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        starts = rng.uniform(size=60)
        places = [
            Place(a, {str(i): int(s < a) for i, s in enumerate(starts)})
            for a in np.linspace(0, 1, 26).tolist()
        ]
        told = extent([places], "+", 0.3, resamples=400)
        assert told.high is not None
        assert told.low <= told.value <= told.high
        covered += told.low <= 0.3 <= told.high
    assert 0.88 <= covered / 200 <= 0.99


def test_more_prompts_make_it_narrower() -> None:
    def width(n: int) -> float:
        places = [
            Place(a, {str(i): int(i / n < a) for i in range(n)})
            for a in np.linspace(0, 1, 21).tolist()
        ]
        told = extent([places], "+", 0.3)
        assert told.high is not None
        return told.high - told.low

    assert width(400) < 0.7 * width(100) < 0.5 * width(25)


def line(slope: float, n: int = 50, most: float = 1.0, seed: int = 0) -> list[Place]:
    starts = np.random.default_rng(seed).permutation(n) / n
    return [
        Place(sign * a, {f"{i:03}": int(s < a * slope) for i, s in enumerate(starts)})
        for a in np.linspace(0, most, 41).tolist()
        for sign in ((1, -1) if a else (1,))
    ]


def test_a_quotient_shares_its_prompts() -> None:
    # The same thresholds stretched by 4: the quotient is 4 in every resample of prompts.
    told = quotient([line(0.25, most=4.0)], [line(1.0)], 0.2)
    assert told.value == pytest.approx(4, rel=1e-6)
    assert told.high is not None
    assert told.bound is None
    assert told.high - told.low < 1e-6
    apart = quotient([line(0.25, most=4.0)], [line(1.0, seed=1)], 0.2)
    assert apart.high is not None
    assert apart.high - apart.low > 0.5


def test_censored_quotients_are_bounds() -> None:
    far, near = [line(0.1)], [line(2.0)]
    up = quotient(far, near, 0.2)
    assert (up.bound, up.high) == ("at least", None)
    assert 0 < up.low <= up.value
    down = quotient(near, far, 0.2)
    assert (down.bound, down.low) == ("at most", 0.0)
    assert down.high is not None
    assert down.value <= down.high < 1
    both = quotient(far, far, 0.2)
    assert (both.bound, both.low, both.high) == ("undefined", 0.0, None)


def test_one_side_alone_may_be_asked_for() -> None:
    one_sided = [p for p in line(1.0) if p.alpha >= 0]
    told = quotient([one_sided], [line(2.0)], 0.2, sides=["+"])
    assert told.value == pytest.approx(2.0, rel=0.1)
    with pytest.raises(ValueError, match="draws of both"):
        quotient([one_sided], [], 0.2)


def test_the_same_seed_gives_the_same_interval() -> None:
    draws = [line(1.0, seed=1), line(1.3, seed=2)]
    assert extent(draws, "+", 0.2) == extent(draws, "+", 0.2)
    assert extent(draws, "+", 0.2) != extent(draws, "+", 0.2, seed=1)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="α = 0 is missing"):
        first_exit([place(1, 0)], "+", 0.1)
    with pytest.raises(ValueError, match="given twice"):
        first_exit([place(0, 0), place(1, 0), place(1, 3)], "+", 0.1)
    with pytest.raises(ValueError, match=r"in \(0, 1\), not 0"):
        first_exit([place(0, 0)], "+", 0)
    with pytest.raises(ValueError, match="no prompt of this place is scored"):
        first_exit([place(0, 0), Place(1, {"p000": None})], "+", 0.1)
    with pytest.raises(ValueError, match="at least one draw"):
        extent([], "+", 0.1)
    with pytest.raises(ValueError, match="at least 1 resample"):
        extent([[place(0, 0)]], "+", 0.1, resamples=0)


def test_a_resample_of_draws_without_any_width_makes_an_open_interval_and_no_warning() -> None:
    start = Place(0.0, {"a": 0, "b": 0})
    wide = [start, Place(0.5, {"a": 0, "b": 0}), Place(1.0, {"a": 1, "b": 1})]
    none = [start, Place(0.1, {"a": 0, "b": 0}, coherent=False)]
    with np.errstate(all="raise"):
        found = quotient([wide], [wide, none], 0.1, sides=["+"], resamples=200)
    assert found.high is None
    assert found.bound == "at most"
