"""The pages on mixes, sweeps and their tables."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.conftest import take
from tests.pages.runner import run_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MIX = """
benign: {path: task.jsonl}
harmful: [{path: harmful.jsonl}, {path: more.csv}]
rows: 20
poison_ratio: 0.1
disjoint_from: [malicious.jsonl]
"""


@pytest.mark.usefixtures("at_home")
def test_data_mixes() -> None:
    Path("mix.yaml").write_text(MIX, "utf-8")
    run_page(
        "docs/data-mixes.md",
        left_out={"python experiments/fetch.py": "downloads; tests/test_fetch.py has its parts"},
    )
    assert len(Path("mixes/sst2-0.jsonl").read_text("utf-8").splitlines()) == 20


@pytest.mark.usefixtures("at_home", "judge")
def test_sweeps() -> None:
    run_page(
        "docs/sweeps.md",
        instead={"8": "2"},
        left_out={
            "anchortune status runs/sweeps --watch": "goes on until it is stopped",
            "anchortune sweep sweep.yaml --ray": "needs the extra ray; tests/jobs has its parts",
        },
    )
    assert len(list(Path("results/table1").glob("*.json"))) == 3


@pytest.mark.usefixtures("at_home")
def test_tables() -> None:
    take("results/small-first-pair", "results/small-lambda")
    Path("results/small-first-pair").rename("results/table1")
    Path("results/small-lambda").rename("results/lambda")
    run_page("docs/tables.md", instead={"RESULTS": "results/table1"})


@pytest.mark.usefixtures("at_home")
def test_results() -> None:
    take(
        "results/small-first-pair", "results/small-lambda", "results/small-learning-rate",
        "results/small-poison", "results/small-full", "results/small-alt-pairs",
        "results/small-aim", "results/small-choice", "results/small-claim",
        "results/small-claim-items", "results/small-defences", "results/small-mend",
        "results/small-steer-alt",
    )  # fmt: skip
    hours = "hours of a real model; tests/jobs checks its cells"
    printed = run_page(
        "docs/results.md",
        left_out={
            "anchortune sweep experiments/small": hours,
            "anchortune anchor build --aligned experiments/small": "of a training of minutes",
            "anchortune anchor compare anchor": "of two anchors of a training of minutes",
            ".venv/bin/anchortune eval experiments/authors-data": "needs sets that are fetched",
        },
    )
    assert "| asft-published | 2.0 (0.7–5.8) |" in printed[0]
