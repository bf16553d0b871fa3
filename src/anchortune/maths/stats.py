"""Rates, their differences on the same prompts, several seeds, agreement: each with its interval.

Every function refuses an empty sample. Intervals are 95 % ones.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054


def share_of(share: float, whole: int) -> int:
    """``share · whole`` of the decimal number as it is written, rounded, halves up."""
    return int((Decimal(str(share)) * whole).to_integral_value(ROUND_HALF_UP))


class Rate(NamedTuple):
    """A share of n with its 95 % interval; all fractions in [0, 1]."""

    value: float
    n: int
    low: float
    high: float


class Paired(NamedTuple):
    """A rate minus another's on the same n prompts.

    Attributes:
        value: ``(up - down) / n``, in [-1, 1].
        low: of the 95 % interval.
        high: of the same.
        p: exact McNemar, two-sided.
        n: pairs.
        up: pairs in which only the first is true.
        down: pairs in which only the second is true.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    up: int
    down: int


class Seeds(NamedTuple):
    """The rates of several seeds on the same prompts.

    Attributes:
        seeds: how many.
        mean: of the seeds' rates.
        sd: their sample standard deviation; None with one seed.
        low: of the 95 % interval of the mean, for another draw of seeds and of prompts.
        high: of the same.
    """

    seeds: int
    mean: float
    sd: float | None
    low: float
    high: float


class Kappa(NamedTuple):
    """How two raters agree: the share of equal labels, and Cohen's kappa (None: no spread)."""

    n: int
    agree: float
    kappa: float | None


def wilson(successes: float, n: int, z: float = Z95) -> Rate:
    """The rate ``successes / n`` with Wilson's score interval (E. B. Wilson, 1927).

    Args:
        successes: how many of n; a tie may count as half of one.
        n: how many in all, at least 1.
        z: the normal quantile; the default gives 95 %.

    Raises:
        ValueError: n is below 1, or successes outside [0, n].
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1, not {successes} of {n}")
    share = successes / n
    return Rate(share, n, *_score_interval(share, n, z))


def _score_interval(share: float, n: float, z: float) -> tuple[float, float]:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def mcnemar(up: int, down: int) -> float:
    """The exact two-sided p of McNemar's test: are both kinds of disagreement as frequent?

    Twice the smaller tail of a binomial of ``up + down`` trials with probability ½, at most 1
    (Q. McNemar, 1947). It is 1 where no pair disagrees.

    Raises:
        ValueError: a count is negative.
    """
    if up < 0 or down < 0:
        raise ValueError(f"counts of disagreements cannot be negative: {up}, {down}")
    n = up + down
    term = tail = 1
    for k in range(1, min(up, down) + 1):
        term = term * (n - k + 1) // k  # n over k, in whole numbers
        tail += term
    share: float = 2 * tail / 2**n
    return min(1.0, share)


def paired(
    first: Sequence[bool], second: Sequence[bool], *, resamples: int = 2000, seed: int = 0
) -> Paired:
    """The rate of ``first`` minus that of ``second``, item by item the same prompt.

    The interval is the bootstrap's (``bootstrap_difference``), widened to Tango's score interval
    (``tango``) on the side where that reaches further: where few pairs disagree the bootstrap is
    too narrow, and where none does it has no width at all, however few prompts there are.

    Args:
        first: whether each prompt counts, for the model.
        second: the same for what it is compared with.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no pairs, or sequences of two lengths.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"pairs need two samples of one length, not {len(first)}, {len(second)}")
    n = len(first)
    up = sum(a and not b for a, b in zip(first, second, strict=True))
    down = sum(b and not a for a, b in zip(first, second, strict=True))
    drawn = bootstrap_difference(up, down, n, resamples, np.random.default_rng(seed))
    score = tango(up, down, n)
    low, high = min(drawn[0], score[0]), max(drawn[1], score[1])
    return Paired((up - down) / n, low, high, mcnemar(up, down), n, up, down)


def bootstrap_difference(
    up: int, down: int, n: int, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The percentile bootstrap's interval of ``(up - down) / n`` over resampled prompts.

    n prompts drawn with replacement hold ``up``, ``down`` and equal pairs in multinomial numbers,
    so these are drawn rather than the prompts (B. Efron, 1979).

    Raises:
        ValueError: n or resamples below 1, or more disagreements than pairs.
    """
    _check_pairs(up, down, n)
    if resamples < 1:
        raise ValueError(f"a bootstrap needs at least 1 resample, not {resamples}")
    drawn = rng.multinomial(n, [up / n, down / n, (n - up - down) / n], size=resamples)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.025, 0.975])
    return float(low), float(high)


def tango(up: float, down: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Tango's score interval of a paired difference ``(up - down) / n`` (T. Tango, 1998).

    Every difference d that a score test does not reject: ``|up - down - n d|`` is at most z times
    its standard error where d is true. It has width where no pair disagrees: z² / (n + z²) on
    either side, as Wilson's has for a rate of 0. Counts need not be whole: pairs that are not
    independent tell as much as a smaller, effective number of them.

    Raises:
        ValueError: n below 1, or more disagreements than pairs.
    """
    _check_pairs(up, down, n)

    def inside(d: float) -> bool:
        # The likeliest share of ``down`` pairs where the difference is d: root of a q² + b q + c.
        a, b, c = 2 * n, -up - down + (2 * n - up + down) * d, -down * d * (1 - d)
        q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
        variance = max(0.0, n * (2 * q + d * (1 - d)))
        return abs(up - down - n * d) <= z * math.sqrt(variance)

    value = (up - down) / n
    return -_last(lambda d: inside(-d), -value), _last(inside, value)


def _last(inside: Callable[[float], bool], start: float, end: float = 1.0) -> float:
    """The largest number in [start, end] up to which ``inside`` holds, by bisection."""
    low, high = start, end
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) else (low, middle)
    return low


def _check_pairs(up: float, down: float, n: float) -> None:
    if n < 1 or min(up, down) < 0 or up + down > n * (1 + 1e-12):
        raise ValueError(f"{up} and {down} disagreements do not fit {n} pairs")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being many, in the order given (S. Holm's step-down, 1979).

    The k-th smallest of m is multiplied by m - k + 1; none may be smaller than one before it.

    Raises:
        ValueError: there are none, or one is no probability.
    """
    if not p_values or not all(0 <= p <= 1 for p in p_values):
        raise ValueError("Holm's correction needs at least one p-value, each from 0 to 1")
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected


def over_seeds(seeds: Sequence[Sequence[float | None]]) -> Seeds:
    """The mean rate of several seeds asked the same prompts, and a clustered interval of it.

    Two things would come out otherwise another time: the seeds and the prompts. The variance of
    the mean is the sum of both, as in a crossed design: that of the seeds' rates over their
    number, and that of the mean clustered by prompt (all answers to one prompt are one cluster;
    E. Miller, arXiv 2411.00640). Its degrees of freedom are Satterthwaite's (1946): two seeds
    that differ much leave hardly more than one, and so an interval that says almost nothing. The
    interval is Wilson's with the effective sample size of that variance and Student's t for z
    (N. Dean and M. Pagano, 2015), so it stays in [0, 1] and has width at a rate of 0.

    Args:
        seeds: for each seed, for each prompt in one order, what it counts, from 0 to 1; None:
            unscored.

    Raises:
        ValueError: no seeds, sequences of unequal length, or a seed without a scored prompt.
    """
    if not seeds or len({len(seed) for seed in seeds}) != 1:
        raise ValueError("several seeds need answers to the same prompts, at least one of each")
    scored = [[float(x) for x in seed if x is not None] for seed in seeds]
    if not all(scored):
        raise ValueError("a seed has no scored prompt")
    rates = [sum(values) / len(values) for values in scored]
    k, mean = len(seeds), sum(rates) / len(rates)
    if k == 1:
        rate = wilson(sum(scored[0]), len(scored[0]))
        return Seeds(1, rate.value, None, rate.low, rate.high)
    sd = math.sqrt(sum((rate - mean) ** 2 for rate in rates) / (k - 1))
    pulls = []  # of each prompt on the mean
    for column in zip(*seeds, strict=True):
        parts = [
            (x - rate) / (k * len(values))
            for x, rate, values in zip(column, rates, scored, strict=True)
            if x is not None
        ]
        if parts:
            pulls.append(sum(parts))
    prompts = len(pulls)
    by_prompt = sum(u * u for u in pulls) * prompts / (prompts - 1) if prompts > 1 else 0.0
    by_seed = sd * sd / k
    variance = by_prompt + by_seed
    if variance == 0:  # every answer the same: no more is known than one seed tells
        return Seeds(k, mean, sd, *_score_interval(mean, prompts, Z95))
    freedom = variance**2 / (
        by_seed**2 / (k - 1) + (by_prompt**2 / (prompts - 1) if prompts > 1 else 0.0)
    )
    most = sum(len(values) for values in scored)
    effective = min(float(most), mean * (1 - mean) / variance)
    return Seeds(k, mean, sd, *_score_interval(mean, effective, t95(freedom)))


def t95(freedom: float) -> float:
    """Student's t at 0.975 for ``freedom`` degrees of freedom, at least 1; to five digits.

    With t = √f · tan θ the density is cos^(f-1) θ over a constant, which is integrated by
    Simpson's rule and met by bisection.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {freedom}")
    log_beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    wanted = 0.475 * math.exp(log_beta)
    weights = np.full(401, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0

    def area(angle: float) -> float:
        density = np.cos(np.linspace(0.0, angle, 401)) ** (freedom - 1)
        return float(density @ weights) * angle / 1200

    root = math.sqrt(freedom)
    # t is 12.7 with one degree of freedom, and falls.
    angle = _last(lambda x: area(x) <= wanted, 0.0, math.atan(13 / root))
    return root * math.tan(angle)


def cohen_kappa(first: Sequence[Hashable], second: Sequence[Hashable]) -> Kappa:
    """The agreement of two raters' labels, beyond chance (J. Cohen, 1960).

    ``(a - e) / (1 - e)`` with a the share of equal labels, e the share expected of two raters who
    throw dice with their own frequencies; None where both always say the same one thing.

    Raises:
        ValueError: no labels, or sequences of two lengths.
    """
    if not first or len(first) != len(second):
        raise ValueError(
            f"agreement needs two raters of one length, not {len(first)}, {len(second)}"
        )
    n = len(first)
    agree = sum(a == b for a, b in zip(first, second, strict=True)) / n
    ours, theirs = Counter(first), Counter(second)
    chance = sum(count * theirs[label] for label, count in ours.items()) / (n * n)
    return Kappa(n, agree, None if chance == 1 else (agree - chance) / (1 - chance))
