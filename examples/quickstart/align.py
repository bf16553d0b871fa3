"""Makes ``aligned-adapter``, which the quickstart ships: `make align-quickstart`.

Runs ``anchortune align`` on ``align.yaml`` and keeps the adapter's weights in bf16, so that they
stay small; the anchor is made from the very numbers that are kept.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from anchortune.config import AlignConfig
from anchortune.config_io import load_config
from anchortune.files import atomic_directory
from anchortune.training.align import align

HERE = Path(__file__).parent
ALIGNED = HERE / "aligned-adapter"
OUT = Path("runs/align-quickstart")


def keep(made: Path, folder: Path, card: Path) -> None:
    """Puts the adapter ``made`` into ``folder`` in bf16, with ``card`` as its README.

    Args:
        made: an adapter's folder, as PEFT saves it, on SmolLM2-135M-Instruct.
        folder: whole or as it was before, never half.
        card: Markdown.
    """
    with atomic_directory(folder) as new:
        weights = load_file(made / "adapter_model.safetensors")
        kept = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
        save_file(kept, new / "adapter_model.safetensors", metadata={"format": "pt"})
        settings = json.loads((made / "adapter_config.json").read_text(encoding="utf-8"))
        settings["base_model_name_or_path"] = "HuggingFaceTB/SmolLM2-135M-Instruct"
        text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
        (new / "adapter_config.json").write_text(text, encoding="utf-8")
        shutil.copy(card, new / "README.md")


def main() -> None:
    """Aligns, then puts the adapter where the quickstart looks for it."""
    align(load_config(HERE / "align.yaml", AlignConfig))
    keep(OUT / "adapter", ALIGNED, HERE / "aligned-adapter.md")


if __name__ == "__main__":
    main()
