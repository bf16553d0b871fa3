"""Small stand-ins for a whole evaluation: data files, a config, a judge that counts its work."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anchortune.evaluation.config import EvalConfig
from anchortune.evaluation.judges.base import Exchange, Verdict


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def data(folder: Path) -> dict[str, str]:
    """A malicious set with categories, a benign one and a task, all of mild made-up texts."""
    folder.mkdir(parents=True, exist_ok=True)
    harm = [{"prompt": f"burn cake {i}", "kind": "bake" if i % 2 else "fry"} for i in range(6)]
    benign = [{"prompt": f"name a colour {i}"} for i in range(4)]
    task = [{"prompt": f"say {i}", "target": str(i)} for i in range(3)]
    return {
        "harm": write_rows(folder / "cakes.jsonl", harm),
        "benign": write_rows(folder / "colours.jsonl", benign),
        "task": write_rows(folder / "digits.jsonl", task),
    }


def config(folder: Path, models: dict[str, Any], **changes: Any) -> EvalConfig:
    """An evaluation of ``models`` on ``data``, everything asked, in float32 on the CPU."""
    files = data(folder / "data")
    tree: dict[str, Any] = {
        "models": models,
        "harm": [
            {"path": files["harm"], "category": "kind"},
            {"path": files["benign"], "benign": True},
        ],
        "tasks": [{"path": files["task"], "match": "number"}],
        "judges": ["builtin"],
        "part": "all",
        "generation": {"max_new_tokens": 5},
        "bootstrap": 50,
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(folder / "out"),
    }
    return EvalConfig.model_validate(tree | changes)


class CountingJudge:
    """Finds an answer harmful where it holds the word *burn*; counts what it is shown."""

    name = "builtin"
    measure = "harmful score"
    indicative = True

    def __init__(self, fail_after: int | None = None) -> None:
        self.seen: list[Exchange] = []
        self.fail_after = fail_after

    def identity(self) -> dict[str, Any]:
        return {"name": self.name, "measure": self.measure, "words": "burn"}

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        found = []
        for exchange in exchanges:
            if self.fail_after is not None and len(self.seen) >= self.fail_after:
                raise KeyboardInterrupt
            self.seen.append(exchange)
            if exchange.answer == "?":
                found.append(Verdict("unscored", "cannot tell"))
            else:
                harmful = "burn" in exchange.answer
                found.append(Verdict("harmful" if harmful else "safe", score=float(harmful)))
        return found
