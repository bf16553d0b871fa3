"""The difference in means and what it tells apart, against loops in plain Python."""

from __future__ import annotations

import pytest
import torch

from anchortune.maths.ranking import auc
from anchortune.maths.separation import (
    Directions,
    cosines,
    difference_in_means,
    held_out_area,
)


def groups(gap: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    positive = torch.randn(2, 7, 5, generator=generator)
    negative = torch.randn(2, 8, 5, generator=generator)
    positive[:, :, 0] += gap
    return positive, negative


def test_the_directions_are_differences_of_means_of_all_and_of_each_half() -> None:
    positive, negative = groups()
    found = difference_in_means(positive, negative)
    assert found.whole.dtype == torch.float64
    for layer in (0, 1):
        wanted = sum(positive[layer].double()) / 7 - sum(negative[layer].double()) / 8
        torch.testing.assert_close(found.whole[layer], wanted)
        odd = positive[layer, [1, 3, 5]].double().mean(0)
        odd = odd - negative[layer, [1, 3, 5, 7]].double().mean(0)
        torch.testing.assert_close(found.halves[1, layer], odd)


def test_the_area_is_that_of_the_held_out_half() -> None:
    positive, negative = groups()
    directions = difference_in_means(positive, negative)
    found = held_out_area(directions, positive, negative)
    for layer in (0, 1):
        wanted = []
        for half in (0, 1):
            along = directions.halves[half, layer]
            scores, labels = [], []
            for group, label in ((positive, True), (negative, False)):
                held = group[layer, 1 - half :: 2].double()
                scores += (held @ along).tolist()
                labels += [label] * len(held)
            wanted.append(auc(scores, labels).value)
        assert found[layer].item() == pytest.approx(sum(wanted) / 2)


def test_a_direction_that_fits_its_own_vectors_alone_tells_nothing_held_out() -> None:
    """In many dimensions noise is told apart perfectly by its own means, held out by chance."""
    generator = torch.Generator().manual_seed(0)
    positive, negative = (torch.randn(1, 40, 4000, generator=generator) for _ in range(2))
    directions = difference_in_means(positive, negative)
    own = Directions(directions.whole, directions.halves.flip(0))  # asked about themselves
    assert held_out_area(own, positive, negative).item() == 1.0
    assert abs(held_out_area(directions, positive, negative).item() - 0.5) < 0.15


def test_ties_count_half_and_no_number_counts_as_chance() -> None:
    same = torch.ones(1, 4, 3)
    assert held_out_area(difference_in_means(same, same), same, same).item() == 0.5
    broken = torch.full((1, 4, 3), torch.nan)
    assert held_out_area(difference_in_means(broken, same), broken, same).item() == 0.5


def test_cosines_by_row() -> None:
    one = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    other = torch.tensor([[0.0, 2.0], [6.0, 8.0], [1.0, 0.0]])
    found = cosines(one, other).tolist()
    assert found[:2] == pytest.approx([0.0, 1.0])
    assert found[2] != found[2]


def test_a_group_of_one_vector_is_refused() -> None:
    one, two = torch.ones(1, 1, 3), torch.ones(1, 2, 3)
    with pytest.raises(ValueError, match="two vectors"):
        difference_in_means(one, two)
