"""The committed evaluation and what is made from it, to the byte.

``python -m tests.report.golden`` makes the page and the tables anew after a change of looks or
wording; look at the page and at the diff before committing them. The evaluation itself (the record
and its rows) is made up and stays as it is.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from anchortune.report.gate import Limits, decide
from anchortune.report.load import read_evaluation
from anchortune.report.page import write_page
from anchortune.report.table import results_markdown, results_table

FOLDER = Path(__file__).parent / "golden"
INPUTS = ("record.json", "outputs.jsonl", "verdicts.jsonl")
MADE = ("report.html", "table.txt", "table.md")


def make(folder: Path) -> None:
    """Copies the committed evaluation into ``folder`` and makes everything from it there."""
    for name in INPUTS:
        shutil.copyfile(FOLDER / name, folder / name)
    _, results = read_evaluation(folder)
    gate = decide(results, Limits(max_harm_increase=0.05, min_accuracy=0.8))
    write_page(folder, gate=gate)
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(results_table(results))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    (folder / "table.txt").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "table.md").write_text(results_markdown(results), "utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make(Path(scratch))
        for made in MADE:
            shutil.copyfile(Path(scratch) / made, FOLDER / made)
