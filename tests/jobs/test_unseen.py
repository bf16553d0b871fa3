"""That what is reported on is not what was trained on, and steered nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from anchortune.cli.app import app
from anchortune.errors import AnchortuneError, ConfigError, DataError
from anchortune.jobs.plan import plan_job
from anchortune.jobs.sweep import Sweep
from anchortune.jobs.sweep_inputs import disjoint, places, without_pace
from anchortune.jobs.sweep_plan import check_sweep
from tests.jobs.conftest import job_tree, maker, write_rows
from tests.jobs.sweeps import made, sweep_tree

PROBE = "1 of the 2 prompts of the probe are in bad, which is reported on; give probe.prompts"
SAFE = "1 of the 2 requests of refusals are in bad, which is reported on; give refusals"


@pytest.fixture
def asking(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a probe, refusals) that share a prompt with what is evaluated, in another spelling."""
    probe = write_rows(tmp_path / "probe.jsonl", [{"prompt": p} for p in ("Misdeed  3!", "other")])
    cued = "MISDEED 4\n\nAssistant:"
    rows = [{"prompt": p, "completion": "I cannot."} for p in (cued, "other")]
    safe = write_rows(tmp_path / "safe.jsonl", rows)
    return {"prompts": [{"path": str(probe)}]}, {"path": str(safe)}


def test_a_sweep_refuses_a_probe_and_refusals_that_ask_what_is_reported_on(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, asking: tuple[Any, Any]
) -> None:
    tree, (probe, safe) = sweep_tree(tmp_path, llama_base, llama_adapter), asking
    bea = {"defence": {"bea": {"defence": ["bea"]}}}
    for changes, axes, said in (
        ({"probe": probe}, tree["axes"], PROBE),
        ({"refusals": safe}, bea, SAFE),
    ):
        with pytest.raises(AnchortuneError) as caught:
            check_sweep(Sweep(made(tree, defaults=changes, axes=axes)))
        assert said in str(caught.value)
        assert str(caught.value).startswith("defence ")
    check_sweep(Sweep(made(tree, defaults={"refusals": safe})))  # none of its methods reads them
    check_sweep(Sweep(made(tree, defaults={"refusals": safe | {"max_rows": 1}}, axes=bea)))


def test_a_sweep_that_is_run_refuses_them_before_any_work(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, asking: tuple[Any, Any]
) -> None:
    tree = sweep_tree(tmp_path, llama_base, llama_adapter)
    tree["defaults"]["probe"] = asking[0]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    result = CliRunner().invoke(app, ["sweep", str(tmp_path / "sweep.yaml")])
    assert isinstance(result.exception, ConfigError)
    assert PROBE in str(result.exception)
    assert not (tmp_path / "work").exists()


def test_a_job_refuses_them_too(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, asking: tuple[Any, Any]
) -> None:
    make, (probe, safe) = maker(job_tree(tmp_path, llama_base, llama_adapter)), asking
    with pytest.raises(DataError, match=PROBE):
        plan_job(make(probe=probe))
    with pytest.raises(DataError, match=SAFE):
        plan_job(make(compare_with=["bea"], refusals=[safe]))


Sets = list[dict[str, Any]]


def left_out_of(tree: dict[str, Any], harm: Sets, tasks: Sets, mix: Any = ()) -> list[Any]:
    """What is kept out of the mix of a sweep that asks these besides its own."""
    tree = copy.deepcopy(tree)
    tree["defaults"]["evaluate"]["harm"] += harm
    tree["defaults"]["evaluate"]["tasks"] += tasks
    tree["defaults"]["mix"]["disjoint_from"] = list(mix)
    [cell, *_] = made(tree).cells()
    found = disjoint(cell.config).mix
    assert found is not None
    return [(p.path, p.subset, p.split, p.revision, p.columns) for p in found.disjoint_from]


def test_every_evaluation_set_is_kept_out_of_a_mix_by_name_on_the_hub_or_in_a_file(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    tree = sweep_tree(tmp_path, llama_base, llama_adapter)
    bad = (str(tmp_path / "bad.jsonl"), None, "train", None, {})
    own = (str(tmp_path / "own.jsonl"), None, "train", None, {"prompt": "text"})
    assert left_out_of(tree, [], []) == [bad, own]
    hub = {"path": "org/prompts", "split": "dev", "revision": "v2", "column": "ask"}
    harmbench = ("walledai/HarmBench", "standard", "train", None, {})
    assert left_out_of(tree, [{"name": "harmbench"}, hub], []) == [
        bad, harmbench, ("org/prompts", None, "dev", "v2", {"prompt": "ask"}), own,
    ]  # fmt: skip
    twice = [{"name": "harmbench"}, {"name": "harmbench", "wrapper": "dra", "label": "dra"}]
    assert left_out_of(tree, twice, []) == [bad, harmbench, own]
    sst2 = {"name": "sst2", "prompt": "Is {text} good?"}  # {text} is no column there
    mine = {"path": "org/mine", "prompt": "{a} and {b}", "target": "c", "match": "exact"}
    assert left_out_of(tree, [], [sst2, {"name": "gsm8k", "split": "train"}, mine]) == [
        bad, own,
        ("stanfordnlp/sst2", None, "validation", None, {}),
        ("openai/gsm8k", "main", "train", None, {}),
        ("org/mine", None, "test", None, {"prompt": "a"}),
    ]  # fmt: skip
    for unread in ({"name": "hatexplain"}, {"name": "hatexplain", "path": "org/copy"}):
        assert left_out_of(tree, [], [unread]) == [bad, own]


def test_another_split_of_a_set_that_a_mix_names_is_kept_out_too(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    tree = sweep_tree(tmp_path, llama_base, llama_adapter)
    named = [{"path": "openai/gsm8k", "subset": "main"}, str(tmp_path / "bad.jsonl")]
    found = left_out_of(tree, [], [{"name": "gsm8k"}], named)
    assert [(path, split) for path, _, split, _, _ in found if path == "openai/gsm8k"] == [
        ("openai/gsm8k", "train"), ("openai/gsm8k", "test"),
    ]  # fmt: skip
    assert sum(path.endswith("bad.jsonl") for path, *_ in found) == 1


def test_a_set_that_is_not_known_names_its_cell(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    tree = sweep_tree(tmp_path, llama_base, llama_adapter)
    axes = {"defence": {"sft": {}}, "task": {"a": {}, "b": {"evaluate.tasks": [{"name": "sst"}]}}}
    with pytest.raises(ConfigError, match="sft, b: tasks: there is no task 'sst'"):
        _ = Sweep(made(tree, axes=axes)).runs


def test_what_cells_hold_is_no_place_and_no_pace() -> None:
    tree = {"path": "a.json", "where": {"path": "b.json", "batch_size": 3}, "batch_size": 8}
    changed = {**tree, "path": "X"}
    assert places(tree, lambda where, name: "X") == changed
    assert without_pace(tree) == {key: tree[key] for key in ("path", "where")}
