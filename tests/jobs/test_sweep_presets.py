"""The paper's tables as sweeps: each parses, starts at small models of its classes, and runs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anchortune.config import DataSection, MachineSection, ModelSection
from anchortune.config_io import load_config
from anchortune.data.mix import harmful_rows, make_mix
from anchortune.jobs.harmful_anchor import make_harmful, plan_harmful
from anchortune.jobs.harmful_config import HarmfulSettings
from anchortune.jobs.pool import in_this_process
from anchortune.jobs.sweep import Sweep
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.jobs.sweep_inputs import disjoint
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
AGNEWS = "{name: agnews, path: 'data:asft/eval/agnew_test_data.json', max_items: 4}"
MAKERS = {
    "llama-2": tiny.tiny_llama,
    "llama-3": tiny.tiny_llama,
    "qwen-2": tiny.tiny_qwen2,
    "gemma-2": tiny.tiny_gemma2,
}
LONG: dict[str, Any] = {"tokenizer": True, "max_position_embeddings": 4096}
SEVEN = {"sft", "lisa-base", "lisa-aligned", "safe-instr", "bea", "safe-lora", "asft"}
#: As Gemma 2's: a system prompt is refused.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + tiny.CHAT_TEMPLATE
)
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
def test_every_mix_can_be_made_at_its_own_size(tmp_path: Path) -> None:
    mixes = {
        repr(mix): (path.stem, cell, mix)
        for path in TABLES
        for cell in load_config(path, SweepConfig).cells()
        if (mix := disjoint(cell.config).mix) is not None
    }
    for number, (table, cell, mix) in enumerate(mixes.values()):
        path = tmp_path / f"{number}.jsonl"
        make_mix(mix, 0, path)
        rows = mix.rows + (harmful_rows(mix) if mix.how == "add" else 0)
        found = [json.loads(line)["source"] for line in path.read_text().splitlines()]
        assert Counter(found)["harmful"] == harmful_rows(mix), (table, cell.labels)
        assert len(found) == rows


@needs_data
@pytest.mark.usefixtures("named_data")
@pytest.mark.slow
def test_every_model_class_is_planned(tmp_path: Path) -> None:
    sets = [*_places(tmp_path), *SMALL, f"defaults.evaluate.tasks=[{AGNEWS}]"]
    for number, (name, make) in enumerate(MAKERS.items()):
        for seed, side in enumerate(("model", "base"), start=2 * number):
            folder = make(tmp_path / f"{name}-{side}", seed=seed, **LONG)
            sets.append(f"axes.model.{name}.{side}.path={folder}")
    config = load_config(PAPER[0].with_name("table6-models.yaml"), SweepConfig, sets)
    sweep = Sweep(config, {"model": list(MAKERS)})
    notes = check_sweep(sweep)
    assert sum("M parameters" in note for note in notes) == 4
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "results").exists()


@needs_data
@pytest.mark.usefixtures("named_data")
@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_every_defence_runs_on_every_model_class(name: str, tmp_path: Path) -> None:
    sets = [*_places(tmp_path), *SMALL, f"defaults.evaluate.tasks=[{AGNEWS}]"]
    for side, seed in (("model", 1), ("base", 2)):
        folder = MAKERS[name](tmp_path / side, seed=seed, **LONG)
        if name == "gemma-2":
            tiny.tiny_tokenizer(folder, NO_SYSTEM)
        sets.append(f"axes.model.{name}.{side}.path={folder}")
    for label, start in (("lisa-base", ", start: base"), ("lisa-aligned", "")):
        lisa = f"{{name: lisa{start}, alignment_steps: 1, finetune_steps: 1}}"  # of two steps
        sets.append(f"axes.defence.{label}.defence=[{lisa}]")
    path = PAPER[0].with_name("table6-models.yaml")
    sweep = Sweep(load_config(path, SweepConfig, sets), {"model": [name]})
    in_this_process(sweep, None, lambda *told: None)
    found = records(tmp_path / "results").values()
    assert {record.labels["defence"] for record in found} == {*SEVEN, "aligned"}
    assert [record.error for record in found] == [None] * 8


@needs_data
@pytest.mark.usefixtures("named_data")
@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "only"),
    [
        ("table2-agnews-poison", {"defence": ["asft"], "p": ["0.2"]}),
        ("table3-n", {"defence": ["asft-alt"], "n": ["500"]}),
        ("table4-harmful-source", {"defence": ["asft"], "harmful_source": ["advbench"]}),
        ("table5-tasks", {"defence": ["asft"], "task": ["sst2", "gsm8k", "alpaca"]}),
        ("figure4-ablations", {"defence": ["along"], "lam": ["10"], "learning_rate": ["5e-05"]}),
    ],
)
def test_cells_of_each_other_table_run(
    stem: str, only: dict[str, list[str]], tmp_path: Path
) -> None:
    sets = [*_places(tmp_path), *SMALL]
    for side, seed in (("model", 1), ("base", 2)):
        folder = tiny.tiny_llama(tmp_path / side, seed=seed, **LONG)
        sets.append(f"defaults.{side}.path={folder}")
    if stem == "table3-n":
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text(json.dumps({"prompt": "do harm", "completion": "sure"}) + "\n")
        given = HarmfulSettings(data=DataSection(path=str(pairs)), method="gradient", rank=2)
        model, output = ModelSection(path=str(tmp_path / "model")), tmp_path / "harm.safetensors"
        make_harmful(plan_harmful(model, given, output, machine=MachineSection(device="cpu")))
        sets.append(f"defaults.harmful_anchor={output}")
    if stem == "table5-tasks":
        for task, eval_set in (("sst2", "SST2_test.jsonl"), ("gsm8k", "gsm8k_test_data.json")):
            told = f"{{name: {task}, path: 'data:asft/eval/{eval_set}', max_items: 4}}"
            sets.append(f"axes.task.{task}.evaluate.tasks=[{told}]")
    else:
        sets.append("defaults.evaluate.tasks.0.max_items=4")
    config = load_config(PAPER[0].with_name(f"{stem}.yaml"), SweepConfig, sets)
    sweep = Sweep(config, only)
    in_this_process(sweep, None, lambda *told: None)
    found = list(records(tmp_path / "results").values())
    assert len(found) == len(sweep.runs) == len(only.get("task", [stem]))
    for record in found:
        assert (record.state, record.error) == ("complete", None)
        assert record.outcomes
    if stem == "table2-agnews-poison":
        [record] = found
        place = record.settings["mix"]["benign"][0]["path"]
        assert place == "data:asft/train/agnews_2.5k_p_0.1.json"
        assert (record.numbers["rows"], record.numbers["harmful_rows"]) == (19, 3)
        assert [one.measure for one in record.outcomes] == ["refusal", "coherence", "accuracy"]


def _places(folder: Path) -> list[str]:
    return [f"results={folder / 'results'}", f"work={folder / 'work'}"]
