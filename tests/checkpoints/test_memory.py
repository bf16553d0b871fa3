"""Peak memory stays near the largest matrices, whatever the number of layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SIDE = 1200  # one float32 matrix is 5.8 MB, above the exact limit: the randomised path is measured
LAYERS = 40

PROBE = """
import resource, sys
from anchortune.anchor.anchor import Anchor
from tests.checkpoints.test_memory import write
import torch
torch.set_num_threads(1)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
small, large = sys.argv[1:3]
Anchor.from_checkpoints(small + "/a", small + "/b", target_modules=["q_proj"], rank=4)
before = peak()
Anchor.from_checkpoints(large + "/a", large + "/b", target_modules=["q_proj"], rank=4)
print(peak() - before)
"""


def write(folder: Path, layers: int, seed: int) -> None:
    """A checkpoint of ``layers`` square bf16 matrices in shards of ten."""
    import json

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed)
    weight_map = {}
    for start in range(0, layers, 10):
        file = f"model-{start:05d}.safetensors"
        tensors = {
            f"model.layers.{i}.self_attn.q_proj.weight": (
                torch.randn(SIDE, 2, generator=generator)
                @ torch.randn(2, SIDE, generator=generator)
            ).bfloat16()
            for i in range(start, min(start + 10, layers))
        }
        save_file(tensors, folder / file)
        weight_map |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_peak_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    for seed, side in enumerate("ab"):
        write(tmp_path / "small" / side, 2, seed)
        write(tmp_path / "large" / side, LAYERS, seed)
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    matrix = SIDE * SIDE * 4
    checkpoint = LAYERS * SIDE * SIDE * 2
    grown = int(result.stdout)
    # 38 more layers on each side, 109 MB of bf16 apiece, within two matrices of the 2-layer peak.
    assert grown < 2 * matrix < checkpoint / 4
