"""The tables of the made-up sweep, to the byte.

``python -m tests.report.golden_sweep`` makes them anew after a change of looks or wording; read
the diff before committing it.
"""

from __future__ import annotations

from pathlib import Path

from anchortune.report.sweep_format import render
from anchortune.report.sweep_table import Table, TableOptions, build
from tests.report.sweep_records import sweep

FOLDER = Path(__file__).parent / "golden"


def table() -> Table:
    options = TableOptions(
        reference="sft",
        average=True,
        non_inferior="asft",
        against=("aligned", "sft"),
        margins=(0.1, 0.03),
        command="anchortune table RESULTS --reference sft --average --non-inferior asft "
        "--against aligned,sft --margins 0.1,0.03",
    )
    return build(sweep(), options)


def made() -> dict[str, str]:
    """File name -> content."""
    whole = table()
    return {
        "sweep.md": render(whole, "markdown"),
        "sweep.tex": render(whole, "latex", "half"),
        "sweep.csv": render(whole, "csv"),
    }


if __name__ == "__main__":
    for name, text in made().items():
        (FOLDER / name).write_text(text, "utf-8")
