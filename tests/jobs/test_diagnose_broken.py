"""``diagnose`` on runs whose files say nonsense: a diagnosis or one sentence, never a traceback."""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from anchortune.anchor.anchor import Anchor
from anchortune.errors import AnchortuneError
from anchortune.jobs.diagnose import Asked, gather
from anchortune.report.diagnosis.rules import diagnose
from anchortune.training.train import train
from tests.jobs.conftest import Passed, write_rows
from tests.training.test_stage import make

RESULTS = Path(__file__).parents[2] / "results/small-first-pair"
ODD: list[Any] = [
    None, True, -1, 0, 10**400, 1e308, float("inf"), "", "x" * 50, "../../x", [], {}, ["a"],
    {"a": 1}, "\ud800", "1e-3", [None], {"sha256": 3},
]  # fmt: skip
FOUND = {"key": "", "judge": {}, "action": "report", "dropped": 0, "sources": [
    {"path": "d", "rows": 3, "judged": 3, "harmful": [{"place": "line 1"}], "unscored": 0}
]}  # fmt: skip


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs: Any = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, item in pairs:
        yield (*place, key)
        yield from places(item, (*place, key))


def spoilt(value: Any, rng: random.Random) -> Any:
    """A copy in which some parts are gone or nonsense."""
    made = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 5])):
        *above, last = rng.choice(list(places(made)) or [("x",)])
        part = made
        for key in above:
            part = part[key]
        if rng.random() < 0.3 and last in (part if isinstance(part, dict) else range(len(part))):
            del part[last]
        else:
            part[last] = copy.deepcopy(rng.choice(ODD))
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, llama_base: Path, llama_adapter: Path) -> Path:
    root = tmp_path_factory.mktemp("broken")
    data = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(16)]
    rows = write_rows(root / "d.jsonl", data)
    anchor = root / "anchor.safetensors"
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_adapter, llama_base, target_modules=targets).save(anchor)
    model = {"path": str(llama_base), "adapter": str(llama_adapter)}
    train(make(llama_base, rows, root / "run", model=model, penalty={"anchor": str(anchor)}))
    (root / "run/screen.json").write_text(json.dumps(FOUND))
    return root / "run"


def check(run: Path, **asked: Any) -> str:
    """How it ended: ``done`` or ``refused``; anything else is raised."""
    try:
        found = diagnose(gather(run, Asked(**asked)))
    except AnchortuneError:
        return "refused"
    assert found.exit_code in (0, 3)
    json.dumps(found.to_json())
    assert all("\n" not in line for line in found.lines())
    return "done"


@pytest.mark.parametrize("name", ["record.json", "screen.json", "log.jsonl", "config.yaml"])
def test_nonsense_in_a_training_s_files(run: Path, tmp_path: Path, name: str) -> None:
    rng = random.Random(name)
    whole = (run / name).read_text("utf-8")
    ends = set()
    for number in range(15):
        made = Path(shutil.copytree(run, tmp_path / str(number)))
        if name == "log.jsonl":
            lines = [json.dumps(spoilt(json.loads(line), rng)) for line in whole.splitlines()]
            (made / name).write_text("\n".join(lines) + rng.choice(["", '\n{"st', "\n\x00\n[]"]))
        elif name == "config.yaml":
            (made / "record.json").unlink()
            (made / name).write_text(yaml.safe_dump(spoilt(yaml.safe_load(whole), rng)))
        else:
            (made / name).write_text(json.dumps(spoilt(json.loads(whole), rng)))
        ends.add(check(made, **({"against": run} if number % 5 == 0 else {})))
    assert "done" in ends


def test_nonsense_in_a_sweeps_record(tmp_path: Path) -> None:
    rng = random.Random(0)
    [path] = RESULTS.glob("asft-sst2-s0-*.json")
    whole = json.loads(path.read_text("utf-8"))
    for outcome in whole["outcomes"]:
        outcome["items"] = dict(list(outcome["items"].items())[:6])
    ends = set()
    for number in range(30):
        made = tmp_path / f"{number}.json"
        made.write_text(json.dumps(spoilt(whole, rng)))
        ends.add(check(made))
        made.unlink()
    assert ends == {"done", "refused"}


@pytest.mark.parametrize("name", ["eval/record.json", "train/sft/record.json", "config.yaml"])
def test_nonsense_in_a_jobs_files(passed: Passed, name: str) -> None:
    rng = random.Random(name)
    file = passed.folder / name
    whole = yaml.safe_load(file.read_text("utf-8"))  # JSON is YAML
    dump = json.dumps if file.suffix == ".json" else yaml.safe_dump
    for _ in range(10):
        file.write_text(dump(spoilt(whole, rng)))
        assert check(passed.folder) in ("done", "refused")
