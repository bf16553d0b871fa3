"""LLaMA-Factory as it is installed: its own stages train with the section in its YAML.

It pins other versions than ours, so these run in an environment of their own:
``llamafactory-requirements.txt`` beside this file says how it is made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.integrations.host import SECTION, start, tiny_pair

pytest.importorskip(
    "llamafactory", reason="llamafactory is not installed; see llamafactory-requirements.txt"
)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair, its anchor and rows to train on."""
    folder = tiny_pair(tmp_path_factory.mktemp("llamafactory"))
    rows = [
        {"instruction": f"say number {i} again", "input": "", "output": f"{i} it is"}
        for i in range(40)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    pairs = [
        {"instruction": f"say number {i}", "input": "", "chosen": f"{i} it is", "rejected": "no"}
        for i in range(16)
    ]
    (folder / "pairs.json").write_text(json.dumps(pairs))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    sets = {
        "rows": {"file_name": "rows.json"},
        "pairs": {"file_name": "pairs.json", "ranking": True, "columns": columns},
    }
    (folder / "dataset_info.json").write_text(json.dumps(sets))
    return folder


def run(place: Path, name: str, *command: str, **changes: Any) -> tuple[int, str]:
    """(exit code, output) of our module on LLaMA-Factory's config, on a CPU."""
    config: dict[str, Any] = {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": str(place / "aligned"),
        "finetuning_type": "lora",
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target": "q_proj,v_proj",
        "dataset": "rows",
        "dataset_dir": str(place),
        "template": "chatml",
        "cutoff_len": 128,
        "output_dir": str(place / name),
        "per_device_train_batch_size": 4,
        "num_train_epochs": 1.0,
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "report_to": "none",
        "seed": 1,
        "anchortune": SECTION,
    }
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**config, **changes}.items() if v != ""}))
    words = command or ("-m", "anchortune.integrations.llamafactory")
    return start(place, *words, str(path), DISABLE_VERSION_CHECK="1")


def logged(place: Path, name: str) -> list[dict[str, Any]]:
    """What the trainer logged at each step."""
    state = json.loads((place / name / "trainer_state.json").read_text())
    return [row for row in state["log_history"] if "loss" in row]


def test_the_penalty_acts_in_its_own_sft(place: Path) -> None:
    code, told = run(place, "held")
    assert code == 0, told[-3000:]
    assert (place / "held" / "adapter_model.safetensors").is_file()
    assert "AsFT penalty attached to CustomSeq2SeqTrainer" in told
    free_code, free = run(place, "free", anchortune=SECTION | {"lam": 0.0})
    assert free_code == 0, free[-3000:]
    held, without = logged(place, "held"), logged(place, "free")
    assert len(held) == len(without) == 10
    assert held[-1]["asft/penalised_share"] < 0.5 * without[-1]["asft/penalised_share"]


def test_two_processes_train_what_one_trains(place: Path) -> None:
    """As ``torchrun`` starts it, on gloo; the same rows in a step, half of them in each process."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    module = ("-m", "anchortune.integrations.llamafactory")
    code, told = run(
        place, "two", *torchrun, *module, per_device_train_batch_size=2, ddp_backend="gloo"
    )
    assert code == 0, told[-3000:]
    assert told.count("AsFT penalty attached to") == 2
    code, told = run(place, "one")
    assert code == 0, told[-3000:]
    both, alone = logged(place, "two"), logged(place, "one")
    assert [row["asft/lam"] for row in both] == [10.0] * len(alone)
    for key in ("loss", "asft/penalty", "asft/penalised_share"):
        assert [row[key] for row in both] == pytest.approx([row[key] for row in alone], rel=1e-3)
    found, wanted = (
        load_file(place / name / "adapter_model.safetensors") for name in ("two", "one")
    )
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("stage", "rows"),
    [("pt", "rows"), ("dpo", "pairs")],
)
def test_other_stages_take_it_too(place: Path, stage: str, rows: str) -> None:
    code, told = run(place, stage, stage=stage, dataset=rows, max_steps=2)
    assert code == 0, told[-3000:]
    assert [row["asft/lam"] for row in logged(place, stage)] == [10.0, 10.0]


def test_started_by_its_own_command_it_refuses_the_section(place: Path) -> None:
    """Nobody trains without the penalty because of the wrong command."""
    script = "import sys; from llamafactory.train.tuner import run_exp; run_exp()"
    code, told = run(place, "own", "-c", script)
    assert code != 0
    assert re.search(r"not used by the HfArgumentParser.*anchortune", told), told[-2000:]
    assert not (place / "own" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"anchortune": ""}, "LLaMA-Factory's config has no section anchortune"),
        ({"anchortune": {"anchor": "gone.safetensors"}}, "gone.safetensors"),
        ({"anchortune": {"anchor": "a", "weight": 1.0}}, "unknown key 'weight'"),
        ({"stage": "rm"}, "stage: rm does not go with the penalty; take pt, sft, dpo, kto"),
        ({"use_badam": True}, "use_badam does not go with the penalty"),
        ({"galore_layerwise": True}, "galore_layerwise does not go with the penalty"),
        ({"model_name_or_path": "base"}, "starts from the aligned model"),
        ({"adapter_name_or_path": ["a", "b"]}, "several adapters (a,b)"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    place: Path, changes: dict[str, Any], sentence: str
) -> None:
    code, told = run(place, "refused", **changes)
    assert code == 2, told[-3000:]
    assert "error: " in told.splitlines()[-1]
    assert sentence in told.splitlines()[-1]
    assert "Traceback" not in told
