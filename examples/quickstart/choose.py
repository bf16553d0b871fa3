"""How the quickstart's settings and the library's defaults were chosen: on the dev prompts.

``python examples/quickstart/choose.py sft gram:1 gram:0.1 … --seed 0`` runs the quickstart's job
once for each ``operator:lam[:rank]`` (or ``sft``) named, with its dev prompts and without limits,
and appends a line to ``results/quickstart-dev.jsonl``. A setting that has its line there is not run
again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from anchortune.config_io import load_config
from anchortune.evaluation.results import Results
from anchortune.jobs.config import JobConfig
from anchortune.jobs.run import run_job
from anchortune.record import read_record

JOB = Path(__file__).parent / "job.yaml"
RESULTS = Path("results/quickstart-dev.jsonl")
#: Name in the results' lines -> key of the measure. ``harmful`` of lines made before there was a
#: judge is one minus the refusal rate.
KEYS = {
    "harm_builtin": "harm:builtin:harmful",
    "refused": "refusal:harmful",
    "accuracy": "accuracy:sentiment",
    "benign_refused": "over_refusal:benign",
}
DEV = [
    "evaluate.harm.0.path=examples/quickstart/data/harmful_dev.jsonl",
    "evaluate.harm.1.path=examples/quickstart/data/benign_dev.jsonl",
    "evaluate.tasks.0.path=examples/quickstart/data/task_dev.jsonl",
]


def job_of(setting: str, seed: int, out: Path) -> JobConfig:
    """The quickstart's job with one setting, asked the dev prompts."""
    method, *values = setting.split(":")
    changed = ["compare_with=[]", "limits=null", "screen=null", f"seed={seed}", *DEV]
    changed.append(f"output={json.dumps(str(out / f'{setting}-{seed}'.replace(':', '-')))}")
    if method == "sft":
        return load_config(JOB, JobConfig, [*changed, "method=sft"])
    keys = ("lam", "rank")
    changed += [f"penalty.{key}={value}" for key, value in zip(keys, values, strict=False)]
    return load_config(JOB, JobConfig, [*changed, f"penalty.operator={method}"])


def line_of(setting: str, seed: int, results: Results) -> dict[str, Any]:
    """One line of the results: the rates of the setting's model, the last of the evaluation."""
    line: dict[str, Any] = {"setting": setting, "seed": seed}
    for name, key in KEYS.items():
        measure = results.measure(key)
        if measure is not None:
            figure = list(measure.figures.values())[-1].model_dump(mode="json")
            line[name] = {k: round(v, 4) for k, v in figure.items()}
    return line


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", nargs="+", help="sft, or operator:lam[:rank]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/choose"))
    args = parser.parse_args()
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    done = {(row["setting"], row["seed"]) for row in map(json.loads, lines)}
    for setting in args.settings:
        if (setting, args.seed) in done:
            continue
        job = run_job(job_of(setting, args.seed, args.out))
        results = Results.model_validate(read_record(job.folder / "eval").metrics)
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line_of(setting, args.seed, results)) + "\n")


if __name__ == "__main__":
    main()
