"""The pages on anchors, and on what is done with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hub_stand_in import Hub
from tests.pages.conftest import take
from tests.pages.runner import ROOT, parts, run_command, run_page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
PAIR = {"ALIGNED": "aligned-model", "BASE": "base-model", "ALIGNMENT": "runs/aligned/adapter"}
HARMFUL = (
    "anchortune anchor harmful --model aligned-model --data harmful.jsonl --method gradient "
    "--rank 4 --device cpu -o harmful.safetensors"
)


@pytest.mark.usefixtures("at_home")
def test_anchors(hub: Hub) -> None:
    Path("anchor.safetensors").unlink()
    run_page("docs/anchors.md", instead=PAIR)
    assert Path("anchor.png").is_file()
    assert hub.commits["org/name"]


@pytest.mark.usefixtures("at_home")
def test_asft_alt() -> None:
    run_command("anchortune align align.yaml")
    run_page(
        "docs/asft-alt.md",
        instead=PAIR | {"100": "10"},
        smaller={"anchortune anchor harmful": ["--device=cpu", "--json"]},
    )
    assert Path("compare.png").is_file()


@pytest.mark.usefixtures("at_home")
def test_one_anchor() -> None:
    run_command(HARMFUL)
    shutil.move("runs/mine", "runs/task")
    run_page("docs/one-anchor.md", instead=PAIR)
    assert Path("mended/adapter_config.json").is_file()
    assert Path("lox/adapter_config.json").is_file()


@pytest.mark.usefixtures("at_home", "judge")
def test_basin() -> None:
    run_command(HARMFUL)
    shutil.move("runs/mine", "runs/sft")
    take("results/basin", "results/small-near-safety")
    small = [
        "alpha_max=0.1", "alpha_min=0.05", "grid=3", "draws=1", 'sides=["+"]', "bootstrap=20",
        "generation.max_new_tokens=4", "machine.device=cpu", "selection_frac=0",
    ]  # fmt: skip
    page = ROOT / "docs/basin.md"
    dry = next(text for kind, _, text in parts(page) if kind == "command")
    run_command(dry.replace("--dry-run", "").replace("ALIGNED", "aligned-model"), small)
    printed = run_page(
        "docs/basin.md",
        instead=PAIR,
        smaller={"anchortune basin --model": small},
        left_out=dict.fromkeys(
            [
                "anchortune basin experiments",
                "anchortune basin --model package:",
                "anchortune align",
                "anchortune sweep",
                "anchortune drift",
                "anchortune separate",
                "python experiments/basin",
            ],
            "minutes of a real model",
        ),
    )
    assert len(printed) == 6
    assert Path("runs/basin/map.png").is_file()
    run_command("anchortune basin --redraw runs/basin")


@pytest.mark.usefixtures("at_home")
def test_drift() -> None:
    run_command(HARMFUL)
    for name in ("benign", "harmful"):
        data = {"benign": "task", "harmful": "harmful"}[name]
        run_command(
            "anchortune train config.yaml",
            [f"data.path={data}.jsonl", f"output=runs/{name}", "training.max_steps=2"],
        )
    shutil.rmtree("runs/mine")
    run_page("docs/drift.md", instead={"machine.save_steps=50": "machine.save_steps=2"})
    assert Path("runs/mine/drift/drift.json").is_file()
