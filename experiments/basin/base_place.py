"""Where the base lies along the alignment direction of its pair, in the basin's unit.

    python experiments/basin/base_place.py BASE PAIR/anchor.safetensors [ANCHOR ...]

The base is the aligned model less dW, so under scale ``layer`` it lies at α = -||dW|| / ||W|| of
the aligned weight W, in each weight at another place: printed are the median, the least and the
greatest. W is taken to be as long as the base's: where dW is as short as it mostly is, one part in
a hundred, that is right to within one part in a hundred.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

from anchortune.anchor.format import read_anchor
from anchortune.checkpoints.source import open_checkpoint


def places(base: str, anchor: Path) -> list[float]:
    """α of the base in each weight of the anchor, along the kept part of its dW."""
    checkpoint = open_checkpoint(base)
    modules, _ = read_anchor(anchor)
    found = []
    for module, factors in modules.items():
        blocks = checkpoint.blocks(f"{module}.weight")
        length = math.sqrt(sum(float(block.square().sum()) for block in blocks))
        found.append(-float(factors.sigma.norm()) / length)
    return found


def main() -> None:
    """A line for each anchor."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("base")
    parser.add_argument("anchor", type=Path, nargs="+")
    arguments = parser.parse_args()
    for anchor in arguments.anchor:
        found = places(arguments.base, anchor)
        print(
            f"{anchor}: median {statistics.median(found):.4f}, from {min(found):.4f} to "
            f"{max(found):.4f}, {len(found)} weights"
        )


if __name__ == "__main__":
    main()
