"""The six commands that take long, on a tiny pair: what each is given, and what comes of it.

A scene lies in one folder, for paths are part of what a run is; its outputs are taken away before
it is done again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from anchortune.files import sha256_file
from anchortune.record import read_record
from tests.jobs.conftest import PASSES, job_tree, write_rows
from tests.jobs.sweeps import records, result, sweep_tree

#: What of a record is not the result: when, how long, from which step it went on.
_VOLATILE = ("created", "timings", "platform")
_PACE = ("_runtime", "_per_second", "_time")


@dataclass(frozen=True)
class Scene:
    """One command.

    Attributes:
        root: its folder.
        words: of the command line.
        outputs: what it makes in ``root``.
        result: what came of it, as plain values; what is not the same in every run is left out.
    """

    root: Path
    words: tuple[str, ...]
    outputs: tuple[str, ...]
    result: Callable[[Path], Any]

    def clear(self) -> None:
        """Takes away what it made."""
        for name in self.outputs:
            path = self.root / name
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)

    def done(self) -> Any:
        """What came of it."""
        return self.result(self.root)


def _plain(folder: Path) -> dict[str, Any]:
    record = read_record(folder).model_dump(mode="json")
    kept = {key: value for key, value in record.items() if key not in _VOLATILE}
    kept["metrics"].pop("resumed_from_step", None)
    return kept


def _hashes(folder: Path) -> dict[str, str]:
    """Of every file below ``folder`` but for records, which say when it was."""
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "record.json"
    }


def _trained(folder: Path) -> dict[str, Any]:
    made = {
        name: _hashes(folder / name)
        for name in ("adapter", "adapter-trained", "adapter-on-base", "model")
        if (folder / name).exists()
    }
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    log = [{k: v for k, v in line.items() if not k.endswith(_PACE)} for line in lines]
    return {"made": made, "log": log, "record": _plain(folder)}


def _evaluated(folder: Path) -> dict[str, Any]:
    """Rows in any order: how they were batched is how far the run before came."""
    record = _plain(folder)
    for file in record["outputs"]["sha256"]:
        record["outputs"]["sha256"][file] = "by order"
    found: dict[str, Any] = {"record": record}
    for name, key in (("outputs.jsonl", "set"), ("verdicts.jsonl", "judge")):
        path = folder / name
        lines = path.read_text("utf-8").splitlines() if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        last = {(row["model"], row["set"], row["id"], row[key]): row for row in rows}
        found[name] = [last[place] for place in sorted(last)]
    return found


def _job_done(folder: Path) -> dict[str, Any]:
    arms = sorted(path.name for path in (folder / "train").iterdir())
    return {
        "released": _hashes(folder / "adapter"),
        "trained": {arm: _trained(folder / "train" / arm) for arm in arms},
        "eval": _evaluated(folder / "eval"),
        "gate": json.loads((folder / "gate.json").read_text()),
        "anchor": sha256_file(folder / "anchor.safetensors"),
        "superseded": (folder / "superseded").exists(),
    }


def _swept(root: Path) -> dict[str, Any]:
    runs = {digest: result(record) for digest, record in records(root / "results").items()}
    return {"runs": runs, "files": sorted(path.name for path in (root / "results").iterdir())}


def _written(root: Path, tree: Mapping[str, Any]) -> str:
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False))
    return str(path)


def _training(root: Path, base: Path, adapter: Path) -> dict[str, Any]:
    tree = job_tree(root, base, adapter)
    kept = {key: tree[key] for key in ("model", "data", "lora", "machine")}
    kept["lora"] = kept["lora"] | {"dropout": 0.1}  # so that the random state decides
    return kept | {
        "training": {"max_steps": 7, "batch_size": 4, "learning_rate": 1e-2},
        "eval_data": [{"path": str(write_rows(root / "held.jsonl", _HELD))}],
        "seed": 3,
        "output": str(root / "out"),
    }


_HELD = [{"prompt": f"tell {i}", "completion": f"fine {i}"} for i in range(4)]


def train(root: Path, base: Path, adapter: Path) -> Scene:
    """With the penalty, LoX before and SafeLoRA after: every folder that a training writes."""
    from anchortune.anchor.anchor import Anchor

    anchor = root / "anchor.safetensors"
    Anchor.from_checkpoints(adapter, base, target_modules=["q_proj", "v_proj"]).save(anchor)
    tree = _training(root, base, adapter) | {
        "anchor": {"path": str(anchor)},
        "defence": [{"name": "lox"}, {"name": "asft", "lam": 1.0}, {"name": "safe-lora"}],
    }
    return Scene(
        root, ("train", _written(root, tree)), ("out",), lambda place: _trained(place / "out")
    )


def align(root: Path, base: Path, adapter: Path) -> Scene:
    """With every weight trained."""
    tree = _training(root, base, adapter) | {"lora": None, "method": "sft"}
    tree["model"] = {"path": str(base)}
    return Scene(
        root, ("align", _written(root, tree)), ("out",), lambda place: _trained(place / "out")
    )


def anchor(root: Path, base: Path, adapter: Path) -> Scene:
    """Of all linear layers, out of a LoRA adapter."""
    output = root / "an.safetensors"
    words = ("anchor", "build", "--aligned", str(adapter), "--base", str(base), "-o", str(output))
    return Scene(
        root, words, ("an.safetensors",), lambda place: sha256_file(place / "an.safetensors")
    )


def evaluation(root: Path, base: Path, adapter: Path, keep: str = "text") -> Scene:
    """Two models, prompts and a task; the answers kept or not."""
    tree = job_tree(root, base, adapter)["evaluate"] | {
        "models": {
            "aligned": {"path": str(base)},
            "tuned": {"path": str(base), "adapter": [str(adapter)]},
        },
        "machine": {"device": "cpu", "dtype": "float32", "batch_size": 4},
        "keep": keep,
        "output": str(root / "out"),
    }
    return Scene(
        root, ("eval", _written(root, tree)), ("out",), lambda place: _evaluated(place / "out")
    )


def job(root: Path, base: Path, adapter: Path) -> Scene:
    """Anchor, two trainings, evaluation, gate, report, release."""
    tree = job_tree(root, base, adapter) | {"limits": PASSES}
    return Scene(
        root, ("run", _written(root, tree)), ("job",), lambda place: _job_done(place / "job")
    )


def sweep(root: Path, base: Path, adapter: Path) -> Scene:
    """Four runs, which share a mix, an anchor, a training and the reference's answers."""
    tree = sweep_tree(root, base, adapter)
    return Scene(root, ("sweep", _written(root, tree)), ("results", "work"), _swept)


SCENES: dict[str, Callable[[Path, Path, Path], Scene]] = {
    "train": train,
    "align": align,
    "anchor": anchor,
    "eval": evaluation,
    "eval-hash": lambda *given: evaluation(*given, keep="hash"),
    "eval-purge": lambda *given: evaluation(*given, keep="purge"),
    "run": job,
    "sweep": sweep,
}
