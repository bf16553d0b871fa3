"""What the tests of another project's program share: a tiny pair with its anchor, and a start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from anchortune import Anchor
from tests.tiny import tiny_llama

#: The section of their config that asks for the penalty, from the folder of `tiny_pair`.
SECTION: dict[str, Any] = {"anchor": "anchor.safetensors", "lam": 10.0}


def tiny_pair(folder: Path) -> Path:
    """``base``, ``aligned`` and their ``anchor.safetensors`` in ``folder``, which is returned."""
    for seed, name in enumerate(("base", "aligned")):
        tiny_llama(folder / name, seed, dtype=torch.float32, tokenizer=True)
    anchor = Anchor.from_checkpoints(folder / "aligned", folder / "base", rank=4)
    anchor.save(folder / "anchor.safetensors")
    return folder


def start(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    """(exit code, output) of this Python with ``words``, run in ``folder`` and without a GPU."""
    path = os.pathsep.join([str(folder), *sys.path])
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout
