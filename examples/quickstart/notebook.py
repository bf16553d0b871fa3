"""Runs the notebook beside this file and keeps what it showed: `make notebook`.

The notebook is stored with the output of a real run, so that it can be read where it is not run.
Its cells lie in the notebook and are edited there.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).with_suffix("").with_name("quickstart.ipynb")
ROOT = Path(__file__).parents[2]


def main() -> None:
    """Runs all cells in the repository's root; writes the notebook back only when all ran."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK, help="where the run one is put")
    out = parser.parse_args().out
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with tempfile.TemporaryDirectory() as scratch:
        environment = nbformat.v4.new_code_cell(
            f"import os\nos.environ['ANCHORTUNE_NOTEBOOK_OUT'] = {scratch!r}"
        )
        run = nbformat.from_dict({**notebook, "cells": [environment, *notebook.cells]})
        NotebookClient(
            run, timeout=3600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
        ).execute()
    notebook.cells = run.cells[1:]
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"cell-{number}"
        if cell.cell_type == "code":
            cell.execution_count = 1 + sum(c.cell_type == "code" for c in notebook.cells[:number])
            cell.outputs = [shown for shown in cell.outputs if shown.get("name") != "stderr"]
            for shown in cell.outputs:
                if "execution_count" in shown:
                    shown.execution_count = cell.execution_count
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    text = nbformat.writes(notebook) + "\n"
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
