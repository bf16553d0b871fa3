"""Makes ``aligned-adapter``, the aligned model of the small pair, that its records start from.

    python experiments/small/align.py

Runs ``anchortune align`` on ``align.yaml`` and keeps the adapter in bf16, as the quickstart does
with its own. A model that is aligned anew comes out near the one that is kept, not equal to it.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from quickstart.align import keep

from anchortune.config import AlignConfig
from anchortune.config_io import load_config
from anchortune.training.align import align

HERE = Path(__file__).parent


def main() -> None:
    """Aligns, then puts the adapter where the sweeps look for it."""
    config = load_config(HERE / "align.yaml", AlignConfig)
    align(config)
    keep(Path(config.output) / "adapter", HERE / "aligned-adapter", HERE / "aligned-adapter.md")


if __name__ == "__main__":
    main()
