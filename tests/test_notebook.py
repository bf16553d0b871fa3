"""The notebook of the quickstart: stored as it ran, and run by `make full`."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "quickstart" / "quickstart.ipynb"


def cells(path: Path = NOTEBOOK) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return found


def test_the_notebook_is_stored_as_it_ran() -> None:
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        ast.parse("".join(cell["source"]))
        assert cell["execution_count"] == number, "run it anew: make notebook"
        assert not [out for out in cell["outputs"] if out["output_type"] == "error"]
    pictures = [o for c in code for o in c["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) == 3
    assert NOTEBOOK.stat().st_size < 1_000_000
    shown = json.dumps([cell["outputs"] for cell in code])
    assert not [place for place in ("/home/", "/root/", "/tmp/", str(ROOT)) if place in shown]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("nbclient", reason="pip install 'anchortune[notebook]'")
    pytest.importorskip("ipykernel", reason="pip install 'anchortune[notebook]'")
    out = tmp_path / "run.ipynb"
    command = [sys.executable, str(NOTEBOOK.with_name("notebook.py")), "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True)
    sources = [cell["source"] for cell in cells()]
    assert [cell["source"] for cell in cells(out)] == sources
