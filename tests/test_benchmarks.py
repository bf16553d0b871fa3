"""The benchmarks of whole commands run at tiny size, and their arms compute the same."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def _their_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def run(monkeypatch: pytest.MonkeyPatch, name: str, *flags: str) -> tuple[ModuleType, Any]:
    """A benchmark's module and the file that it wrote."""
    module = importlib.import_module(name)
    assert Path(str(module.__file__)).parent == BENCHMARKS
    monkeypatch.setattr(sys, "argv", [name, "--smoke", *flags])
    module.main()
    return module, json.loads(Path(flags[flags.index("-o") + 1]).read_text(encoding="utf-8"))


def test_the_whole_job_is_one_job_in_both_arms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--work", str(tmp_path / "work"), "-o", str(tmp_path / "job.json"))
    job, result = run(monkeypatch, "job", *flags)
    assert result["answers"] == result["answers_equal"] == 7
    assert result["adapters_apart_frac"] < 1e-5
    assert result["measured"]["ours"] == result["measured"]["published"]
    assert {"job_over_published", "train_over_lora"} <= result["ratios"].keys()
    assert result["wall_s"]["published"].keys() == result["wall_s"]["ours"].keys()

    capsys.readouterr()  # what is done is not done again, and is no other job's
    monkeypatch.setattr(job, "perform", lambda *_: pytest.fail("done a second time"))
    job.main()
    assert "evaluate" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--threads", "3"])
    with pytest.raises(SystemExit, match="other settings"):
        job.main()


def test_batches_and_single_prompts_give_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, result = run(monkeypatch, "generation", "-o", str(tmp_path / "generation.json"))
    assert result["answers"] == 12
    assert result["answers_that_differ"] == result["of_them_at_a_near_tie"]
    assert result["new_tokens"] > 0
    ratios = result["ratios"]
    low, high = (ratios[f"one_at_a_time_over_ours_{end}"] for end in ("low", "high"))
    assert low <= ratios["one_at_a_time_over_ours"] <= high


def test_steps_are_measured_in_pairs_and_a_stopped_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "work"
    flags = ("--work", str(work), "-o", str(tmp_path / "step.json"))
    flags += ("--only", "all_linear", "--threads", "1")
    step, result = run(monkeypatch, "step", *flags)
    found = result["settings"]["all_linear"]
    assert found["modules"] == 14
    assert found["gradients_apart_from_dense"] < 1e-5
    assert 0 < found["bytes"]["asft_temporary"] < found["bytes"]["dense_temporary"]
    ratios = result["ratios"]
    low, high = (ratios[f"asft_over_lora_all_linear_{end}"] for end in ("low", "high"))
    assert low <= ratios["asft_over_lora_all_linear"] <= high

    [pairs] = work.rglob("asft_all_linear.jsonl")
    lines = pairs.read_text("utf-8").splitlines()
    assert len(lines) == found["pairs"] == 4
    pairs.write_text("\n".join(lines[:3]) + "\n", "utf-8")
    step.main()
    again = pairs.read_text("utf-8").splitlines()
    assert len(again) == 4
    assert again[:3] == lines[:3]
    step.main()  # with nothing left to measure, what follows the pairs is measured all the same
    assert pairs.read_text("utf-8").splitlines() == again
