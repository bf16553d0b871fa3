"""llama.cpp's own converter on our adapters: what it writes means the same update."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from anchortune.adapter.compose import compose, plain_factors, read_adapter, write_adapter
from tests import tiny

#: The folder of llama.cpp's source, where somebody has it.
VARIABLE = "ANCHORTUNE_LLAMA_CPP"
SOURCE = os.environ.get(VARIABLE)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SOURCE is None, reason=f"{VARIABLE} names no folder of llama.cpp's source"),
]


def converted(adapter: Path, base: Path, target: Path) -> tuple[float, dict[str, Any]]:
    """llama.cpp's alpha, and the matrices by its names, of an adapter that it converted."""
    script = Path(str(SOURCE)) / "convert_lora_to_gguf.py"
    command = [sys.executable, script, "--base", base, "--outfile", target, adapter]
    subprocess.run([str(part) for part in command], check=True, capture_output=True, timeout=600)
    from gguf import GGUFReader

    reader = GGUFReader(target)
    alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
    return alpha, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


def update_of(alpha: float, tensors: dict[str, Any], name: str) -> torch.Tensor:
    """What llama.cpp adds to a weight: alpha over the rank of that very pair, times B·A."""
    a, b = tensors[f"{name}.weight.lora_a"], tensors[f"{name}.weight.lora_b"]
    return torch.from_numpy(alpha / b.shape[1] * (b @ a))


@pytest.mark.parametrize("what", ["trained", "composed"])
def test_it_adds_what_peft_adds(tmp_path: Path, what: str) -> None:
    """Also where the alignment's adapter is of another rank, or on other modules."""
    base = tiny.tiny_llama(tmp_path / "base", seed=1, dtype=torch.float32)
    adapter = tiny.tiny_adapter(tmp_path / "trained", base, seed=2, r=2, lora_alpha=8)
    if what == "composed":
        first = tiny.tiny_adapter(
            tmp_path / "first", base, seed=3, r=3, target_modules=["v_proj", "down_proj"]
        )
        adapter = tmp_path / "composed"
        adapter.mkdir()
        write_adapter(
            adapter, *compose(read_adapter(first), read_adapter(adapter.parent / "trained"))
        )
    alpha, tensors = converted(adapter, base, tmp_path / "adapter.gguf")
    wanted = plain_factors(*read_adapter(adapter))
    names = {"self_attn.v_proj": "attn_v", "mlp.down_proj": "ffn_down"}  # which are not permuted
    checked = 0
    for module, (a, b) in wanted.items():
        _, _, layer, rest = module.split(".", 3)
        if rest in names:
            found = update_of(alpha, tensors, f"blk.{layer}.{names[rest]}")
            torch.testing.assert_close(found, b @ a, rtol=1e-5, atol=1e-7)
            checked += 1
    assert checked == {"trained": 2, "composed": 4}[what]
    assert 2 * len(wanted) == len(tensors)
