"""How well scores tell two classes apart: area under the curve, recall at a false-positive rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from anchortune.maths.stats import Z95, wilson


class Area(NamedTuple):
    """The area under the ROC curve with its 95 % interval.

    Attributes:
        value: the chance that a positive scores above a negative, ties counting half.
        low: of the interval.
        high: of the interval.
        positives: how many.
        negatives: how many.
    """

    value: float
    low: float
    high: float
    positives: int
    negatives: int


class Recall(NamedTuple):
    """The share of positives found at a share of false positives, with its 95 % interval.

    Attributes:
        value: positives at or above the threshold, as a share.
        low: of the interval.
        high: of the interval.
        threshold: the lowest with no more than the wanted share of false positives; infinity where
            even the highest score is a negative's too often.
        false_positive_rate: the share there is at that threshold.
        positives: how many.
        negatives: how many.
    """

    value: float
    low: float
    high: float
    threshold: float
    false_positive_rate: float
    positives: int
    negatives: int


def auc(scores: Sequence[float], labels: Sequence[bool]) -> Area:
    """The area under the ROC curve (the Mann-Whitney statistic over the pairs).

    The interval is DeLong's (1988) on the logit scale. Where every positive is above every
    negative, or the reverse, that has no width; there it is Wilson's of the smaller class.

    Args:
        scores: higher speaks for positive.
        labels: whether positive.

    Raises:
        ValueError: a class is missing, a score is not finite, or the lengths differ.
    """
    positive, negative = _split(scores, labels)
    m, n = len(positive), len(negative)
    everything = _midranks(np.concatenate([positive, negative]))
    value = float((everything[:m].sum() - m * (m + 1) / 2) / (m * n))
    if value in (0.0, 1.0) or min(m, n) < 2:
        smaller = min(m, n)
        interval = wilson(round(value * smaller), smaller)
        return Area(value, min(value, interval.low), max(value, interval.high), m, n)
    above = (everything[:m] - _midranks(positive)) / n
    below = 1 - (everything[m:] - _midranks(negative)) / m
    error = math.sqrt(above.var(ddof=1) / m + below.var(ddof=1) / n)
    centre = math.log(value / (1 - value))
    half = Z95 * error / (value * (1 - value))
    low, high = (1 / (1 + math.exp(-x)) for x in (centre - half, centre + half))
    return Area(value, low, high, m, n)


def recall_at(
    scores: Sequence[float],
    labels: Sequence[bool],
    false_positive_rate: float = 0.05,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Recall:
    """The share of positives found where at most a given share of negatives is flagged.

    The interval is a percentile bootstrap, both classes resampled apart and the threshold chosen
    anew each time. Where all positives are found, or none, that has no width; there it is widened
    to Wilson's.

    Args:
        scores: higher speaks for positive.
        labels: whether positive.
        false_positive_rate: the most negatives that may be flagged, as a share below 1.
        resamples: of the bootstrap.
        seed: of the same.

    Raises:
        ValueError: a class is missing, a score is not finite, the lengths differ, or the rate is
            not in [0, 1).
    """
    if not 0 <= false_positive_rate < 1:
        raise ValueError(f"a false-positive rate is in [0, 1), not {false_positive_rate}")
    positive, negative = _split(scores, labels)
    threshold = _threshold(positive, negative, false_positive_rate)
    value = float((positive >= threshold).mean())
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        ours = draw.choice(positive, len(positive))
        theirs = draw.choice(negative, len(negative))
        found.append((ours >= _threshold(ours, theirs, false_positive_rate)).mean())
    low, high = np.percentile(found, [2.5, 97.5])
    if value in (0.0, 1.0):
        score = wilson(value * len(positive), len(positive))
        low, high = min(low, score.low), max(high, score.high)
    return Recall(
        value,
        min(value, float(low)),
        max(value, float(high)),
        threshold,
        float((negative >= threshold).mean()),
        len(positive),
        len(negative),
    )


def _threshold(positive: Any, negative: Any, rate: float) -> float:
    """The lowest score at or above which at most ``rate`` of the negatives lie."""
    allowed = math.floor(rate * len(negative) + 1e-9)
    ordered = np.sort(negative)
    # The highest negative that must not be flagged: whatever is above it may.
    bound = ordered[len(ordered) - allowed - 1]
    above = [values[values > bound] for values in (positive, negative)]
    candidates = [float(values.min()) for values in above if len(values)]
    return min(candidates) if candidates else math.inf


def _split(scores: Sequence[float], labels: Sequence[bool]) -> tuple[Any, Any]:
    """(scores of positives, scores of negatives), as float64."""
    if len(scores) != len(labels):
        raise ValueError(f"{len(scores)} scores cannot be held against {len(labels)} labels")
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    if truth.all() or not truth.any():
        raise ValueError("both classes are needed, and there is only one")
    return values[truth], values[~truth]


def _midranks(values: Any) -> Any:
    """The rank of each value from 1, ties sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[inverse]
