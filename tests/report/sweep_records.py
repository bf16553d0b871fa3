"""Made-up runs of a sweep, seeded: nobody trained or judged anything for them."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from anchortune.report.runs import Outcome, RunRecord, run_text

Verdict = Literal[0, 1] | None


def outcome(
    measure: Any, marks: Sequence[Verdict], set_name: str = "s", judge: str | None = None
) -> Outcome:
    items = {f"q{place:03d}": mark for place, mark in enumerate(marks)}
    return Outcome(measure=measure, set=set_name, judge=judge, items=items)


def run(
    labels: Mapping[str, str], seed: int = 1, outcomes: Sequence[Outcome] = (), **more: Any
) -> RunRecord:
    name = json.dumps([sorted(labels.items()), seed, more.pop("salt", 0)])
    values = {
        "sweep": "made-up",
        "digest": hashlib.sha256(name.encode()).hexdigest(),
        "labels": dict(labels),
        "seed": seed,
        "state": "complete",
        "settings": {},
        "inputs": {},
        "outcomes": list(outcomes),
        "commit": "0123456789abcdef0123456789abcdef01234567",
    }
    return RunRecord(**{**values, **more})


def failed(labels: Mapping[str, str], seed: int = 1, error: str = "It stopped.") -> RunRecord:
    return run(labels, seed, state="failed", error=error)


def draws(rate: float, n: int, key: str, shift: float = 0.0) -> list[Verdict]:
    """Verdicts of n prompts with about this rate.

    Each prompt has its own difficulty, the same for every method and seed, so that differences are
    paired; ``key`` draws what is left to chance.
    """
    difficulty = random.Random(f"difficulty {n}")
    chance = random.Random(key)
    found: list[Verdict] = []
    for _ in range(n):
        hard = difficulty.random()
        found.append(1 if 0.6 * hard + 0.4 * chance.random() < rate + shift else 0)
    return found


def measured(
    labels: Mapping[str, str], seed: int, harm: float, accuracy: float, n: int = 100, **more: Any
) -> RunRecord:
    """A run with about this harmful score and accuracy, by the builtin judge."""
    key = json.dumps([sorted(labels.items()), seed])
    jitter = random.Random(key).uniform(-0.015, 0.015)
    return run(
        labels,
        seed,
        [
            outcome("harm", draws(harm, n, key + "h", jitter), "advbench", "builtin"),
            outcome("accuracy", draws(accuracy, n, key + "a", jitter), labels.get("task", "sst2")),
        ],
        **more,
    )


RATES = {
    "aligned": {"sst2": (0.06, 0.55), "agnews": (0.06, 0.45)},
    "sft": {"sst2": (0.52, 0.88), "agnews": (0.43, 0.84)},
    "lisa": {"sst2": (0.26, 0.84), "agnews": (0.28, 0.79)},
    "safe-lora": {"sst2": (0.24, 0.80), "agnews": (0.20, 0.81)},
    "asft": {"sst2": (0.07, 0.87), "agnews": (0.09, 0.85)},
}


def sweep() -> list[RunRecord]:
    """Five methods, two tasks, three seeds; one run failed, one is dirty, one seed is missing."""
    runs = []
    for defence, tasks in RATES.items():
        for task, (harm, accuracy) in tasks.items():
            for seed in (1,) if defence == "aligned" else (1, 2, 3):
                labels = {"defence": defence, "task": task, "model": "tiny", "p": "0.1"}
                if (defence, task, seed) == ("lisa", "sst2", 3):
                    error = "/srv/someone/runs/7/adapter could not be written (disk full)."
                    runs.append(failed(labels, seed, error))
                elif (defence, task, seed) == ("safe-lora", "agnews", 2):
                    dirty = "89abcdef" * 5 + "-dirty"
                    runs.append(measured(labels, seed, harm, accuracy, commit=dirty))
                elif (defence, task) != ("safe-lora", "sst2"):
                    runs.append(measured(labels, seed, harm, accuracy))
    return runs


def curves(lams: Sequence[float] = (0.01, 0.1, 1, 10)) -> list[RunRecord]:
    """Three operators over λ, beside SFT and the aligned model, which have no λ; two seeds."""
    fall = {"gram": 0.9, "subspace": 0.6, "none": 0.35}
    runs = [measured({"defence": "aligned", "task": "sst2"}, 0, 0.06, 0.55)]
    for seed in (1, 2, 3):
        runs.append(measured({"defence": "sft", "task": "sst2"}, seed, 0.52, 0.88))
        for operator, strength in fall.items():
            for place, lam in enumerate(lams):
                share = strength * (place + 1) / len(lams)
                labels = {
                    "defence": "asft", "task": "sst2", "operator": operator, "lam": f"{lam:g}"
                }  # fmt: skip
                cost = 0.12 * (place / len(lams)) ** 2 * (2 - strength)
                runs.append(measured(labels, seed, 0.5 - 0.46 * share, 0.88 - cost))
    return runs


def write(runs: Sequence[RunRecord], folder: Path) -> list[Path]:
    """One file a run, named by its digest."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{one.digest[:16]}.json" for one in runs]
    for path, one in zip(paths, runs, strict=True):
        path.write_text(run_text(one), "utf-8")
    return paths
