"""What a job may say, what it means, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchortune.config_io import dump_yaml, load_config, validate
from anchortune.errors import ConfigError, JobError
from anchortune.jobs.config import JobConfig
from anchortune.jobs.plan import check_limits

YAML = """
model: {path: org/aligned}
base: org/base
data: [{path: task.jsonl}]
compare_with: sft
penalty: {operator: subspace, lam: 1.0}
lora: {rank: 4, target_modules: [q_proj]}
evaluate:
  harm: [advbench]
  tasks: [sst2]
  judges: [builtin, refusal]
  generation: {max_new_tokens: 64}
limits: {max_harm_increase: 0.02, min_accuracy: 0.8}
seed: 1
output: runs/job
"""


def make(**changes: Any) -> JobConfig:
    import yaml

    return validate({**yaml.safe_load(YAML), **changes}, JobConfig, "job.yaml")


def test_a_job_of_twenty_lines(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(YAML)
    job = load_config(file, JobConfig)
    assert [(arm.name, arm.method, arm.seed) for arm in job.arms] == [
        ("sft", "sft", 1),
        ("asft", "asft", 1),
    ]
    assert [arm.name for arm in job.main] == ["asft"]
    assert job.anchor_targets == ["q_proj"]
    assert job.aligned_from is not None
    assert job.aligned_from.path == "org/base"
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(dump_yaml(job))
    assert load_config(resolved, JobConfig) == job


def test_arms_differ_in_nothing_but_the_penalty() -> None:
    job = make()
    plain, main = (job.training_of(arm, "a.safetensors", "o") for arm in job.arms)
    assert plain.penalty is None
    assert main.penalty is not None
    assert (main.penalty.anchor, main.penalty.operator) == ("a.safetensors", "subspace")
    assert main.model_copy(update={"penalty": None}) == plain
    assert plain.seed == 1


def test_every_method_is_trained_once_for_each_seed() -> None:
    job = make(seeds=[1, 2])
    assert [(arm.name, arm.seed) for arm in job.arms] == [
        ("sft-1", 1),
        ("sft-2", 2),
        ("asft-1", 1),
        ("asft-2", 2),
    ]
    assert [arm.name for arm in job.main] == ["asft-1", "asft-2"]


def test_the_base_of_an_aligned_adapter_is_what_it_lies_on() -> None:
    job = make(model={"path": "org/base", "adapter": "org/lora"}, base=None)
    assert job.aligned_from is not None
    assert job.aligned_from.path == "org/base"


def test_a_made_anchor_needs_no_base() -> None:
    job = make(base=None, anchor="made.safetensors")
    assert job.anchor_path == "made.safetensors"
    assert job.anchored


def test_plain_fine_tuning_needs_no_anchor() -> None:
    job = make(base=None, method="sft", compare_with=[])
    assert not job.anchored


def test_it_evaluates_on_the_device_it_trains_on() -> None:
    asked = {"tasks": ["sst2"]}
    job = make(machine={"device": "cpu", "dtype": "float32"}, evaluate=asked, limits=None)
    assert (job.evaluate.machine.device, job.evaluate.machine.dtype) == ("cpu", "float32")
    own = {**asked, "machine": {"dtype": "bfloat16"}}
    job = make(machine={"device": "cpu", "dtype": "float32"}, evaluate=own, limits=None)
    assert (job.evaluate.machine.device, job.evaluate.machine.dtype) == ("cpu", "bfloat16")


def test_the_papers_preset_reaches_the_penalty(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(YAML.replace("penalty: {operator: subspace, lam: 1.0}", "preset: paper"))
    job = load_config(file, JobConfig)
    assert (job.penalty.operator, job.penalty.scaled) == ("gram", False)
    assert job.training.epochs == 10


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": None}, "method asft needs an anchor: give base"),
        ({"method": "lisa"}, "method lisa needs safe answers: give refusals"),
        ({"method": "asft-alt"}, "method asft-alt needs a harmful anchor: give harmful_anchor"),
        ({"refusals": {"path": "r.jsonl"}}, "refusals is given, and no method of the job reads it"),
        ({"harmful_anchor": "h.safetensors"}, "harmful_anchor is given, and no method"),
        ({"method": ["lox", "lox"]}, "lox is given twice in one chain"),
        ({"method": ["asft", "sft"]}, "sft is fine-tuning with no defence"),
        ({"method": {"name": "lox", "alfa": 1}}, "did you mean 'alpha'?"),
        ({"method": {"name": "lox", "label": "aligned"}}, "'aligned' is the start model's name"),
        (
            {"compare_with": [{"name": "asft", "lam": 3.0}]},
            "two methods are called 'asft'; give one of them a label of its own",
        ),
        (
            {"harmful_anchor": {"path": "h", "pairs": 3}},
            "pairs is for making an anchor, but path names a made one",
        ),
        ({"harmful_anchor": {"pairs": 3}}, "give either path (a made harmful anchor) or data"),
        ({"anchor": "a.safetensors"}, "base is for building an anchor, but anchor names"),
        ({"compare_with": ["sft", "asft"]}, "'asft' would be trained twice"),
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"seeds": []}, "expected at least 1 item"),
        ({"anchor": {"revision": "main"}}, "no path is given"),
        (
            {"base": None, "anchor": {"path": "a", "rank": 3}},
            "rank is for building an anchor, but path names a made one",
        ),
        (
            {"model": {"path": "org/x", "adapter": "org/lora"}},
            "model.adapter lies on model.path, so that is the base, not org/base",
        ),
        ({"method": "other"}, "there is no 'other'"),
        (
            {"method": "lisa-base"},
            "there is no method 'lisa-base'; write {name: lisa, start: base}",
        ),
        ({"compare_with": ["sft", "along"]}, "there is no method 'along'; write {name: asft, side"),
        ({"evaluate": {"harm": ["advbench"]}}, "harm needs a judge"),
        ({"limit": {}}, "did you mean 'limits'?"),
        ({"limits": {"max_harm_increase": 2}}, "at most 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make(**changes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"limits": {}}, "limits holds none"),
        ({"evaluate": {"tasks": ["sst2"]}}, "limits.max_harm_increase needs a prompt set"),
        (
            {"evaluate": {"tasks": ["sst2"], "harm": ["advbench"], "judges": ["refusal"]}},
            "limits.max_harm_increase needs .*refusal is none",
        ),
        (
            {"evaluate": {"harm": ["advbench"], "judges": ["builtin"]}},
            "limits.min_accuracy needs a task",
        ),
        (
            {"evaluate": {"tasks": ["sst2"]}, "limits": {"min_coherence": 0.9}},
            "limits.min_coherence needs a prompt set",
        ),
        (
            {"limits": {"max_over_refusal": 0.1}},
            "limits.max_over_refusal needs the task xstest, or a benign set",
        ),
    ],
)
def test_a_limit_on_what_is_not_measured_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(JobError, match=said):
        check_limits(make(**changes))
    check_limits(make())
