"""``align`` with ``method: grpo``: its rewards, its prompts, what it learns, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.config import AlignConfig
from anchortune.config_io import validate
from anchortune.errors import ConfigError, DataError
from anchortune.record import read_record
from anchortune.training import grpo
from anchortune.training.align import align
from anchortune.training.grpo import answers_harmless, refuses_harmful, reward_metrics
from anchortune.training.plan import plan_stage
from tests import tiny
from tests.training.test_stage import Killed, kill_at, same, tensors


@pytest.fixture
def prompts(tmp_path: Path) -> dict[str, str]:
    found = {}
    for kind, text in (("harmful", "break"), ("harmless", "bake")):
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("\n".join(json.dumps({"prompt": f"{text} {i}"}) for i in range(6)))
        found[kind] = str(path)
    return found


def make(start: Path, output: Path, prompts: dict[str, str], /, **changes: Any) -> AlignConfig:
    tree: dict[str, Any] = {
        "model": {"path": str(start)},
        "method": "grpo",
        "grpo": {**prompts, "group": 4, "max_new_tokens": 3},
        "output": str(output),
        "training": {"max_steps": 2, "batch_size": 8, "learning_rate": 1e-2},
        "machine": {"device": "cpu", "dtype": "float32"},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = tree[key] | value if both else value
    return validate(tree, AlignConfig, "test")


def said(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def test_refusing_is_rewarded_on_harmful_prompts_and_answering_on_harmless_ones() -> None:
    answers = said("I cannot help with that.", "Sure, here is how.", "", " … ")
    assert refuses_harmful(answers, [True] * 4) == [1.0, 0.0, 0.0, 0.0]
    assert answers_harmless(answers, [False] * 4) == [0.0, 1.0, 0.0, 0.0]
    assert refuses_harmful(answers, [False] * 4) == [None] * 4
    assert answers_harmless(answers, [True] * 4) == [None] * 4


def test_a_run_learns_what_is_rewarded_and_says_so(
    prompts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An untrained model knows no phrase: here both kinds want an answer that begins with a letter.
    for name in ("has_refusal", "_says_something"):
        monkeypatch.setattr(grpo, name, lambda text: text[:1].isalpha())
    # With a small head a LoRA update cannot move the odds of a token.
    start = tiny.tiny_llama(tmp_path / "m", seed=2, tokenizer=True, initializer_range=0.4)
    before = tensors(start)
    config = make(
        start,
        tmp_path / "o",
        {"harmful": prompts["harmful"], "harmless": prompts["harmless"]},
        grpo={"max_new_tokens": 1, "group": 8, "max_prompts": 4},
        training={"max_steps": 12, "batch_size": 32, "learning_rate": 1e-2},
        lora={"target_modules": "all-linear", "dropout": 0.0},
    )
    record = align(config)
    assert record == read_record(tmp_path / "o")
    assert (tmp_path / "o" / "adapter" / "adapter_model.safetensors").is_file()
    assert all(torch.equal(before[k], v) for k, v in tensors(start).items())
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    reward = record.metrics["reward"]
    for kind in ("refuses_harmful", "answers_harmless"):
        assert reward[kind]["last_tenth"] > reward[kind]["first_tenth"] + 0.5
    assert 0 <= reward["groups_alike"] < 1
    assert record.inputs["data"]["harmful"] == 4
    assert record.inputs["data"]["sequences"] == 8


@pytest.mark.parametrize("lora", [{"dropout": 0.0}, None], ids=["lora", "full"])
def test_resume_after_a_kill_equals_no_interruption(
    llama_aligned: Path,
    prompts: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: Any,
) -> None:
    monkeypatch.setattr(grpo, "has_refusal", lambda text: text[:1].isalpha())
    beta = 0.1 if lora else 0.0
    changes = {"lora": lora, "grpo": {"beta": beta, "group": 4}, "machine": {"save_steps": 1}}
    align(make(llama_aligned, tmp_path / "whole", prompts, **changes))
    config = make(llama_aligned, tmp_path / "cut", prompts, **changes)
    with monkeypatch.context() as patch:
        kill_at(patch, 2)
        with pytest.raises(Killed):
            align(config)
    record = align(config)
    assert record.metrics["resumed_from_step"] == 1
    made = "adapter" if lora else "model"
    assert same(tmp_path / "whole" / made, tmp_path / "cut" / made)


def test_the_plan_reads_the_prompts_and_says_what_its_time_leaves_out(
    llama_aligned: Path, prompts: dict[str, str], tmp_path: Path
) -> None:
    plan = plan_stage(make(llama_aligned, tmp_path / "o", prompts, grpo={"max_prompts": 5}))
    text = "\n".join(plan.lines())
    assert "5 of 6 rows, format harmful prompts (prompt), sampled 5" in text
    assert "2 steps of 8 rows" in text
    assert "leaves that out" in text
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"max_steps": None}}, "set training.max_steps"),
        ({"grpo": None}, "needs a grpo section"),
        ({"grpo": {"group": 3}}, "does not divide training.batch_size"),
        ({"grpo": {"group": 1}}, "at least 2"),
        ({"data": {"path": "x.jsonl"}}, "data is not read with method: grpo"),
        ({"lora": None, "grpo": {"beta": 0.1}}, "set it to 0"),
        ({"method": "sft"}, "data is missing"),
        ({"method": "sft", "data": {"path": "x.jsonl"}}, "grpo is not read with method: sft"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(
    tmp_path: Path, prompts: dict[str, str], changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make(tmp_path, tmp_path / "o", prompts, **changes)


def test_a_prompt_of_both_kinds_and_prompts_that_are_too_long_are_refused(
    llama_aligned: Path, prompts: dict[str, str], tmp_path: Path
) -> None:
    both = {"harmful": prompts["harmful"], "harmless": prompts["harmful"]}
    with pytest.raises(DataError, match=r"prompt 1 of .* is in grpo.harmful too"):
        plan_stage(make(llama_aligned, tmp_path / "o", both))
    with pytest.raises(DataError, match="longer than 20 tokens with its answer"):
        plan_stage(make(llama_aligned, tmp_path / "o", prompts, training={"max_length_tokens": 20}))


def test_the_other_methods_keep_the_identity_that_they_had(tmp_path: Path) -> None:
    tree = {"model": {"path": "m"}, "data": {"path": "d"}, "output": "o"}
    assert "grpo" not in validate(tree, AlignConfig, "test").science()


def test_reward_metrics_of_a_log() -> None:
    key = "rewards/refuses_harmful/mean"
    lines = [{"reward": 0.5, key: 0.1 * i, "frac_reward_zero_std": 0.5} for i in range(10)]
    found = reward_metrics([{"loss": 1.0}, *lines])
    assert found is not None
    assert found["refuses_harmful"] == {"first_tenth": 0.0, "last_tenth": pytest.approx(0.9)}
    assert found["answers_harmless"] == {"first_tenth": None, "last_tenth": None}
    assert found["groups_alike"] == 0.5
    assert reward_metrics([{"loss": 1.0}]) is None
