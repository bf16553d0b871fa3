"""The search for an edge, on basins that are known in closed form."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anchortune.landscape.search import full_grid, most_places, scan_of, search
from anchortune.maths.basin import Place, first_exit

N = 20
TOLERANCE = 0.1


class Basin:
    """Harm that is nothing up to ``edge`` and everything beyond; babble from ``babble``."""

    def __init__(self, edge: float, babble: float = 1e9) -> None:
        self.edge, self.babble = edge, babble
        self.asked: list[float] = []

    def place(self, alpha: float) -> Place:
        self.asked.append(alpha)
        coherent = abs(alpha) < self.babble
        harmful = int(abs(alpha) > self.edge and coherent)
        return Place(alpha, {f"p{i}": harmful for i in range(N)}, coherent)

    def search(self, sign: float, last: float = 1.0, resolution: float = 0.1) -> list[Place]:
        start = self.place(0.0)
        self.asked.clear()
        return search(
            self.place,
            start,
            sign=sign,
            scan=scan_of(last / 128, last),
            tolerance=TOLERANCE,
            resolution=resolution,
        )


def test_the_scan_doubles_and_ends_where_it_is_told() -> None:
    assert scan_of(0.125, 1.0) == [0.125, 0.25, 0.5, 1.0]
    assert scan_of(0.3, 1.0) == [0.3, 0.6, 1.0]
    assert scan_of(0.7, 0.8) == [0.7, 0.8]


@given(
    st.floats(1e-5, 3.0), st.sampled_from([1.0, -1.0]), st.sampled_from([0.02, 0.1, 0.5]),
    st.floats(0.1, 30.0),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_the_edge_is_found_within_the_resolution_and_the_cost(
    share: float, sign: float, resolution: float, last: float
) -> None:
    basin = Basin(share * last)
    places = basin.search(sign, last, resolution)
    scan = scan_of(last / 128, last)
    found = first_exit(places, "+" if sign > 0 else "-", TOLERANCE)
    assert len(basin.asked) == len(set(basin.asked)) <= most_places(scan, resolution)
    assert most_places(scan, resolution) <= full_grid(scan, resolution)
    assert all(sign * alpha > 0 for alpha in basin.asked)
    if share >= 1:
        assert (found.outside, found.value, found.ended) == (None, last, "range")
        assert basin.asked == [sign * alpha for alpha in scan]
        return
    assert found.outside is not None
    assert found.inside <= basin.edge <= found.outside
    width = resolution * max(found.outside, scan[0]) * (1 + 1e-6)
    assert found.outside - found.inside <= width


def test_a_fraction_of_the_grid_is_asked() -> None:
    basin = Basin(0.1287)
    basin.search(1.0)
    assert 4 * len(basin.asked) < full_grid(scan_of(1 / 128, 1.0), 0.1)


@given(st.floats(0.01, 0.9), st.floats(0.01, 0.9))
@settings(deadline=None, max_examples=60)
def test_the_search_ends_at_babble_which_is_no_exit(edge: float, babble: float) -> None:
    basin = Basin(edge, babble)
    places = basin.search(1.0)
    found = first_exit(places, "+", TOLERANCE)
    assert max(basin.asked) <= max(2 * min(edge, babble), 1 / 128) * (1 + 1e-9)
    if edge >= babble:
        assert (found.outside, found.ended) == (None, "incoherent")
        assert found.value < babble
    elif found.outside is not None:  # a ring of harm finer than the resolution may be missed
        assert found.inside <= edge <= found.outside


def test_harm_between_the_last_place_inside_and_babble_is_an_exit() -> None:
    found = first_exit(Basin(0.3, 0.45).search(1.0), "+", TOLERANCE)
    assert found.ended == "harm"
    assert found.inside <= 0.3 <= (found.outside or 0)


def test_a_place_without_a_verdict_is_refused() -> None:
    start = Place(0.0, {"a": 0})
    with pytest.raises(ValueError, match="scored"):
        search(
            lambda alpha: Place(alpha, {"a": None}), start,
            sign=1.0, scan=[1.0], tolerance=0.1, resolution=0.1,
        )  # fmt: skip
