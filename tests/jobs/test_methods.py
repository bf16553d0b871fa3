"""Defences in jobs: how they are named, what each arm is trained with, and that it all runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anchortune.anchor.anchor import Anchor
from anchortune.config_defences import LisaSection
from anchortune.config_io import dump_yaml, load_config
from anchortune.jobs.config import JobConfig
from anchortune.jobs.plan import plan_job
from anchortune.jobs.run import run_job
from anchortune.jobs.status import read_status
from anchortune.record import read_record
from tests.jobs.conftest import Make, write_rows
from tests.jobs.test_config import make as hub_job

ROOT = Path(__file__).parents[2]


def test_a_chain_a_section_and_a_label(tmp_path: Path) -> None:
    job = hub_job(
        method=["lox", "asft"],
        compare_with=[
            "sft",
            "lisa",
            {"name": "lisa", "rho": 0.1, "label": "lisa-soft"},
            ["asft", {"name": "csulora", "strength": 2.0}],
            {"chain": ["asft", "csulora"], "label": "mended"},
        ],
        refusals={"path": "r.jsonl"},
    )
    names = ["sft", "lisa", "lisa-soft", "asft+csulora", "mended", "lox+asft"]
    assert [arm.name for arm in job.arms] == names
    assert [arm.name for arm in job.main] == ["lox+asft"]
    told = {arm.name: job.training_of(arm, "a.safetensors", "o") for arm in job.arms}
    assert told["sft"].defence == []
    assert told["sft"].refusals == []
    [soft] = told["lisa-soft"].defence
    assert isinstance(soft, LisaSection)
    assert soft.rho == 0.1
    assert told["lisa-soft"].refusals[0].path == "r.jsonl"
    both = told["lox+asft"]
    assert [section.name for section in both.defence] == ["lox"]
    assert both.anchor is not None
    assert both.anchor.path == "a.safetensors"
    assert both.penalty is not None
    # The job's penalty is AsFT's, wherever it stands.
    assert (both.penalty.anchor, both.penalty.lam) == ("a.safetensors", 1.0)
    assert told["mended"].penalty == both.penalty
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_yaml(job))
    assert load_config(resolved, JobConfig) == job


def test_keys_of_a_section_go_before_those_of_penalty() -> None:
    job = hub_job(
        method={"name": "asft", "lam": 3.0}, penalty={"lam": "auto", "off_budget": 0.1, "rank": 5}
    )
    penalty = job.training_of(job.main[0], "a", "o").penalty
    assert penalty is not None
    assert (penalty.lam, penalty.off_budget, penalty.rank) == (3.0, None, 5)


def test_asft_alt_goes_along_the_harmful_anchor() -> None:
    made = {"data": "h.jsonl", "pairs": 10, "method": "gradient"}
    job = hub_job(method="asft-alt", compare_with="asft", base="org/base", harmful_anchor=made)
    alt = job.training_of(job.main[0], "a", "o", "h").penalty
    plain = job.training_of(job.arms[0], "a", "o", "h").penalty
    assert alt is not None
    assert plain is not None
    assert (alt.anchor, alt.side) == ("h", "along")
    assert (plain.anchor, plain.side) == ("a", "off")
    settings = job.harmful_settings
    assert settings is not None
    assert (settings.pairs, settings.target_modules) == (10, ["q_proj"])
    assert hub_job(method="asft-alt", compare_with=[], harmful_anchor="h").harmful_settings is None
    # It needs no base model.
    alone = hub_job(method="asft-alt", compare_with=[], base=None, harmful_anchor="h")
    assert not alone.anchored


def test_lisa_from_the_base_gets_it() -> None:
    job = hub_job(
        method={"name": "lisa", "start": "base"}, compare_with=[], refusals={"path": "r.jsonl"}
    )
    assert [arm.name for arm in job.arms] == ["lisa-base"]
    base = job.training_of(job.main[0], "a", "o").base
    assert base is not None
    assert base.path == "org/base"


def test_a_finished_run_of_the_quickstart_is_still_that_run() -> None:
    """Hashes of what decides its arms, as they were before jobs knew defences."""
    job = load_config(ROOT / "examples" / "quickstart" / "job.yaml", JobConfig)
    found = {}
    for arm in job.arms:
        science = job.training_of(arm, "runs/quickstart/anchor.safetensors", "o").science()
        found[arm.name] = hashlib.sha256(json.dumps(science, sort_keys=True).encode()).hexdigest()
    assert found == {
        "sft": "6a8907d9caa08132d28038469224ca5372e8ba0783573797d3a6b89972611022",
        "asft": "fd08d0e186827fcdebe39294b7ee4c79a4b3c50ba7b1c46110b219d1d2362e35",
    }


@pytest.fixture
def defended(make: Make, tmp_path: Path) -> dict[str, Any]:
    """Changes of a job that takes it through every kind of defence."""
    harm = [{"prompt": f"harm {i}", "completion": f"sure {i}"} for i in range(6)]
    safe = [{"prompt": f"harm {i}", "completion": "no"} for i in range(20, 30)]
    return {
        "method": ["lox", "asft"],
        "compare_with": [
            "asft-alt",
            {"name": "lisa", "start": "base", "alignment_steps": 1, "finetune_steps": 1},
            {"name": "ptst", "system": "Be safe."},
            {"chain": ["asft", "csulora"], "label": "mended"},
        ],
        "refusals": {"path": str(write_rows(tmp_path / "safe.jsonl", safe))},
        "harmful_anchor": {
            "data": str(write_rows(tmp_path / "harm.jsonl", harm)),
            "method": "gradient",
            "rank": 3,
        },
    }


def test_a_plan_of_every_kind_needs_no_anchor_made(make: Make, defended: dict[str, Any]) -> None:
    plan = plan_job(make(**defended))
    arms = ["asft-alt", "lisa-base", "ptst", "mended", "lox+asft"]
    steps = ["anchor", "harmful-anchor", *(f"train-{arm}" for arm in arms), "evaluate", "release"]
    assert [part.name for part in plan.parts] == steps
    text = "\n".join(plan.lines())
    assert "one gradient pass on 6 pairs" in text
    assert "could not be compared" not in text
    assert "edits" not in text  # nobody knows how far before the anchor is there
    assert not make(**defended).output.startswith("eval")


@pytest.mark.slow
def test_a_job_of_every_kind_runs_and_is_not_repeated(
    make: Make, defended: dict[str, Any], tmp_path: Path
) -> None:
    config = make(**defended)
    result = run_job(config)
    folder = tmp_path / "job"
    assert Anchor.load(folder / "harmful.safetensors").metadata.harmful is not None
    assert not (folder / "harmful.safetensors.tune").exists()
    assert {step.state for step in read_status(folder).steps} == {"done"}
    models = read_record(folder / "eval").config["models"]
    assert models["ptst"]["system"] == "Be safe."
    assert models["mended"]["system"] is None
    # The base's adapter is asked on the base alone, every other on the aligned model.
    assert models["lisa-base"]["adapter"] == [str(folder / "train" / "lisa-base" / "adapter")]
    assert len(models["asft-alt"]["adapter"]) == 2
    penalty = read_record(folder / "train" / "asft-alt").inputs["penalty"]
    assert penalty["side"] == "along"
    # LoX's edit is in the adapter that is released.
    tensors = load_file(result.adapter / "adapter_model.safetensors")
    assert all(t.shape[0] > 2 for name, t in tensors.items() if "lora_A" in name)
    assert torch.stack([t.abs().max() for t in tensors.values()]).min() > 0
    made = result.record.inputs
    assert made["anchor_built"]["sha256"] == made["anchor"]["sha256"]
    run_job(config)
    assert {step.state for step in read_status(folder).steps} == {"skipped"}
    # The harmful anchor made another way is made anew, and so is what depends on it alone.
    defended["harmful_anchor"] |= {"method": "tune", "epochs": 1.0}
    run_job(make(**defended))
    anew = {step.name for step in read_status(folder).steps if step.state == "done"}
    assert {"harmful-anchor", "train-asft-alt", "evaluate"} <= anew
    assert not {"anchor", "train-mended", "train-lox+asft", "train-ptst"} & anew
