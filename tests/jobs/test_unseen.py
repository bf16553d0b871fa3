"""That what is reported on is not what was trained on, and steered nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import AnchortuneError, DataError
from anchortune.jobs.plan import plan_job
from anchortune.jobs.sweep import Sweep
from anchortune.jobs.sweep_inputs import disjoint
from anchortune.jobs.sweep_plan import check_sweep
from tests.jobs.conftest import job_tree, maker, write_rows
from tests.jobs.sweeps import made, sweep_tree

PROBE = "1 of the 2 prompts of the probe are in bad, which is reported on; give probe.prompts"
SAFE = "1 of the 2 requests of refusals are in bad, which is reported on; take them out"


@pytest.fixture
def asking(tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(a probe, refusals) that share a prompt with what is evaluated, in another spelling."""
    probe = write_rows(tmp_path / "probe.jsonl", [{"prompt": p} for p in ("Misdeed  3!", "other")])
    rows = [{"prompt": p, "completion": "I cannot."} for p in ("MISDEED 4", "other")]
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


def test_a_job_refuses_them_too(
    tmp_path: Path, llama_base: Path, llama_adapter: Path, asking: tuple[Any, Any]
) -> None:
    make, (probe, safe) = maker(job_tree(tmp_path, llama_base, llama_adapter)), asking
    with pytest.raises(DataError, match=PROBE):
        plan_job(make(probe=probe))
    with pytest.raises(DataError, match=SAFE):
        plan_job(make(compare_with=["bea"], refusals=[safe]))


def test_every_evaluation_set_is_kept_out_of_a_mix_by_name_on_the_hub_or_in_a_file(
    tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    tree = sweep_tree(tmp_path, llama_base, llama_adapter)
    asked = tree["defaults"]["evaluate"]
    asked["harm"] += [
        {"name": "harmbench"},
        {"path": "org/prompts", "split": "dev", "revision": "v2", "column": "ask"},
    ]
    asked["tasks"] += [{"name": "sst2"}, {"name": "gsm8k", "split": "train"}]
    [cell, *_] = made(tree).cells()
    mix = disjoint(cell.config).mix
    assert mix is not None
    found = [(p.path, p.subset, p.split, p.revision, p.columns) for p in mix.disjoint_from]
    assert found == [
        (str(tmp_path / "bad.jsonl"), None, "train", None, {}),
        ("walledai/HarmBench", "standard", "train", None, {}),
        ("org/prompts", None, "dev", "v2", {"prompt": "ask"}),
        (str(tmp_path / "own.jsonl"), None, "train", None, {"prompt": "text"}),
        ("stanfordnlp/sst2", None, "validation", None, {}),
        ("openai/gsm8k", "main", "train", None, {}),
    ]
