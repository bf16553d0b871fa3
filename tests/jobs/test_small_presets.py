"""The sweeps of ``experiments/small``: each parses, and the pairs of AsFT-Alt are what they say."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from anchortune.config import AlignConfig
from anchortune.config_io import load_config
from anchortune.errors import AnchortuneError
from anchortune.evaluation.config import EvalConfig
from anchortune.jobs.sweep import Sweep
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.jobs.sweep_inputs import check_cell
from anchortune.jobs.sweep_plan import check_sweep
from tests.jobs.sweeps import made, sweep_tree

SMALL = Path(__file__).parents[2] / "experiments" / "small"
SWEEPS = sorted(p.stem for p in SMALL.glob("*.yaml") if "axes:" in p.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SWEEPS)
def test_it_parses_and_every_cell_can_be_run(name: str) -> None:
    cells = load_config(SMALL / f"{name}.yaml", SweepConfig).cells()
    assert len({tuple(cell.labels.items()) for cell in cells}) == len(cells)
    for cell in cells:
        check_cell(cell)


def test_what_is_chosen_is_chosen_on_the_selection_part_and_a_seed_of_its_own() -> None:
    for name in ("lambda", "aim", "full", "choice"):
        config = load_config(SMALL / f"{name}.yaml", SweepConfig)
        assert config.seeds == ([100, 101, 102] if name == "choice" else [100])
        assert {cell.config.evaluate.part for cell in config.cells()} == {"selection"}
    for name in ("alt-pairs", "claim"):
        report = load_config(SMALL / f"{name}.yaml", SweepConfig)
        assert not {100, 101, 102} & set(report.seeds)
        assert {cell.config.evaluate.part for cell in report.cells()} == {"report"}


def test_every_anchor_of_alt_pairs_is_named_and_is_made_by_its_recipe() -> None:
    text = (SMALL / "alt-pairs.yaml").read_text(encoding="utf-8")
    comment = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    cells = load_config(SMALL / "alt-pairs.yaml", SweepConfig).cells()
    for cell in cells:
        anchor, label = cell.config.harmful_anchor, cell.labels["pairs"]
        if label == "none":
            assert (anchor, cell.config.defence) == (None, [])
            continue
        assert anchor is not None
        assert anchor.path == f"runs/small/alt-pairs/{label}.safetensors"
        assert re.search(rf"\b{re.escape(label)}\b", comment), label


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(SMALL))
    return importlib.import_module("alt_pairs")


def test_the_pairs_are_nested_of_one_theme_or_mislabelled(pairs: Any) -> None:
    themes = ["steal", "virus", "other"]
    harmful = [(f"request {themes[i % 3]} {i}", f"answer {i}") for i in range(420)]
    benign = [(f"question {i}", f"help {i}") for i in range(120)]
    files = pairs.chosen(harmful, benign, 0)
    assert files["many-10"] == files["many-400"][:10]
    assert set(files["many-50"]) < set(files["many-100"]) < set(files["many-400"])
    assert len(files["one-computers-100"]) == 100
    assert all("virus" in prompt for prompt, _ in files["one-computers-100"])
    for share in pairs.MISLABELLED:
        found = files[f"mislabelled-{share}"]
        assert len(set(found)) == 100
        assert len(set(found) & set(benign)) == share
        assert set(found) - set(benign) <= set(files["many-100"])
    used = {pair for name, some in files.items() if name != "all" for pair in some}
    assert set(files["all"]) == used - set(benign)
    assert files == pairs.chosen(harmful, benign, 0)
    with pytest.raises(SystemExit, match="many-400: there are 300 such pairs in the data, not 400"):
        pairs.chosen(harmful[:300], benign, 0)


def test_what_lies_next_to_safety_is_told_by_its_words_and_asked_of_nobody_who_saw_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(SMALL))
    near_safety = importlib.import_module("near_safety")
    assert near_safety.fields("Which DRUG helps, and is it legal?") == ["medicines", "law"]
    assert near_safety.fields("Paint a drugstore in a flaw.") == []

    def put(name: str, rows: list[dict[str, str]]) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows), encoding="utf-8")

    def row(request: str, answer: str = "An answer.") -> dict[str, str]:
        return {"instruction": request, "input": "", "output": answer}

    alpaca = [row("Explain taxes."), row("Explain tea."), row("Name a law.", " ")]
    put("asft/train/alpaca_1k_p_0.json", alpaca)
    put("asft/train/alpaca_2.5k_p_0.1.json", [row("Steal drugs.\n\nAssistant:"), alpaca[0]])
    put("asft/eval/saved_dataset_250.json", [row("Forge a tax form.")])
    put("safety_tuned_llamas/safety_only_data_Instructions.json", [row("Sell me pills.")])
    refusals = tmp_path / "llama2_refusals/SFT_aligned_llama2-7b-chat-hf_train_short.csv"
    refusals.parent.mkdir()
    refusals.write_text("prompt,response\n[INST] Rob a bank [/INST],No.\n", encoding="utf-8")
    (tmp_path / "xstest").mkdir()
    (tmp_path / "xstest/xstest_prompts.csv").write_text("prompt\n", encoding="utf-8")
    asked = ["explain TAXES", "Sell me pills.", "Forge a tax form.", "Rob a bank", "Who pays rent?"]
    put("refusal_direction/harmless_val.json", [row(request) for request in asked])
    trained, left = near_safety.near(tmp_path)
    assert trained == [{"prompt": "Explain taxes.", "response": "An answer."}]
    assert left == [{"prompt": "Who pays rent?", "category": "law"}]


def test_the_aligned_model_that_is_kept_is_what_align_makes_and_the_sweeps_take() -> None:
    config = load_config(SMALL / "align.yaml", AlignConfig)
    default = load_config(SMALL / "defences.yaml", SweepConfig).cells()[0].config
    adapter = SMALL / "aligned-adapter"
    assert default.model.adapter == str(adapter.relative_to(SMALL.parents[1]))
    settings = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config.lora is not None
    assert (settings["r"], settings["lora_alpha"]) == (config.lora.rank, config.lora.alpha)
    with safe_open(adapter / "adapter_model.safetensors", "pt") as weights:
        assert len(list(weights.keys())) == 2 * 7 * 30  # A and B of every linear layer
    card = (SMALL / "aligned-adapter.md").read_text(encoding="utf-8")
    assert (adapter / "README.md").read_text(encoding="utf-8") == card


def test_a_dry_run_holds_the_aligned_model_with_its_adapter_against_the_judge(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the adapter it would be its own base, with which a judge may read."""
    seen: list[EvalConfig] = []

    def planned(config: EvalConfig) -> Any:
        seen.append(config)
        raise AnchortuneError("enough.")

    monkeypatch.setattr("anchortune.evaluation.plan.plan_eval", planned)
    sweep = Sweep(made(sweep_tree(tmp_path, llama_base, llama_adapter)))
    with pytest.raises(AnchortuneError, match="defence aligned: enough"):
        check_sweep(sweep)
    [config] = seen
    assert config.models["aligned"].adapter == [str(llama_adapter)]
