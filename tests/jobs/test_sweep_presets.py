"""The paper's tables as sweeps: each parses, starts at small models of its classes, and runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.config_io import load_config
from anchortune.jobs.pool import in_this_process
from anchortune.jobs.sweep import Sweep
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.jobs.sweep_plan import check_sweep
from tests import tiny
from tests.evaluation.shared_data import SHARED as DATA
from tests.jobs.sweeps import records

ROOT = Path(__file__).parents[2]
PAPER = sorted(path for path in (ROOT / "experiments" / "paper").glob("*.yaml"))
TABLES = [path for path in PAPER if path.stem != "default"]
SMALL = [
    "defaults.evaluate.judges=[refusal]",
    "defaults.evaluate.generation.max_new_tokens=4",
    "defaults.evaluate.harm.0.max_items=4",
    "defaults.mix.rows=16",
    "defaults.training.max_steps=2",
    "defaults.training.max_length_tokens=3000",
    "defaults.machine={device: cpu, dtype: float32}",
    "seeds=[0]",
]
needs_data = pytest.mark.skipif(
    not (DATA / "asft").is_dir(), reason="the authors' data is not there (experiments/fetch.py)"
)


@pytest.fixture
def named_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANCHORTUNE_DATA", str(DATA))


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_it_parses(path: Path) -> None:
    config = load_config(path, SweepConfig)
    cells = config.cells()
    assert cells[0].labels["defence"]
    assert len({tuple(cell.labels.items()) for cell in cells}) == len(cells)
    counts = {
        "table2-agnews-poison": 7 * 5,
        "table3-n": 8 * 5,
        "table4-harmful-source": 7 * 2,
        "table5-tasks": 7 * 4,
        "table6-models": 7 * 4,
        # sft has no λ; each penalty five λ and three more learning rates
        "figure4-ablations": 4 + 3 * (5 + 3),
    }
    assert len(cells) == counts[path.stem]


def test_the_papers_settings_are_those_of_its_preset() -> None:
    from anchortune.config import PRESETS

    [cell] = [
        cell
        for cell in load_config(
            PAPER[0].with_name("table2-agnews-poison.yaml"), SweepConfig
        ).cells()
        if cell.labels == {"defence": "asft", "p": "0.1"}
    ]
    config, preset = cell.config, PRESETS["paper"]
    for section in ("lora", "training"):
        for key, value in preset[section].items():
            assert getattr(getattr(config, section), key) == value, key
    for key, value in preset["penalty"].items():
        assert getattr(config.defence[0], key) == value, key


@needs_data
@pytest.mark.usefixtures("named_data")
@pytest.mark.slow
def test_every_model_class_is_planned(tmp_path: Path) -> None:
    made = {
        "llama-2": tiny.tiny_llama,
        "llama-3": tiny.tiny_llama,
        "qwen-2": tiny.tiny_qwen2,
        "gemma-2": tiny.tiny_gemma2,
    }
    sets = [f"results={tmp_path / 'results'}", f"work={tmp_path / 'work'}", *SMALL]
    for number, (name, make) in enumerate(made.items()):
        for seed, side in enumerate(("model", "base"), start=2 * number):
            folder = tmp_path / f"{name}-{side}"
            make(folder, seed=seed, tokenizer=True, max_position_embeddings=4096)
            sets.append(f"axes.model.{name}.{side}.path={folder}")
    for item in ("name: agnews, path: 'data:asft/eval/agnew_test_data.json', max_items: 4",):
        sets.append(f"defaults.evaluate.tasks=[{{{item}}}]")
    config = load_config(PAPER[0].with_name("table6-models.yaml"), SweepConfig, sets)
    sweep = Sweep(config, {"model": list(made)})
    notes = check_sweep(sweep)
    assert sum("M parameters" in note for note in notes) == 4
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "results").exists()


@needs_data
@pytest.mark.usefixtures("named_data")
@pytest.mark.slow
def test_one_cell_runs(tmp_path: Path) -> None:
    sets = [f"results={tmp_path / 'results'}", f"work={tmp_path / 'work'}", *SMALL]
    for side, seed in (("model", 1), ("base", 2)):
        folder = tiny.tiny_llama(
            tmp_path / side, seed=seed, tokenizer=True, max_position_embeddings=4096
        )
        sets.append(f"defaults.{side}.path={folder}")
    sets.append("defaults.evaluate.tasks.0.max_items=4")
    config = load_config(PAPER[0].with_name("table2-agnews-poison.yaml"), SweepConfig, sets)
    in_this_process(Sweep(config, {"defence": ["asft"], "p": ["0.2"]}), None, lambda *told: None)
    [record] = records(tmp_path / "results").values()
    assert (record.state, record.error) == ("complete", None)
    assert record.settings["mix"]["benign"][0]["path"] == "data:asft/train/agnews_2.5k_p_0.1.json"
    assert (record.numbers["rows"], record.numbers["harmful_rows"]) == (19, 3)
    assert [one.measure for one in record.outcomes] == ["refusal", "coherence", "accuracy"]
