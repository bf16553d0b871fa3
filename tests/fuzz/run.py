"""Fuzzes our parsers by coverage, with atheris, for so many seconds each: ``make fuzz``.

    python tests/fuzz/run.py --seconds 60 [HARNESS ...]

What it finds lies under ``--keep`` as ``HARNESS/crash-…``; run with that file for one input again:
``python tests/fuzz/run.py HARNESS --input FILE``. The exit code is 1 where something was found.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))


def fuzz(name: str, seconds: int, folder: Path, memory_mb: int) -> None:
    """Runs one harness in this process; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["anchortune"]):
        from tests.fuzz.harnesses import HARNESSES
    from tests.fuzz.seeds import seeds

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}", "-timeout=20", f"-rss_limit_mb={memory_mb}", "-max_len=20000",
        f"-artifact_prefix={folder}/", "-print_final_stats=1", "-seed=1",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(corpus), *options], HARNESSES[name])
    atheris.Fuzz()


def main() -> int:
    """One process a harness, so that each is found at fault by itself."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("harness", nargs="*", help="which; all where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each harness")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "fuzz", help="the folder")
    parser.add_argument("--memory-mb", type=int, default=3000, help="more is a finding")
    parser.add_argument("--input", type=Path, help="only this input, without atheris")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        fuzz(given.harness[0], given.seconds, given.keep / given.harness[0], given.memory_mb)
        return 0
    from tests.fuzz.harnesses import HARNESSES

    if given.input is not None:
        HARNESSES[given.harness[0]](given.input.read_bytes())
        return 0
    found = 0
    for name in given.harness or HARNESSES:
        words = [sys.executable, __file__, name, "--here", "--seconds", str(given.seconds)]
        words += ["--keep", str(given.keep), "--memory-mb", str(given.memory_mb)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, errors="replace")
        runs = re.search(r"number_of_executed_units:\s+(\d+)", done.stderr)
        found += done.returncode != 0
        why = f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        told = "nothing found" if done.returncode == 0 else why
        sys.stdout.write(f"{name}: {runs[1] if runs else '?'} executions, {told}\n")
        sys.stdout.flush()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
