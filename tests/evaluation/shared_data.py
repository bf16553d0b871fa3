"""Public research data that lies beside the repository where it is developed, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


def shared(name: str) -> Path:
    """The path of a shared file; skips the test where it is not there."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs the shared research data ({name}), which is not part of the repository")
    return path
