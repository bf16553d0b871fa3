"""The pages that people come to first: config, job, evaluation, gate, diagnosis."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hub_stand_in import Hub
from tests.pages.conftest import take
from tests.pages.runner import run_command, run_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.usefixtures("at_home", "judge")
def test_first_minutes() -> None:
    printed = run_page("docs/first-minutes.md")
    assert len(printed) == 5
    assert Path("first.yaml").is_file()


@pytest.mark.usefixtures("at_home", "judge")
def test_training() -> None:
    run_page(
        "docs/training.md",
        smaller={"anchortune train config.yaml --set": ["training.max_steps=null"]},
    )
    assert Path("runs/aligned/adapter").is_dir()
    assert Path("clean.jsonl").is_file()


@pytest.mark.usefixtures("at_home", "judge")
def test_jobs() -> None:
    run_page("docs/jobs.md")
    assert Path("runs/job/adapter").is_dir()


@pytest.mark.usefixtures("evaluated")
def test_adapters(hub: Hub) -> None:
    run_command("anchortune run job.yaml")
    shutil.copytree("runs/mine", "runs/train")
    run_page("docs/adapters.md", smaller={"anchortune card runs/train": ["--force"]})
    assert hub.commits["org/name"]


@pytest.mark.usefixtures("at_home", "judge")
def test_evaluation() -> None:
    run_page("docs/evaluation.md", smaller={"anchortune eval --outputs": ["machine.device=cpu"]})
    assert Path("scored/record.json").is_file()


@pytest.mark.usefixtures("evaluated")
def test_gate() -> None:
    run_page(
        "docs/gate.md",
        # Two random models on ten prompts; no answer of theirs is right.
        codes={"anchortune gate": (3, 4)},
        instead={"beaver-dam": "builtin"},  # which judged here
    )
    assert Path("gate.xml").is_file()


@pytest.mark.usefixtures("evaluated")
def test_judges() -> None:
    run_page("docs/judges.md", instead={"wildguard": "builtin"})
    assert Path("again.jsonl").is_file()


@pytest.mark.usefixtures("evaluated")
def test_diagnose() -> None:
    take("results/small-first-pair")
    run_command("anchortune run job.yaml")
    run_command("anchortune train config.yaml", ["output=runs/theirs", "seed=2"])
    run_page("docs/diagnose.md", codes={"anchortune diagnose": (0, 3)})
