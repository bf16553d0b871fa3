"""The configs of ``experiments/basin`` are read, and are the twelve pairs that its README names."""

from __future__ import annotations

import importlib
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from anchortune.anchor.anchor import Anchor
from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import load_config
from anchortune.evaluation.config import EvalConfig
from anchortune.landscape.config import BasinConfig
from anchortune.maths.factors import Factors

FOLDER = Path(__file__).parents[1] / "experiments" / "basin"


@pytest.mark.parametrize(
    ("model", "method", "kind"),
    list(product(("smollm2", "gemma3"), ("sft", "dpo", "grpo"), ("lora", "full"))),
)
def test_each_pair_is_what_its_name_says(model: str, method: str, kind: str) -> None:
    name = f"{method}{'-full' if kind == 'full' else ''}"
    file = f"gemma3-{method}-{kind}" if model == "gemma3" else name
    config = load_config(FOLDER / f"{file}.yaml", AlignConfig)
    assert config.method == method
    assert (config.lora is None) == (kind == "full")
    assert ("gemma" in config.model.path) == (model == "gemma3")
    assert config.output == f"runs/basin/{model}-{method}-{kind}"
    if method == "grpo":
        assert config.training.max_steps is not None
        assert config.training.max_steps <= 50


def test_the_basins_are_read_and_the_map_shows_trainings_whose_commands_are_given() -> None:
    small, over_two, whole = (
        load_config(FOLDER / f"{name}.yaml", BasinConfig) for name in ("small", "map", "whole")
    )
    assert small.along == whole.along == ["aligned", "harmful", "random"]
    assert whole.scale == "whole"
    plain, *others = over_two.maps[0].runs.values()
    assert plain == load_config(FOLDER / "watched.yaml", TrainConfig).output
    commands = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"--set output={run} " in commands for run in others)
    asked = load_config(FOLDER / "eval.yaml", EvalConfig).models
    assert [model.run for model in asked.values()] == [None, plain, *others]


def test_every_config_is_one_of_them_and_the_watched_run_watches() -> None:
    config = load_config(FOLDER / "watched.yaml", TrainConfig)
    assert config.activations is not None
    assert config.machine.keep_checkpoints
    assert len(list(FOLDER.glob("*.yaml"))) == 12 + len(
        ("watched", "small", "map", "whole", "eval", "eval-aligned")
    )


def test_the_place_of_the_base_is_the_length_of_the_difference_by_that_of_the_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    base_place = importlib.import_module("base_place")
    (tmp_path / "base").mkdir()
    (tmp_path / "base/config.json").write_text("{}", "utf-8")
    weights = {"a.weight": torch.full((2, 2), 5.0), "b.weight": torch.full((2, 2), 2.0)}
    save_file(weights, tmp_path / "base/model.safetensors")
    modules = {
        module: Factors(
            torch.eye(2, len(sigma)), torch.tensor(sigma), torch.eye(2, len(sigma)), norm
        )
        for module, sigma, norm in (("a", [0.8, 0.6], 1.0), ("b", [2.0], 2.0))
    }
    Anchor(modules).save(tmp_path / "anchor.safetensors")
    found = base_place.places(str(tmp_path / "base"), tmp_path / "anchor.safetensors")
    assert found == pytest.approx([-0.1, -0.5])
