from __future__ import annotations

import io
import logging
import sys

import pytest

from anchortune import progress as module
from anchortune.progress import Progress, counted, duration


def test_lines_with_the_time_left_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "anchortune"), Progress("trees of [m]", 40) as tell:
        for done in range(1, 41):
            now[0] += 4
            tell(done)
    lines = [record.message for record in caplog.records]
    assert lines[0] == "trees of [m]: 4 of 40, about 2 min left"
    assert lines[-1] == "trees of [m]: 40 done in 3 min"
    assert len(lines) == 10
    assert capsys.readouterr().out == ""


def test_a_bar_with_the_time_left_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with Progress("trees of [m]", 4) as tell:
        tell(3)
    shown = screen.getvalue()
    assert "trees of [m]" in shown
    assert "left" in shown


def test_a_bar_leaves_a_piped_result_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, piped = io.StringIO(), io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", piped)
    monkeypatch.setenv("TERM", "xterm")
    with Progress("trees", 4):
        print("a result")  # noqa: T201 - what a stranger prints
    assert piped.getvalue() == "a result\n"


def test_what_was_done_before_takes_no_time_and_a_loop_within_is_silent(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with (
        caplog.at_level(logging.INFO, "anchortune"),
        Progress("training", 100, done=50) as tell,
        Progress("within", 2) as inner,
    ):
        now[0] = 20.0
        inner(1)
        tell(60, note="loss 2")
        inner(2)
    assert [record.message for record in caplog.records] == [
        "training: 60 of 100, about 80 s left; loss 2"  # 10 in 20 s, 40 to go
    ]
    with caplog.at_level(logging.INFO, "anchortune"), Progress("after", 1) as tell:
        tell(1)
    assert caplog.records[-1].message == "after: 1 done in 0 s"


def test_a_loop_that_fails_gives_its_place_back(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        with Progress("cut short", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    with caplog.at_level(logging.INFO, "anchortune"), Progress("next", 1) as tell:
        tell(1)
    assert "next: 1 done in 0 s" in [record.message for record in caplog.records]


def test_a_terminal_that_cannot_redraw_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "dumb")
    with Progress("plain", 1) as tell:
        tell(1)
    assert not {"\x1b", "\r"} & set(screen.getvalue())


def test_of_what_takes_a_moment_nothing_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "anchortune"):
        assert list(counted("few", {"a": 1, "b": 2})) == ["a", "b"]
        assert caplog.records == []
        for _ in counted("many", range(4)):
            now[0] += 10
    assert [record.message for record in caplog.records] == [
        "many: 2 of 4, about 20 s left",
        "many: 4 done in 40 s",
    ]


def test_durations() -> None:
    assert [duration(s) for s in (3.2, 89, 600, 5400)] == ["3 s", "89 s", "10 min", "1.5 h"]
