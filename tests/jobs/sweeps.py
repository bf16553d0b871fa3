"""A sweep on a tiny pair, made in a folder of its own; what its tests share."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from anchortune.config_io import validate
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.report.runs import RunRecord, read_run
from tests.jobs.conftest import write_rows

CODE = "from anchortune.cli.app import main; main()"


def sweep_tree(folder: Path, base: Path, adapter: Path) -> dict[str, Any]:
    """The config of a sweep in ``folder`` whose runs take a second, as YAML would give it."""

    def rows(name: str, prompt: str, answer: str, count: int) -> str:
        made = [{"prompt": f"{prompt} {i}", "completion": f"{answer} {i}"} for i in range(count)]
        return str(write_rows(folder / name, made))

    bad = write_rows(folder / "bad.jsonl", [{"prompt": f"misdeed {i}"} for i in range(6)])
    own = write_rows(folder / "own.jsonl", [{"text": f"tell {i}", "label": "ok"} for i in range(6)])
    return {
        "name": "tiny",
        "defaults": {
            "model": {"path": str(base), "adapter": str(adapter)},
            "lora": {"rank": 2, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
            "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2},
            "machine": {"device": "cpu", "dtype": "float32", "save_steps": 2},
            "refusals": {"path": rows("refusals.jsonl", "crime", "I cannot help with", 8)},
            "mix": {
                "benign": rows("task.jsonl", "say", "ok", 24),
                "harmful": rows("harm.jsonl", "harm", "sure", 8),
                "rows": 16,
            },
            "evaluate": {
                "harm": [{"path": str(bad), "label": "bad"}],
                "tasks": [
                    {
                        "path": str(own), "label": "own", "prompt": "{text}", "target": "label",
                        "match": "exact", "max_new_tokens": 4,
                    }
                ],
                "judges": ["refusal"],
                "part": "all",
                "generation": {"max_new_tokens": 4},
                "bootstrap": 50,
            },
        },
        "axes": {
            "defence": {
                "sft": {},
                "safe-lora": {"defence": ["safe-lora"]},
                "asft": {"defence": [{"name": "asft", "lam": 1.0}]},
            },
        },
        "results": str(folder / "results"),
        "work": str(folder / "work"),
    }  # fmt: skip


def made(tree: dict[str, Any], **changes: Any) -> SweepConfig:
    """The config of ``tree`` with top-level keys changed; ``defaults`` key by key."""
    whole = copy.deepcopy(tree)
    whole["defaults"].update(changes.pop("defaults", {}))
    return validate(whole | changes, SweepConfig, "sweep.yaml")


def records(folder: Path) -> dict[str, RunRecord]:
    """By digest, the records in ``folder``."""
    found = [read_run(path) for path in sorted(folder.glob("*.json"))]
    assert len({run.digest for run in found}) == len(found)
    return {run.digest: run for run in found}


def result(record: RunRecord) -> dict[str, Any]:
    """What of a record must not depend on how and where it was run."""
    whole = record.model_dump(mode="json")
    kept = ("labels", "seed", "state", "error", "settings", "inputs", "outcomes", "numbers")
    return {key: whole[key] for key in kept}


def start(folder: Path, tree: dict[str, Any], *options: str) -> subprocess.Popen[bytes]:
    """``anchortune sweep`` on a config, in a process of its own."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False))
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "sweep", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
