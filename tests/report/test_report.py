from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from anchortune.maths.stats import wilson
from anchortune.report.plots import plot_rates
from anchortune.report.table import rates_markdown, rates_table

COLUMNS = ["answered", "accuracy"]
ROWS = {
    "sft": {"answered": wilson(98, 130), "accuracy": wilson(270, 300)},
    "asft": {"answered": wilson(3, 130), "accuracy": wilson(268, 300)},
}


def test_the_table_holds_value_and_interval() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(rates_table("A title", COLUMNS, ROWS))
    text = console.export_text()
    assert "2.3 % (0.8–6.6)" in text
    assert "A title" in text


def test_markdown_shows_what_is_missing() -> None:
    text = rates_markdown(COLUMNS, {"base": {"accuracy": wilson(1, 2)}})
    assert text.splitlines()[-1] == "| base | – | 50.0 % (9.5–90.5) |"


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_the_picture_is_written_whole(tmp_path: Path, name: str, magic: bytes) -> None:
    plot_rates(tmp_path / name, "Title", COLUMNS, ROWS, note="n = 130")
    assert (tmp_path / name).read_bytes().startswith(magic)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_report_needs_no_torch() -> None:
    code = (
        "import sys, anchortune.report.table, anchortune.report.plots; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
