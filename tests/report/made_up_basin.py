"""A basin nobody measured, of plausible shape: a wide aligned direction, a narrow harmful one."""

from __future__ import annotations

import math
from collections.abc import Callable

from anchortune.report.basin import Basin, Count, Curve, Epl, Map, Point, Ratio, Trajectory

N = 100


def _point(alpha: float, harm: float, coherent: float, accuracy: float) -> Point:
    return Point(
        alpha=alpha,
        harm=Count(count=round(N * harm), of=N),
        coherent=Count(count=round(N * coherent), of=N),
        tasks={"sst2": Count(count=round(200 * accuracy), of=200)},
        items={f"p{n}": 1 if n < round(N * harm) else 0 for n in range(N)},
    )


def _curve(
    direction: str, ends: tuple[float, float], edges: tuple[float, float], draw: int | None = None
) -> Curve:
    points = []
    for step in range(-6, 7):
        way = 0 if step < 0 else 1
        alpha = ends[way] * abs(step) / 6
        over = abs(alpha) / edges[way]
        babble = 1 / (1 + math.exp(-6 * (over - 2.2)))
        harm = (0.04 + 0.8 / (1 + math.exp(-5 * (over - 1.35)))) * (1 - babble)
        points.append(_point(alpha, harm, 1 - babble, 0.88 - 0.38 * min(1, over / 2.4)))
    return Curve(direction=direction, draw=draw, points=points)


def _epl(direction: str, side: str, value: float, **other: object) -> Epl:
    kept = {
        "low": 0.88 * value, "high": 1.1 * value, "inside": 0.97 * value, "outside": 1.02 * value,
        "censored": 0, "draws": 1, "ended": "harm",
    }  # fmt: skip
    return Epl.model_validate({"direction": direction, "side": side, "value": value} | kept | other)


def _square(size: int, harm: Callable[[float, float], float]) -> list[Point]:
    half = size // 2
    places = [
        (0.5 * column / half, 0.08 * row / half)
        for row in range(-half, half + 1)
        for column in range(-half, half + 1)
    ]
    return [
        Point(
            alpha=(x, y),
            harm=Count(count=round(N * harm(x, y)), of=N),
            coherent=Count(count=10 if math.hypot(x / 0.5, y / 0.08) > 1.25 else 97, of=N),
        )
        for x, y in places
    ]


def basin(*, small_paths: bool = False, paths: bool = True, scale: float = 1.0) -> Basin:
    """The whole of it."""
    reach = 0.05 if small_paths else 1.0
    trajectories = [
        Trajectory(
            label=label,
            steps=[0, 50, 100, 150, 200],
            x=[reach * scale * dx * t / 4 for t in range(5)],
            y=[reach * scale * dy * (t / 4) ** 0.8 for t in range(5)],
            off_plane=[0.0, 0.9, 0.93, 0.95, off],
        )
        for label, dx, dy, off in (
            ("sft", -0.12, 0.07, 0.96), ("asft λ=1", 0.1, 0.012, 0.98),
            ("safe-lora", -0.05, 0.04, 0.97),
        )
    ]  # fmt: skip
    plane = Map(
        x="aligned",
        y="harmful",
        cosine=-0.0031,
        points=_square(
            9, lambda x, y: 0.04 + 0.85 / (1 + math.exp(-7 * (abs(y) / 0.05 - x / 0.4 - 0.9)))
        ),
        trajectories=trajectories if paths else [],
    )
    return Basin(
        model="smollm2-135m-instruct",
        modules={"aligned": 210, "harmful": 60, "random": 210, "sft:off": 60},
        scale="layer",
        tolerance=0.1,
        incoherent=0.5,
        alpha_max=1.0,
        judge="builtin",
        set="advbench",
        curves=[
            _curve("aligned", (-0.5, 1.0), (0.16, 0.9)),
            _curve("harmful", (-0.09, 0.03), (0.05, 0.013)),
            *(
                _curve("random", (-0.4, 0.4), (0.2 + 0.02 * d, 0.22 - 0.015 * d), d)
                for d in range(5)
            ),
            _curve("sft:off", (-0.25, 0.12), (0.11, 0.052)),
        ],
        epl=[
            _epl("aligned", "+", 1.0, censored=1, high=None, outside=None, ended="range"),
            _epl("aligned", "-", 0.163),
            _epl("harmful", "+", 0.0132),
            _epl("harmful", "-", 0.0512),
            _epl("random", "+", 0.19, draws=5, censored=2, high=None),
            _epl("random", "-", 0.24, draws=5),
            _epl("sft:off", "+", 0.053),
            _epl("sft:off", "-", 0.112, censored=1, high=None, outside=None, ended="incoherent"),
        ],
        ratios=[
            Ratio(over="aligned", under="harmful", value=18.1, low=13, high=None, bound="at least"),
            Ratio(over="aligned", under="random", value=2.7, low=2.1, high=None, bound="undefined"),
            Ratio(over="random", under="harmful", value=6.7, low=5.0, high=8.1, bound=None),
        ],
        maps=[plane],
        evaluations={"places": 143, "full_grid": 640},
        settings={"draws": 5, "model": "smollm2-135m-instruct"},
        platform={"device": "cpu", "dtype": "float32"},
        timings={"total_s": 1412.5},
    )  # fmt: skip
