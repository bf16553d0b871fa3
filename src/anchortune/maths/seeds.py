"""Two methods held against each other at several seeds, on the same prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from anchortune.maths.stats import Z95, paired, t95, tango


class PairedSeeds(NamedTuple):
    """A rate minus another's, over the same seeds and prompts.

    Attributes:
        value: the mean over seeds of the difference, in [-1, 1].
        low: of the 95 % interval, for another draw of seeds and of prompts.
        high: of the same.
        p: two-sided, of no difference.
        seeds: how many.
        n: different prompts.
        pairs: (seed, prompt) pairs.
        up: pairs in which only the first is true.
        down: pairs in which only the second is true.
    """

    value: float
    low: float
    high: float
    p: float
    seeds: int
    n: int
    pairs: int
    up: int
    down: int


def paired_over_seeds(
    differences: Sequence[Sequence[int | None]], *, resamples: int = 2000, seed: int = 0
) -> PairedSeeds:
    """The mean difference of two methods that were run with the same seeds on the same prompts.

    One seed is what ``paired`` gives, exact McNemar for p. With several the variance of the mean
    is, as in ``over_seeds``, that of the seeds' differences over their number plus that of the
    mean clustered by prompt, with Satterthwaite's degrees of freedom. From it follow the number
    of independent pairs that would tell as much, Tango's score interval at that number with
    Student's t for z, and p by the same score test. The interval is widened to the percentile
    bootstrap over prompts (a prompt is drawn with its pairs of all seeds) where that reaches
    further.

    Args:
        differences: for each seed, for each prompt in one order: 1 where only the first method
            is true, -1 where only the second is, 0 where they agree, None where there is no pair.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: no seeds, sequences of unequal length, or a seed without a pair.
    """
    if not differences or len({len(row) for row in differences}) != 1:
        raise ValueError("pairs over seeds need the same prompts at each seed, and one seed")
    table = np.array([[math.nan if x is None else x for x in row] for row in differences])
    there = ~np.isnan(table)
    if not there.any(axis=1).all():
        raise ValueError("a seed has no pair")
    table, there = table[:, there.any(axis=0)], there[:, there.any(axis=0)]
    k, n = table.shape
    pairs, up, down = int(there.sum()), int((table == 1).sum()), int((table == -1).sum())
    if k == 1:
        rises_in, falls_in = (table[0] == 1).tolist(), (table[0] == -1).tolist()
        one = paired(rises_in, falls_in, resamples=resamples, seed=seed)
        return PairedSeeds(one.value, one.low, one.high, one.p, 1, n, pairs, up, down)
    sizes = there.sum(axis=1)
    filled = np.where(there, table, 0.0)
    means = filled.sum(axis=1) / sizes
    value = float(means.mean())
    # The shares of both kinds of disagreement, each seed with the same weight.
    rises = float(((table == 1).sum(axis=1) / sizes).mean())
    falls = float(((table == -1).sum(axis=1) / sizes).mean())
    pulls = (np.where(there, table - means[:, None], 0.0) / (k * sizes[:, None])).sum(axis=0)
    by_prompt = float(pulls @ pulls) * n / (n - 1) if n > 1 else 0.0
    by_seed = float(means.var(ddof=1)) / k
    variance = by_prompt + by_seed
    if variance < 1e-18:  # every seed and prompt the same: no more is known than one seed tells
        effective, quantile, freedom = float(n), Z95, math.inf
    else:
        spread = by_seed**2 / (k - 1) + (by_prompt**2 / (n - 1) if n > 1 else 0.0)
        freedom = max(1.0, variance**2 / spread)
        effective = max(1.0, min(float(pairs), (rises + falls - value**2) / variance))
        quantile = t95(freedom)
    low, high = tango(rises * effective, falls * effective, effective, quantile)
    drawn = _bootstrap(filled, there, resamples, np.random.default_rng(seed))
    score = value * math.sqrt(effective / (rises + falls)) if rises + falls else 0.0
    return PairedSeeds(
        value,
        min(low, drawn[0]),
        max(high, drawn[1]),
        student_p(score, freedom),
        k,
        n,
        pairs,
        up,
        down,
    )


def _bootstrap(
    filled: np.ndarray, there: np.ndarray, resamples: int, rng: np.random.Generator
) -> tuple[float, float]:
    """The percentile interval of the mean over seeds, over prompts drawn with replacement."""
    n = filled.shape[1]
    drawn = rng.multinomial(n, np.full(n, 1 / n), size=resamples)
    sizes = drawn @ there.T
    sums = drawn @ filled.T
    whole = (sizes > 0).all(axis=1)  # a seed with few pairs may have been missed
    low, high = np.quantile((sums[whole] / sizes[whole]).mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def student_p(t: float, freedom: float) -> float:
    """The two-sided p of Student's t; of a normal deviate where ``freedom`` is infinite.

    With t = √f · tan θ the density is cos^(f-1) θ over a constant, integrated by Simpson's rule.

    Raises:
        ValueError: fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs at least 1 degree of freedom, not {freedom}")
    t = abs(t)
    if freedom > 1e6:
        return math.erfc(t / math.sqrt(2))
    if freedom > 30:
        t = min(t, 40.0)  # beyond it p is 0 to any digit, and the grid would grow coarse
    log_beta = math.lgamma(0.5) + math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)
    angle = math.atan(t / math.sqrt(freedom))
    weights = np.full(2001, 2.0)
    weights[1::2] = 4.0
    weights[[0, -1]] = 1.0
    density = np.cos(np.linspace(0.0, angle, 2001)) ** (freedom - 1)
    area = float(density @ weights) * angle / 6000
    return min(1.0, max(0.0, 1 - 2 * area * math.exp(-log_beta)))
