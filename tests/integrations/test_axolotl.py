"""axolotl as it is installed: its own command line trains with the plug-in that its YAML names.

axolotl pins other versions than ours, so these run in an environment of their own:
``axolotl-requirements.txt`` beside this file says how it is made.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integrations.host import SECTION, start, tiny_pair

pytest.importorskip("axolotl", reason="axolotl is not installed; see axolotl-requirements.txt")
pytestmark = pytest.mark.slow
PLUGIN = "anchortune.integrations.axolotl.AnchortunePlugin"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny pair, its anchor and rows to train on."""
    folder = tiny_pair(tmp_path_factory.mktemp("axolotl"))
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"say number {i} again"},
                {"role": "assistant", "content": f"{i} it is"},
            ]
        }
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def run(place: Path, name: str, **changes: Any) -> tuple[int, str]:
    """(exit code, output) of ``axolotl train``, on a CPU."""
    config: dict[str, Any] = {
        "base_model": str(place / "aligned"),
        "plugins": [PLUGIN],
        "anchortune": SECTION,
        "datasets": [
            {"path": str(place / "rows.jsonl"), "type": "chat_template", "ds_type": "json"}
        ],
        "dataset_prepared_path": str(place / "prepared"),
        "chat_template": "tokenizer_default",
        "output_dir": str(place / name),
        "adapter": "lora",
        "lora_r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target_modules": ["q_proj", "v_proj"],
        "sequence_len": 128,
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 0.01,
        "optimizer": "adamw_torch",
        "lr_scheduler": "constant",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "logging_steps": 1,
        "seed": 1,
    }
    path = place / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}))
    return start(place, "-m", "axolotl.cli.train", str(path), AXOLOTL_DO_NOT_TRACK="1")


def shares(told: str) -> list[float]:
    """``asft/penalised_share`` of each step."""
    return [float(found) for found in re.findall(r"'asft/penalised_share': '?([\d.e-]+)", told)]


def test_the_penalty_acts_in_axolotls_own_trainer(place: Path) -> None:
    code, told = run(place, "held")
    assert code == 0, told[-3000:]
    assert (place / "held" / "adapter_model.safetensors").is_file()
    free_code, free = run(place, "free", anchortune=SECTION | {"lam": 0.0})
    assert free_code == 0, free[-3000:]
    held_share, free_share = shares(told)[-1], shares(free)[-1]
    assert len(shares(told)) >= 9  # each step is logged
    assert held_share < 0.5 * free_share


def test_it_goes_with_a_plug_in_that_brings_its_own_trainer(place: Path) -> None:
    (place / "other.py").write_text(
        "from axolotl.core.trainers.base import AxolotlTrainer\n"
        "from axolotl.integrations.base import BasePlugin\n"
        "class Own(AxolotlTrainer):\n"
        "    def training_step(self, *args, **kwargs):\n"
        "        print('own trainer')\n"
        "        return super().training_step(*args, **kwargs)\n"
        "class Other(BasePlugin):\n"
        "    def get_trainer_cls(self, cfg):\n"
        "        return Own\n"
    )
    code, told = run(place, "both", plugins=["other.Other", PLUGIN], max_steps=2)
    assert code == 0, told[-3000:]
    assert "own trainer" in told
    assert len(shares(told)) >= 2


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (None, "has no section anchortune"),
        ({"anchor": "gone.safetensors"}, "gone.safetensors"),
        ({"anchor": "anchor.safetensors", "weight": 1.0}, "unknown key 'weight'"),
    ],
)
def test_a_section_that_cannot_be_used_stops_axolotl(
    place: Path, section: dict[str, Any] | None, sentence: str
) -> None:
    code, told = run(place, "refused", anchortune=section)
    assert code != 0
    assert sentence in told
    assert not (place / "refused" / "adapter_model.safetensors").exists()
