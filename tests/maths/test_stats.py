from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.maths.stats import (
    Z95,
    bootstrap_difference,
    cohen_kappa,
    holm,
    mcnemar,
    over_seeds,
    paired,
    t95,
    tango,
    wilson,
)

few = st.integers(0, 40)
shares = st.lists(st.floats(0, 1), min_size=1, max_size=12)
pairs = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


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


@given(up=few, down=few)
def test_mcnemar_is_the_exact_two_sided_binomial(up: int, down: int) -> None:
    n = up + down
    tail = sum(Fraction(math.comb(n, k), 2**n) for k in range(min(up, down) + 1))
    assert mcnemar(up, down) == pytest.approx(float(min(Fraction(1), 2 * tail)), abs=1e-15)
    assert mcnemar(up, down) == mcnemar(down, up)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == 2 / 32
    assert mcnemar(10, 2) == pytest.approx(2 * (1 + 12 + 66) / 4096)
    assert 0.04 < mcnemar(5000, 5200) < 0.06  # whole numbers of 3000 digits on the way
    with pytest.raises(ValueError, match="cannot be negative"):
        mcnemar(-1, 2)


def test_the_bootstrap_is_the_resampling_of_prompts() -> None:
    up, down, n = 9, 3, 40
    differences = np.array([1] * up + [-1] * down + [0] * (n - up - down))
    rng = np.random.default_rng(5)
    means = differences[rng.integers(0, n, size=(40_000, n))].mean(axis=1)
    found = bootstrap_difference(up, down, n, 40_000, np.random.default_rng(6))
    assert found == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=1 / n + 1e-9)
    with pytest.raises(ValueError, match="at least 1 resample"):
        bootstrap_difference(up, down, n, 0, rng)


def test_the_seed_decides_the_bootstrap_and_the_global_generator_does_not() -> None:
    first, second = [True] * 30 + [False] * 20, [False] * 21 + [True] * 29
    np.random.seed(1)
    one = paired(first, second, resamples=200, seed=3)
    np.random.seed(2)
    assert paired(first, second, resamples=200, seed=3) == one
    others = {paired(first, second, resamples=200, seed=seed)[:3] for seed in range(8)}
    assert len(others) > 1


def score_test(up: int, down: int, n: int, d: float) -> float:
    """|z| of the score test of Tango, its restricted likelihood maximised on a grid."""
    best, share = -math.inf, 0.0
    for q in np.linspace(max(0.0, -d), (1 - d) / 2 + 1e-12, 20_001):  # of down; up is q + d
        same = 1 - 2 * q - d
        value = 0.0
        for count, p in ((up, q + d), (down, q), (n - up - down, same)):
            value += count * math.log(max(p, 1e-300)) if count else 0.0
        if value > best:
            best, share = value, q
    return abs(up - down - n * d) / math.sqrt(n * (2 * share + d - d * d))


@pytest.mark.parametrize(("up", "down", "n"), [(12, 3, 50), (1, 1, 20), (3, 9, 30), (0, 4, 25)])
def test_tango_ends_where_the_score_test_rejects(up: int, down: int, n: int) -> None:
    for end in tango(up, down, n):
        assert score_test(up, down, n, end) == pytest.approx(Z95, abs=2e-3)


def test_tango_by_hand_where_no_pair_disagrees() -> None:
    edge = Z95**2 / (40 + Z95**2)
    assert tango(0, 0, 40) == pytest.approx((-edge, edge))
    with pytest.raises(ValueError, match="do not fit"):
        tango(3, 3, 5)


@given(pairs)
@settings(max_examples=60)
def test_a_paired_difference_is_that_of_the_rates(sample: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in sample], [b for _, b in sample]
    found = paired(first, second, resamples=50)
    assert found.value == pytest.approx(statistics.mean(first) - statistics.mean(second))
    assert found.n == len(sample)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high  # never without width
    assert found.p == mcnemar(found.up, found.down)
    back = paired(second, first, resamples=50)
    assert (back.value, back.p, back.up, back.down) == (
        -found.value, found.p, found.down, found.up,
    )  # fmt: skip


def test_no_pairs_and_unequal_ones_are_refused() -> None:
    for first, second in (([], []), ([True], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="two samples of one length"):
            paired(first, second)


def test_holm_by_hand() -> None:
    # 0.005 · 4, 0.01 · 3, 0.03 · 2, and 0.04 raised to the one before it
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4]) == [0.4]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


@given(shares)
def test_holm_rejects_what_the_step_down_procedure_rejects(p_values: list[float]) -> None:
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for level in (0.01, 0.05, 0.3):
        rejected = set()
        for rank, i in enumerate(order):
            if p_values[i] * (len(p_values) - rank) > level:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(corrected) if p <= level} == rejected


@pytest.mark.parametrize("p_values", [[], [0.5, 1.2], [math.nan]])
def test_holm_refuses_what_is_no_probability(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one p-value"):
        holm(p_values)


@pytest.mark.parametrize(
    ("freedom", "t"),
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (5, 2.57058), (10, 2.22814), (30, 2.04227),
     (120, 1.97993), (1e6, 1.95997)],
)  # fmt: skip
def test_students_t_is_that_of_the_tables(freedom: float, t: float) -> None:
    assert t95(freedom) == pytest.approx(t, abs=6e-6 * t)


def test_students_t_refuses_less_than_one_degree() -> None:
    with pytest.raises(ValueError, match="at least 1 degree"):
        t95(0.9)


def test_one_seed_is_a_rate() -> None:
    found = over_seeds([[True, None, False, False]])
    assert (found.seeds, found.mean, found.sd) == (1, 1 / 3, None)
    assert (found.low, found.high) == wilson(1, 3)[2:]


def test_seeds_by_hand() -> None:
    # Rates ½ and ¾ of four prompts. Prompt means 1, ½, 1, 0: their variance s² = 11/48.
    found = over_seeds([[True, False, True, False], [True, True, True, False]])
    by_prompt, by_seed = Fraction(11, 48) / 4, Fraction(1, 32) / 2
    variance = by_prompt + by_seed
    freedom = float(variance**2 / (by_prompt**2 / 3 + by_seed**2 / 1))
    assert (found.mean, found.sd) == (0.625, pytest.approx(math.sqrt(1 / 32)))
    n, z, p = 0.625 * 0.375 / float(variance), t95(freedom), 0.625
    roots = np.roots([1 + z * z / n, -(2 * p + z * z / n), p * p])  # (p - x)² = z² x (1 - x) / n
    assert (found.low, found.high) == pytest.approx(sorted(roots))


def test_two_seeds_that_differ_say_almost_nothing() -> None:
    found = over_seeds([[True] * 80 + [False] * 20, [True] * 40 + [False] * 60])
    assert found.low < 0.05
    assert found.high > 0.95
    many = over_seeds([[True] * 80 + [False] * 20, [True] * 40 + [False] * 60] * 10)
    assert many.high - many.low < 0.25


def test_seeds_that_answer_alike_know_no_more_than_one() -> None:
    one = [True] * 30 + [False] * 70
    found = over_seeds([one, one, one])
    single = wilson(30, 100)
    assert found.sd == 0
    assert found.low <= single.low + 1e-4
    assert found.high >= single.high - 1e-4
    nothing = over_seeds([[False] * 50] * 3)
    assert (nothing.low, nothing.high) == wilson(0, 50)[2:]


def test_the_clustered_interval_covers() -> None:
    """Of seeds and prompts both drawn anew, about 95 % of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(300):
        ease = rng.normal(0, 1.5, size=60)
        luck = rng.normal(0, 0.5, size=4)
        answers = ease[None, :] + luck[:, None] + rng.logistic(0, 1, size=(4, 60)) > 0
        found = over_seeds(answers.tolist())
        held += found.low <= 0.5 <= found.high
    assert 0.92 <= held / 300 <= 0.995


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=5))
def test_the_clustered_interval_holds_the_mean(seeds: list[list[bool]]) -> None:
    found = over_seeds(seeds)
    assert found.mean == pytest.approx(statistics.mean(itertools.chain(*seeds)))
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize("seeds", [[], [[]], [[True], [True, False]], [[True], [None]]])
def test_seeds_without_answers_are_refused(seeds: list[list[bool | None]]) -> None:
    with pytest.raises(ValueError, match="seed"):
        over_seeds(seeds)


def test_kappa_by_hand() -> None:
    # Cohen's table: 20 both yes, 15 both no, 5 and 10 apart; a = .7, e = .5, kappa = .4
    first = ["y"] * 20 + ["n"] * 15 + ["y"] * 5 + ["n"] * 10
    second = ["y"] * 20 + ["n"] * 15 + ["n"] * 5 + ["y"] * 10
    found = cohen_kappa(first, second)
    assert (found.n, found.agree) == (50, 0.7)
    assert found.kappa == pytest.approx(0.4)


def test_kappa_without_spread_is_none() -> None:
    assert cohen_kappa(["safe"] * 9, ["safe"] * 9) == (9, 1.0, None)
    assert cohen_kappa(["safe"] * 9, ["safe"] * 8 + ["harmful"]).kappa == 0


def test_kappa_refuses_no_labels() -> None:
    with pytest.raises(ValueError, match="two raters"):
        cohen_kappa([], [])
