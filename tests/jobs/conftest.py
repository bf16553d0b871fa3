"""A whole job on a tiny pair: base, its alignment as an adapter, a task, prompts, verdicts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from anchortune.config_io import validate
from anchortune.jobs.config import JobConfig
from anchortune.jobs.run import JobResult, run_job

#: The tiny models answer nothing right, six times.
PASSES, FAILS, OPEN = ({"min_accuracy": bound} for bound in (0.0, 0.9, 0.2))
Make = Callable[..., JobConfig]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def job_tree(folder: Path, base: Path, adapter: Path) -> dict[str, Any]:
    """The config of a job in ``folder`` that takes a few seconds, as YAML would give it."""
    say = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(16)]
    data = write_rows(folder / "task.jsonl", say)
    prompts = write_rows(folder / "bad.jsonl", [{"prompt": f"misdeed {i}"} for i in range(6)])
    task = write_rows(folder / "own.jsonl", [{"text": f"say {i}", "label": "ok"} for i in range(6)])
    own = {"prompt": "{text}", "target": "label", "match": "exact", "max_new_tokens": 4}
    return {
        "model": {"path": str(base), "adapter": str(adapter)},
        "data": [{"path": str(data)}],
        "compare_with": ["sft"],
        "penalty": {"operator": "subspace", "lam": 1.0},
        "lora": {"rank": 2, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "machine": {"device": "cpu", "dtype": "float32", "save_steps": 2},
        "evaluate": {
            "harm": [{"path": str(prompts), "label": "bad"}],
            "tasks": [{"path": str(task), "label": "own", **own}],
            "judges": [{"name": "refusal"}],
            "part": "all",
            "generation": {"max_new_tokens": 4},
            "bootstrap": 50,
        },
        "output": str(folder / "job"),
    }


def maker(tree: dict[str, Any]) -> Make:
    """Makes jobs of ``tree``; sections that are given change single keys of it."""

    def build(**changes: Any) -> JobConfig:
        made = dict(tree)
        for key, value in changes.items():
            both = isinstance(value, dict) and isinstance(made.get(key), dict)
            made[key] = made[key] | value if both else value
        return validate(made, JobConfig, "job.yaml")

    return build


@pytest.fixture
def tree(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> dict[str, Any]:
    """The config of a job that takes a few seconds."""
    return job_tree(tmp_path, llama_base, llama_adapter)


@pytest.fixture
def make(tree: dict[str, Any]) -> Make:
    """Makes jobs of ``tree``."""
    return maker(tree)


@dataclass(frozen=True)
class Passed:
    """A job that was run, with limits that it keeps; every test finds it as it was then."""

    make: Make
    root: Path
    first: JobResult

    @property
    def folder(self) -> Path:
        """The job's."""
        return self.root / "job"


@pytest.fixture(scope="session")
def _passed_once(
    tmp_path_factory: pytest.TempPathFactory, llama_base: Path, llama_adapter: Path
) -> tuple[Passed, Path]:
    root = tmp_path_factory.mktemp("passed") / "root"
    root.mkdir()
    make = maker(job_tree(root, llama_base, llama_adapter) | {"limits": PASSES})
    passed = Passed(make, root, run_job(make()))
    return passed, Path(shutil.copytree(root, root.with_name("as-it-was")))


@pytest.fixture
def passed(_passed_once: tuple[Passed, Path]) -> Passed:
    """A job that was run and passed, at the same place each time, for paths are in its hashes."""
    found, copy = _passed_once
    shutil.rmtree(found.root)
    shutil.copytree(copy, found.root)
    return found
