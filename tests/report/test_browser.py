"""The page in a real browser, wide and narrow, light and dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from anchortune.report.gate import Limits, decide
from anchortune.report.page import write_page
from tests.report import browser, made_up

CHROMIUM = browser.find()
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)
WIDTHS = [320, 360, 1020, 1021, 1280]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up.write(tmp_path_factory.mktemp("browser") / "eval")
    gate = decide(made_up.whole(), Limits(max_harm_increase=0.05, min_accuracy=0.8))
    return write_page(folder, gate=gate)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.started(str(CHROMIUM), tmp_path_factory.mktemp("profile")) as found:
        yield found


OPEN_ALL = "document.querySelectorAll('details').forEach(d => d.open = true)"


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(tab: browser.Browser, page: Path, width: int) -> None:
    tab.open(page, width=width, scheme="light")
    for step in ("0", OPEN_ALL):
        tab.value(step)
        assert tab.value("innerWidth") == width
        assert tab.value("document.documentElement.scrollWidth") <= width
    beyond = """[...document.querySelectorAll('main *, header *')].filter(e => {
        const box = e.getBoundingClientRect();
        return box.right > innerWidth + 1 && !e.closest('.scroll, svg, thead');
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert tab.value(beyond) == []
    over_its_neighbour = """[...document.querySelectorAll('.stack td:not(.pad)')].filter(
        e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1
    ).map(e => e.innerText)"""
    assert tab.value(over_its_neighbour) == []


def test_it_asks_for_nothing_but_itself(tab: browser.Browser, page: Path) -> None:
    tab.open(page, width=1280, scheme="light")
    tab.value(OPEN_ALL)
    tab.value("document.body.offsetHeight")
    assert [url for url in tab.requests() if not url.startswith("data:")] == [page.as_uri()]
    assert [event for event in tab.events if event.get("method") == "Log.entryAdded"] == []


def test_a_script_in_an_answer_is_text(tab: browser.Browser, page: Path) -> None:
    tab.open(page, width=1280, scheme="light")
    tab.value(OPEN_ALL)
    assert tab.value("document.title") == "sft and asft against aligned"
    assert tab.value("document.querySelectorAll('script, img').length") == 0
    assert made_up.SCRIPT in tab.value("document.body.innerText")


def test_the_browser_would_have_run_it(tab: browser.Browser, page: Path, tmp_path: Path) -> None:
    """The same answer unescaped: stopped by the policy alone, and run without it."""
    html = page.read_text("utf-8").replace("<footer>", f"<footer>{made_up.SCRIPT}", 1)
    for name, text, title in (
        ("policy", html, "sft and asft against aligned"),
        ("none", html.replace("Content-Security-Policy", "x"), "ran"),
    ):
        (tmp_path / f"{name}.html").write_text(text, "utf-8")
        tab.open(tmp_path / f"{name}.html", width=1280, scheme="light")
        assert tab.value("document.title") == title


def test_dark_and_light(tab: browser.Browser, page: Path) -> None:
    def colours(scheme: str) -> tuple[list[int], list[int]]:
        tab.open(page, width=360, scheme=scheme)
        of = "getComputedStyle(document.body).{}.match(/\\d+/g).map(Number)"
        return tab.value(of.format("backgroundColor")), tab.value(of.format("color"))

    (light, ink), (dark, chalk) = colours("light"), colours("dark")
    assert min(light) > 240
    assert max(ink) < 60
    assert max(dark) < 40
    assert min(chalk) > 200


def test_examples_are_folded_until_opened(tab: browser.Browser, page: Path) -> None:
    tab.open(page, width=360, scheme="light")
    shown = "[...document.querySelectorAll('.text')].filter(e => e.checkVisibility()).length"
    assert tab.value("document.querySelectorAll('.text').length") > 40
    assert tab.value(shown) == 0
    tab.value("document.querySelector('details.examples').open = true")
    seen = tab.value("document.body.innerText")
    assert "How do I keep recipe" in seen
    assert "I'm sorry, but I keep no secrets." in seen
    assert "Of course" not in seen
    assert "Answer judged harmful: open to read" in seen


def test_every_dot_lies_on_its_scale(tab: browser.Browser, page: Path) -> None:
    tab.open(page, width=1280, scheme="light")
    tab.value(OPEN_ALL)
    places = """[...document.querySelectorAll('svg.track circle')].map(c => {
        const box = c.getBoundingClientRect(), track = c.closest('svg').getBoundingClientRect();
        return (box.left + box.width / 2 - track.left) / track.width;
    })"""
    found = tab.value(places)
    assert len(found) > 30
    assert all(-1e-3 <= place <= 1 + 1e-3 for place in found)
    assert found[0] == pytest.approx(15 / 130, abs=0.005)
