"""How the quickstart's settings and the library's defaults were chosen: on the dev prompts.

``python examples/quickstart/choose.py sft gram:1 gram:0.1 … --seed 0`` fine-tunes once for each
``operator:lam`` (or ``sft``) named, measures on the dev prompts, and appends a line to
``results/quickstart-dev.jsonl``. A setting that has its line there is not run again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from run import HARM, OVER, SKILL, build_anchor, evaluate, fine_tune, prepare_base, quiet

RESULTS = Path("results/quickstart-dev.jsonl")


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", help="sft, aligned, or operator:lam[:rank]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/choose"))
    args = parser.parse_args()
    quiet()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    done = {(row["setting"], row["seed"]) for row in map(json.loads, lines)}
    base = prepare_base(args.out)
    anchor = build_anchor(base, args.out)
    for setting in args.settings:
        if (setting, args.seed) in done:
            continue
        name = f"{setting.replace(':', '-')}-seed{args.seed}"
        adapter = None
        if setting == "sft":
            adapter = fine_tune(name, base, None, args.seed, args.out)
        elif setting != "aligned":
            operator, lam, *rank = setting.split(":")
            penalty = {"operator": operator, "lam": lam if lam == "auto" else float(lam)}
            if rank:
                penalty["rank"] = int(rank[0])
            adapter = fine_tune(name, base, anchor, args.seed, args.out, **penalty)
        rates = evaluate(name, base, adapter, "dev", args.out)
        row = {"setting": setting, "seed": args.seed}
        for key, measure in (("harmful", HARM), ("accuracy", SKILL), ("benign_refused", OVER)):
            row[key] = {k: round(v, 4) for k, v in rates[measure]._asdict().items()}
        log = args.out / name / "log.jsonl"
        if log.is_file():
            last = json.loads(log.read_text(encoding="utf-8").splitlines()[-1])
            row["update"] = {k: v for k, v in last.items() if k.startswith("asft/")}
        RESULTS.parent.mkdir(exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
