"""Which layers are frozen, and what cannot be."""

from __future__ import annotations

import pytest

from anchortune.defences import SafeLayers
from anchortune.errors import TrainingError


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(32, 5, 12), (30, 5, 12), (24, 4, 9), (42, 7, 16), (2, 0, 0)]
)
def test_unset_the_block_follows_the_depth(layers: int, first: int, last: int) -> None:
    frozen = SafeLayers().frozen(layers)
    assert (frozen[0], frozen[-1]) == (first, last)
    trained = SafeLayers().trained_layers(layers)
    assert trained == [n for n in range(layers) if not first <= n <= last]


def test_both_ends_can_be_set() -> None:
    assert SafeLayers(first=1, last=2).trained_layers(5) == [0, 3, 4]
    assert SafeLayers(first=3).trained_layers(5) == [0, 1, 2, 4]
    assert SafeLayers(last=1).trained_layers(5) == [2, 3, 4]
    assert SafeLayers(first=4, last=4).trained_layers(5) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"first": 3, "last": 5}, r"layers 3 to 5 .* has 5 \(0 to 4\)"),
        ({"first": 5}, r"layers 5 to 5 .* has 5 \(0 to 4\)"),
        ({"first": 3, "last": 1}, r"first \(3\) lies above last \(1\)"),
        ({"first": 0, "last": 4}, "nothing would be trained"),
    ],
)
def test_a_block_that_does_not_fit_is_told(settings: dict[str, int], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        SafeLayers(**settings).trained_layers(5)


def test_a_model_of_one_layer_has_none_to_spare() -> None:
    with pytest.raises(TrainingError, match="nothing would be trained"):
        SafeLayers().trained_layers(1)
