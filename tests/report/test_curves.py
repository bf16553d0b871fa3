from __future__ import annotations

import math
from typing import Any

from anchortune.report.curves import HEIGHT, WIDTH, charts


def rows(key: str, values: list[Any]) -> list[dict[str, Any]]:
    return [{"step": step, key: value} for step, value in enumerate(values, start=1)]


def places(piece: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in piece.split())]


def test_a_line_runs_from_edge_to_edge_and_stands_on_zero() -> None:
    [chart] = charts({"m": rows("loss", [4.0, 1.0, 2.0])})
    [line] = chart.lines
    assert places(line.pieces[0]) == [(0, 0), (WIDTH / 2, 0.75 * HEIGHT), (WIDTH, HEIGHT / 2)]
    assert (chart.top, chart.bottom, chart.first, chart.last) == ("4", "0", "1", "3")
    assert line.told == "4 to 2"


def test_models_share_one_scale() -> None:
    [chart] = charts({"a": rows("loss", [4.0, 2.0]), "b": rows("loss", [8.0])})
    assert places(chart.lines[0].pieces[0])[0] == (0, HEIGHT / 2)
    assert places(chart.lines[1].pieces[0]) == [(0, 0)]


def test_orders_of_magnitude_take_a_logarithm() -> None:
    [chart] = charts({"m": rows("penalty", [1e-4, 1e-2, 1.0])})
    assert chart.log
    assert [y for _, y in places(chart.lines[0].pieces[0])] == [HEIGHT, HEIGHT / 2, 0]


def test_a_value_that_is_not_there_breaks_the_line() -> None:
    [chart] = charts({"m": rows("loss", [1.0, None, 2.0, math.nan, True, "x", 3.0, 3.0])})
    assert [len(places(piece)) for piece in chart.lines[0].pieces] == [1, 1, 2]


def test_what_is_looked_at_every_few_steps_is_one_line() -> None:
    looked = [
        {"step": step, "loss": 1.0} | ({"probe_fall": step / 10} if step % 3 == 0 else {})
        for step in range(1, 10)
    ]
    chart = charts({"m": looked})[1]
    assert chart.title == "Probe's fall, nats"
    assert [len(places(piece)) for piece in chart.lines[0].pieces] == [3]


def test_only_what_was_logged_is_drawn() -> None:
    assert charts({}) == []
    assert charts({"m": [{"loss": 1.0}], "o": rows("lam", [None])}) == []
    found = charts({"m": rows("lam", [1.0, 2.0]), "o": rows("loss", [1.0])})
    assert [(chart.title, len(chart.lines)) for chart in found] == [("Loss", 1), ("λ", 1)]


def test_a_long_run_is_thinned_to_its_last_step() -> None:
    [chart] = charts({"m": rows("loss", [float(at) for at in range(10_000)])})
    found = places(chart.lines[0].pieces[0])
    assert len(found) <= 401
    assert found[-1] == (WIDTH, 0)
