from __future__ import annotations

import io
import logging
import sys

import pytest

from anchortune.evaluation import progress as module
from anchortune.evaluation.progress import duration, progress


def test_lines_with_the_time_left_off_a_terminal(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO, "anchortune"), progress("trees of [m]", 40) as tell:
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
    with progress("trees of [m]", 4) as tell:
        tell(3)
    shown = screen.getvalue()
    assert "trees of [m]" in shown
    assert "left" in shown


def test_durations() -> None:
    assert [duration(s) for s in (3.2, 89, 600, 5400)] == ["3 s", "89 s", "10 min", "1.5 h"]
