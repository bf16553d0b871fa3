"""The anchor's benchmark at a tiny size: the build finds the answer that was planted."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_planted_answer_is_found_and_the_pair_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(sys.modules, "anchor", None)
    monkeypatch.delitem(sys.modules, "anchor")
    module = importlib.import_module("anchor")

    def here(sides: tuple[Path, Path]) -> Any:
        with contextlib.redirect_stdout(io.StringIO()) as text:
            module.build_only(*map(str, sides))
        return json.loads(text.getvalue())

    monkeypatch.setattr(module, "memory_of_a_build", here)  # a process of its own takes seconds
    work, out = tmp_path / "work", tmp_path / "anchor.json"
    work.mkdir()
    flags = ["--smoke", "--work", str(work), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["anchor", *flags])
    module.main()
    found = json.loads(out.read_text(encoding="utf-8"))
    assert found["modules"] == 4
    assert found["errors"]["caught_over_best_least"] > 0.995
    assert found["errors"]["tail_bound_over_next_sigma_least"] >= 1
    assert found["memory_bytes"]["peak"] >= found["memory_bytes"]["before"]
    assert all(value > 0 for value in found["ratios"].values())
    assert list(work.iterdir()) == []
