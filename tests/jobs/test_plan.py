"""A job checked before any work: what is there already, what does not fit, what it takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from anchortune.anchor.anchor import Anchor
from anchortune.errors import AnchorError, JobError
from anchortune.jobs import plan
from anchortune.jobs.plan import plan_job
from anchortune.jobs.run import run_job, steps_of
from tests import tiny
from tests.jobs.conftest import Make, Passed


def states(planned: plan.JobPlan) -> dict[str, str]:
    return {part.name: part.state for part in planned.parts}


def test_what_is_done_is_told_and_costs_nothing(passed: Passed) -> None:
    planned = plan_job(passed.make())
    assert set(states(planned).values()) == {"complete"}
    assert (planned.seconds, planned.disk_bytes, planned.untimed) == (0, 0, [])
    changed = plan_job(passed.make(penalty={"lam": 2.0}))
    assert states(changed) == {
        "anchor": "complete", "train-sft": "complete", "train-asft": "new", "evaluate": "new",
        "release": "new",
    }  # fmt: skip
    more = plan_job(passed.make(seeds=[0, 1]))
    assert set(states(more)) == {
        "anchor", "train-sft-0", "train-sft-1", "train-asft-0", "train-asft-1", "evaluate",
        "release",
    }  # fmt: skip


def test_a_disk_that_is_too_small_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "_free", lambda folder: 10)
    with pytest.raises(JobError, match="GiB are free there; name a folder on another disk"):
        plan_job(make())


def test_an_anchor_yet_to_be_built_is_held_against_what_is_trained(
    make: Make, tmp_path: Path
) -> None:
    """GPT-2 stores its weights the other way round."""
    base, aligned = (tiny.tiny_gpt2(tmp_path / str(seed), seed, tokenizer=True) for seed in (1, 2))
    changes = {
        "model": {"path": str(aligned), "adapter": None},
        "base": str(base),
        "lora": {"target_modules": ["c_attn"]},
    }
    lines = plan_job(make(**changes)).lines()
    assert any("2 modules" in line for line in lines)
    assert any("operator subspace, side off, scaled, lam 1.0" in line for line in lines)
    with pytest.raises(AnchorError, match="c_attn"):
        plan_job(make(**changes, anchor={"target_modules": ["c_fc"]}))


def test_a_made_anchor_is_used_and_another_one_trains_its_arm_again(
    make: Make, tmp_path: Path, llama_base: Path, llama_aligned: Path
) -> None:
    path = tmp_path / "made.safetensors"
    changes = {
        "model": {"path": str(llama_aligned), "adapter": None},
        "anchor": str(path),
        "compare_with": [],
    }
    with pytest.raises(AnchorError, match=r"made\.safetensors is no file"):
        plan_job(make(**changes))
    Anchor.from_checkpoints(llama_aligned, llama_base, rank=4).save(path)
    job = make(**changes)
    assert "anchor" not in [step.name for step in steps_of(job)]
    run_job(job)
    assert states(plan_job(job))["train-asft"] == "complete"
    Anchor.from_checkpoints(llama_aligned, llama_base, rank=3).save(path)
    assert states(plan_job(job))["train-asft"] == "new"


def test_a_base_that_is_the_model_itself_is_seen(make: Make, llama_base: Path) -> None:
    model = {"path": str(llama_base), "adapter": None}
    with pytest.raises(JobError, match="holds the very weights of model"):
        plan_job(make(model=model, base=str(llama_base)))
