from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from anchortune.cli.app import app
from anchortune.errors import AnchortuneError, DataError
from anchortune.report import basin_words as words
from anchortune.report.basin import Count, Epl, Point, Ratio
from anchortune.report.basin_map import grid_of
from anchortune.report.basin_page import page_of, present, read_basin, redraw
from anchortune.report.basin_plots import draw, draw_as, mean_of, pictures
from anchortune.report.basin_table import render
from tests.report.made_up_basin import basin
from tests.report.test_page import Tree


def epl(**other: object) -> Epl:
    kept = {
        "direction": "random", "side": "+", "value": 0.2, "low": 0.1, "high": 0.3, "inside": 0.19,
        "outside": 0.21, "censored": 0, "draws": 4, "ended": "harm",
    }  # fmt: skip
    return Epl.model_validate(kept | other)


@pytest.mark.parametrize(
    ("censored", "high", "said", "between"),
    [
        (0, 0.3, "0.2", "0.1–0.3"),
        (1, None, "≥ 0.2", "0.1 and more"),
        (4, None, "> 0.2", "–"),
    ],
)
def test_what_was_never_left_is_said_to_be_a_bound(
    censored: int, high: float | None, said: str, between: str
) -> None:
    one = epl(censored=censored, high=high)
    assert words.value_of(one) == said
    assert words.interval_of(one) == between


def test_the_sides_mean_is_a_bound_where_one_side_is() -> None:
    sides = [epl(), epl(side="-", value=0.4)]
    assert words.sides_mean(sides, "random") == "0.3"
    sides[1] = sides[1].model_copy(update={"censored": 1})
    assert words.sides_mean(sides, "random") == "> 0.3"
    assert words.sides_mean(sides, "aligned") == "–"


@pytest.mark.parametrize(
    ("bound", "high", "said", "between"),
    [
        (None, 20.0, "13×", "8.0× to 20×"),
        ("at least", None, "at least 13×", "8.0× and more"),
        ("at most", 20.0, "at most 13×", "8.0× to 20×"),
        ("undefined", None, "undefined", "–"),
    ],
)
def test_ratios(bound: str | None, high: float | None, said: str, between: str) -> None:
    one = Ratio.model_validate(
        {"over": "a", "under": "b", "value": 13.0, "low": 8.0, "high": high, "bound": bound}
    )
    assert words.ratio_of(one) == said
    assert words.ratio_interval(one) == between


def test_names_of_directions() -> None:
    assert words.named("aligned:off") == "aligned, off the anchor"
    assert words.named("a:b:inside") == "a:b, inside the anchor"
    assert words.named("runs:7") == "runs:7"
    assert words.alpha(0.00001234) == "0.000012"


def test_the_share_that_ends_a_search_is_called_incoherent() -> None:
    def at(count: int) -> Point:
        return Point(alpha=1.0, harm=Count(count=0, of=4), coherent=Count(count=count, of=10))

    assert words.is_incoherent(at(5), 0.5)
    assert not words.is_incoherent(at(6), 0.5)
    assert not words.is_incoherent(Point(alpha=1.0, harm=Count(count=0, of=4)), 0.5)


def test_the_table_stands_beside_the_papers() -> None:
    text = render(basin(), "markdown")
    assert "| aligned | +α | > 1 | – | inside up to 0.97 | never left |" in text
    assert (
        "| random | +α | ≥ 0.19 | 0.167 and more | 0.184–0.194 | left; 2 of 5 draws never |" in text
    )
    assert "| smollm2-135m-instruct | > 0.582 | 0.0322 | at least 18× |" in text
    assert "| Llama-2 (paper) | 0.1287 | 0.0099 | 13× |" in text
    assert "10 points over α = 0" in text
    alone = basin().model_copy(update={"epl": [epl()], "ratios": []})
    assert "Llama-2" not in render(alone)


def test_a_name_breaks_no_table() -> None:
    odd = basin().model_copy(update={"epl": [epl(direction="a|b\nc")]})
    row = next(line for line in render(odd, "markdown").splitlines() if "a\\|b" in line)
    assert len(re.findall(r"(?<!\\)\|", row)) == 7


def test_the_mean_of_draws_goes_as_far_as_all_of_them() -> None:
    draws: list[tuple[Sequence[float], Sequence[float]]] = [
        ([-1, 0, 1, 2], [4, 0, 2, 8]), ([-2, 0, 1.5], [2, 0, 3]), ([], []),
    ]  # fmt: skip
    xs, ys = mean_of(draws)
    assert xs == [-1, 0, 1, 1.5]
    np.testing.assert_allclose(ys, [(4 + 1) / 2, 0, (2 + 2) / 2, (5 + 3) / 2])
    assert mean_of([([], [])]) == ([], [])


def test_a_map_is_laid_out_by_its_places_and_not_by_their_order() -> None:
    found = basin().maps[0]
    turned = found.model_copy(update={"points": found.points[::-1][:-1]})
    xs, ys, harm, broken = grid_of(turned, 0.5)
    assert xs == sorted(xs)
    assert harm.shape == (len(ys), len(xs)) == (9, 9)
    assert np.isnan(harm[0, 0])  # the place that is missing
    assert np.isnan(harm).sum() == 1
    assert harm[4, 4] == 4
    assert harm[4, 0] > harm[4, 8]  # x runs over the columns
    assert broken[8, 8]
    assert not broken[4, 4]


def texts(figure: object) -> str:
    from matplotlib.text import Text

    return " ".join(t.get_text() for t in figure.findobj(Text))  # type: ignore[attr-defined]


def test_pictures_say_what_they_show() -> None:
    made = {name: texts(make()) for name, make in pictures(basin(small_paths=True)).items()}
    assert list(made) == ["epl", "curves", "map"]
    assert "≥ 0.19" in made["epl"]
    for said in (
        "random (5 draws)", "sft, off the anchor", "towards base", "accuracy sst2",
        "incoherent", "EPL  −α: 0.163 (0.143–0.179)", "10 points over α = 0",
    ):  # fmt: skip
        assert said in made["curves"]
    assert "sft, step 200" in made["map"]
    assert "96 % off the plane" in made["map"]
    assert "38 times enlarged" in made["map"]
    assert "enlarged" not in texts(pictures(basin())["map"]())


def test_pictures_of_the_least_that_can_be_known(tmp_path: Path) -> None:
    point = Point(alpha=0.0, harm=Count(count=0, of=0))
    curve = basin().curves[0].model_copy(update={"points": [point], "direction": "a $x$ <b>"})
    bare = Point(alpha=(0.0, 0.0), harm=Count(count=0, of=0))
    flat = basin().maps[0].model_copy(update={"points": [bare], "trajectories": []})
    least = basin().model_copy(update={"curves": [curve], "epl": [], "ratios": [], "maps": [flat]})
    assert [path.name for path in draw(least, tmp_path, [".svg"])] == ["curves.svg", "map.svg"]


def test_the_same_basin_gives_the_same_files(tmp_path: Path) -> None:
    names = present(basin(paths=False), tmp_path / "a", [".svg"])
    assert [path.name for path in names] == [
        "epl.svg", "curves.svg", "map.svg", "basin.md", "basin.html",
    ]  # fmt: skip
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "basin.json").write_text(basin(paths=False).model_dump_json(), "utf-8")
    for path in redraw(tmp_path / "b", [".svg"]):
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def test_the_page_asks_nothing_of_the_network_and_escapes() -> None:
    odd = basin(paths=False).model_copy(update={"model": "<script>x</script>"})
    html = page_of(odd)
    tree = Tree(html)
    assert not tree.all("script")
    policy = next(m for m in tree.all("meta") if m.get("http-equiv"))["content"] or ""
    assert "default-src 'none'" in policy
    assert not re.search(r"url\(|@import|@font-face|https?://", html)
    pictured = tree.all("img")
    assert len(pictured) == 3
    assert all((i["src"] or "").startswith("data:image/svg+xml;base64,") for i in pictured)
    assert all(i["alt"] for i in pictured)
    ids = [a["id"] for _, a in tree.seen if "id" in a]
    assert {(a["href"] or "")[1:] for a in tree.all("a")} <= set(ids)
    said = " ".join(tree.text.split())
    assert "EPL along aligned: > 1 on +α, 0.163 on −α." in said
    assert "0.1287" in said
    assert "aligned over harmful: at least 18×." in said
    assert "aligned over random:" not in said  # both are bounds: nothing is known


def test_what_is_no_basin_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file; run anchortune basin"):
        read_basin(tmp_path)
    (tmp_path / "basin.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"not a basin that this version reads \(format: "):
        read_basin(tmp_path)
    with pytest.raises(AnchortuneError, match=r"\.gif: a plot ends in \.png, \.svg, \.pdf"):
        draw(basin(), tmp_path, [".gif"])


def test_several_maps_of_one_kind_are_numbered(tmp_path: Path) -> None:
    two = basin().model_copy(update={"maps": basin().maps * 2})
    names = [path.name for path in draw_as(two, "map", tmp_path / "m.svg")]
    assert names == ["m-1.svg", "m-2.svg"]
    none = basin().model_copy(update={"maps": []})
    with pytest.raises(AnchortuneError, match="the basin has none of it; it has epl, curve"):
        draw_as(none, "map", tmp_path / "m.svg")


def test_anchortune_plot_draws_a_basin(tmp_path: Path) -> None:
    (tmp_path / "basin.json").write_text(basin().model_dump_json(), "utf-8")
    out = tmp_path / "x.svg"
    asked = ["plot", str(tmp_path / "basin.json"), "--kind", "epl", "-o", str(out)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert out.read_text("utf-8").startswith("<?xml")
    asked = ["plot", str(tmp_path), "--kind", "map", "-o", str(out)]
    result = CliRunner().invoke(app, asked)
    assert isinstance(result.exception, AnchortuneError)
    assert "is drawn of one basin.json" in str(result.exception)


def test_one_side_is_not_called_the_mean_of_two() -> None:
    found = basin()
    assert "ours is the mean of the two" in render(found)
    one = found.model_copy(update={"epl": [epl for epl in found.epl if epl.side == "+"]})
    assert "ours is of +α alone" in render(one)
