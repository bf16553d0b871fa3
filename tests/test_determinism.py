"""The same seed on the same machine gives the same bytes, in this process and in another one.

What is promised, and what is not, stands in ``docs/determinism.md``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchortune.anchor.anchor import Anchor
from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import validate
from anchortune.evaluation.config import EvalConfig
from anchortune.evaluation.evaluate import run_eval
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.builtin import BuiltinJudge
from anchortune.evaluation.judges.builtin_head import load_head
from anchortune.evaluation.plan import plan_eval
from anchortune.files import sha256_file
from anchortune.jobs.sweep import Sweep
from anchortune.report.sweep_format import render
from anchortune.report.sweep_load import read_runs
from anchortune.report.sweep_table import TableOptions, build
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage
from tests.evaluation.judges.test_builtin import EXCHANGES, FP32
from tests.evaluation.judges.test_builtin import _write as write_head
from tests.jobs.sweeps import made, result, sweep_tree
from tests.warm import Warm

Make = Callable[[Path, Path, Path, int], dict[str, Any]]
TRAINING = {"max_steps": 4, "batch_size": 4, "learning_rate": 1e-2}
MACHINE = {"device": "cpu", "dtype": "float32", "save_steps": 2, "keep_checkpoints": True}


def rows(path: Path, found: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    return str(path)


def stage(place: Path, config: Any) -> dict[str, Any]:
    """What a training leaves, its times apart."""
    record = run_stage(plan_stage(config))
    files = [*place.glob("*/*.safetensors"), *place.glob("*/tokenizer*"),
             *place.glob("checkpoints/*/*.safetensors")]  # fmt: skip
    return {
        "files": {str(path.relative_to(place)): sha256_file(path) for path in sorted(files)},
        "log": [timeless(json.loads(line)) for line in (place / "log.jsonl").open("rb")],
        "metrics": timeless(record.metrics),
    }


def timeless(value: Any) -> Any:
    """``value`` without what is measured with a clock."""
    if isinstance(value, dict):
        clock = ("time", "_s", "second", "per_second", "runtime")
        return {k: timeless(v) for k, v in value.items() if not k.endswith(clock)}
    return [timeless(one) for one in value] if isinstance(value, list) else value


def anchor(place: Path, base: Path, aligned: Path, seed: int) -> dict[str, Any]:
    found = {}
    for rank in (2, "full"):
        file = place / f"{rank}.safetensors"
        Anchor.from_checkpoints(
            aligned, base, target_modules=["q_proj", "v_proj", "down_proj"], rank=rank
        ).save(file)
        found[str(rank)] = sha256_file(file)
    return found


def train(place: Path, base: Path, aligned: Path, seed: int) -> dict[str, Any]:
    """With dropout, accumulation and the penalty: what draws and what sums."""
    file = place / "anchor.safetensors"
    Anchor.from_checkpoints(aligned, base, target_modules=["q_proj", "v_proj"], rank=2).save(file)
    data = [{"prompt": f"say {i}", "completion": "ok " * (i % 5 + 1)} for i in range(24)]
    tree = {
        "model": {"path": str(aligned)},
        "data": {"path": rows(place / "d.jsonl", data)},
        "penalty": {"anchor": str(file), "operator": "subspace", "lam": 1.0},
        "lora": {"rank": 4, "dropout": 0.1},
        "training": TRAINING,
        "machine": {**MACHINE, "micro_batch_size": 2},
        "seed": seed,
        "output": str(place / "run"),
    }
    return stage(place / "run", validate(tree, TrainConfig, "test"))


def align(place: Path, base: Path, aligned: Path, seed: int) -> dict[str, Any]:
    """From drawn answers (GRPO), the kind of training that draws most."""
    prompts = {
        kind: rows(place / f"{kind}.jsonl", [{"prompt": f"{kind} {i}"} for i in range(6)])
        for kind in ("harmful", "harmless")
    }
    tree = {
        "model": {"path": str(base)},
        "method": "grpo",
        "grpo": {**prompts, "group": 4, "max_new_tokens": 3},
        "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-2},
        "machine": MACHINE,
        "seed": seed,
        "output": str(place / "run"),
    }
    return stage(place / "run", validate(tree, AlignConfig, "test"))


def evaluate(place: Path, base: Path, aligned: Path, seed: int) -> dict[str, Any]:
    """Drawn answers, their verdicts and coherence, and the intervals of a bootstrap."""
    tree = {
        "models": {"base": {"path": str(base)}, "aligned": {"path": str(aligned)}},
        "harm": [{"path": rows(place / "h.jsonl", [{"prompt": f"burn {i}"} for i in range(6)])}],
        "judges": ["refusal"],
        "part": "all",
        "generation": {"max_new_tokens": 6, "temperature": 1.0, "seed": seed},
        "bootstrap": 50,
        "seed": seed,
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(place / "out"),
    }
    record = run_eval(plan_eval(validate(tree, EvalConfig, "test")))
    return {
        "files": {
            name: sha256_file(place / "out" / name) for name in ("outputs.jsonl", "verdicts.jsonl")
        },
        "metrics": record.metrics,
    }


def judge(place: Path, base: Path, aligned: Path, seed: int) -> dict[str, Any]:
    """Scores of the builtin judge, to the last bit."""
    write_head(place, base)
    exchanges = [*EXCHANGES, *(Exchange(f"q {i}", f"a {seed} " * i) for i in range(9))]
    found = BuiltinJudge(None, FP32, head=load_head(place)).judge(exchanges)
    return {"scores": [float(v.score or 0).hex() for v in found]}


KINDS: list[Make] = [anchor, train, align, evaluate, judge]


def in_a_child(kind: str, place: str, base: str, aligned: str, seed: int) -> None:
    """``kind`` in this process, what it found in a file."""
    found = globals()[kind](Path(place), Path(base), Path(aligned), seed)
    (Path(place) / "found.json").write_text(json.dumps(found, sort_keys=True))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_same_here_and_in_another_process(
    kind: Make, tmp_path: Path, llama_base: Path, llama_aligned: Path
) -> None:
    """The other process has other hashes of texts, another memory, and other things done before."""
    places = [tmp_path / name for name in ("child", "here", "other")]
    for place in places:
        place.mkdir()
    given = (str(llama_base), str(llama_aligned), 7)
    child = Warm(in_a_child, kind.__name__, str(places[0]), *given)
    here = kind(places[1], llama_base, llama_aligned, 7)
    assert child.wait(200) == 0, child.communicate()[1].decode()
    there = json.loads((places[0] / "found.json").read_text())
    assert there == json.loads(json.dumps(here, sort_keys=True))
    if kind is not anchor:  # which draws nothing
        assert kind(places[2], llama_base, llama_aligned, 8) != here


def test_a_sweep_and_its_table(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> None:
    """Once in order and once the other way round, in folders of other names."""
    tables, records = [], []
    for name, order in (("a", ["sft", "asft"]), ("b", ["asft", "sft"])):
        (tmp_path / name).mkdir()
        tree = sweep_tree(tmp_path / name, llama_base, llama_adapter)
        tree["axes"]["defence"] = {key: tree["axes"]["defence"][key] for key in order}
        found = run_sweep(made(tree))
        runs = read_runs([found])
        records.append({run.labels["defence"]: result(run)["outcomes"] for run in runs})
        text = render(build(runs, TableOptions(measures=("accuracy",))), "csv")
        tables.append(sorted(text.splitlines()))
    assert records[0] == records[1]
    assert tables[0] == tables[1]


def run_sweep(config: Any) -> Path:
    """Every run of it, in this process; where its records lie."""
    from anchortune.jobs.pool import in_this_process

    found = Sweep(config)
    found.adopt()
    in_this_process(found, None, lambda *_: None)
    assert found.counts()["complete"] == len(found.runs)
    return found.results
