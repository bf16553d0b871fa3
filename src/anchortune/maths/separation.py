"""How two groups of vectors lie apart: the difference of their means, and what it tells apart.

The refusal direction of a layer is the difference of the mean hidden states of harmful and harmless
prompts (Arditi et al., arXiv 2406.11717). All functions take a stack of layers at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Directions(NamedTuple):
    """Differences of means, in float64, each (layers, d).

    Attributes:
        whole: of all vectors.
        halves: (2, layers, d): of the vectors at even and at odd places.
    """

    whole: Tensor
    halves: Tensor


def difference_in_means(positive: Tensor, negative: Tensor) -> Directions:
    """``mean(positive) - mean(negative)``, of all vectors and of each half of them.

    Args:
        positive: (layers, vectors, d), two vectors at least.
        negative: (layers, vectors, d), two vectors at least.

    Raises:
        ValueError: a half would be empty.
    """
    if positive.shape[1] < 2 or negative.shape[1] < 2:
        raise ValueError("both groups need two vectors, one a half")
    one, other = positive.double(), negative.double()
    halves = [one[:, start::2].mean(1) - other[:, start::2].mean(1) for start in (0, 1)]
    return Directions(one.mean(1) - other.mean(1), torch.stack(halves))


def held_out_area(directions: Directions, positive: Tensor, negative: Tensor) -> Tensor:
    """The area under the ROC curve of ``⟨vector, direction⟩``, for each layer: (layers,).

    Each half's direction is asked about the vectors of the other half, so that no vector is told
    by a direction that it is in; the two areas are averaged. 0.5 is chance, ties count half.

    Args:
        directions: of these vectors or of others at the same places.
        positive: (layers, vectors, d).
        negative: (layers, vectors, d).
    """
    areas = []
    for half in (0, 1):
        along = directions.halves[half].unsqueeze(-1)
        high, low = (
            (group[:, 1 - half :: 2].double() @ along).squeeze(-1) for group in (positive, negative)
        )
        gaps = high.unsqueeze(-1) - low.unsqueeze(-2)
        # nan counts as chance, not as a vector in its right place
        areas.append(torch.where(gaps.isnan(), 0.5, (gaps.sign() + 1) / 2).mean((-2, -1)))
    return torch.stack(areas).mean(0)


def cosines(one: Tensor, other: Tensor) -> Tensor:
    """The cosine of each pair of rows, (layers,); nan where one of them is zero."""
    found: Tensor = (one * other).sum(-1) / (one.norm(dim=-1) * other.norm(dim=-1))
    return found
