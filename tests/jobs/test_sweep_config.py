"""From a sweep's config to its cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import ConfigError
from anchortune.jobs.sweep_config import SweepConfig, label_of_value, merge
from tests.jobs.sweeps import made, sweep_tree


@pytest.fixture
def tree(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> dict[str, Any]:
    return sweep_tree(tmp_path, llama_base, llama_adapter)


def labels(config: SweepConfig) -> list[str]:
    return [" ".join(cell.labels.values()) for cell in config.cells()]


def test_the_grid_in_the_order_of_the_file(tree: dict[str, Any]) -> None:
    axes = {
        "defence": {"sft": {}, "lox": {"defence": "lox"}},
        "p": {"key": "mix.poison_ratio", "values": [0.0, 0.25]},
    }
    config = made(tree, axes=axes)
    assert labels(config) == ["sft 0", "sft 0.25", "lox 0", "lox 0.25"]
    last = config.cells()[-1].config
    assert last.mix is not None
    assert (last.mix.poison_ratio, last.mix.rows) == (0.25, 16)
    assert [section.name for section in last.defence] == ["lox"]


def test_without_a_defence_axis_the_chain_names_it(tree: dict[str, Any]) -> None:
    config = made(tree, axes={}, defaults={"defence": ["lox", {"name": "asft"}]})
    assert [cell.labels for cell in config.cells()] == [{"defence": "lox+asft"}]


def test_an_axis_may_be_there_for_some_cells_only(tree: dict[str, Any]) -> None:
    lam = {"key": "defence.0.lam", "values": [0.1, 1.0], "only": {"defence": "asft"}}
    config = made(tree, axes=tree["axes"] | {"lam": lam})
    assert labels(config) == ["sft", "safe-lora", "asft 0.1", "asft 1"]
    assert config.cells()[2].config.defence[0].lam == 0.1  # type: ignore[union-attr]


def test_null_takes_out_what_another_file_put_in(tree: dict[str, Any]) -> None:
    axes = tree["axes"]["defence"] | {"asft": None}
    assert labels(made(tree, axes={"defence": axes, "p": None})) == ["sft", "safe-lora"]


def test_several_keys_of_one_value(tree: dict[str, Any]) -> None:
    axis = {"key": ["lora.rank", "lora.alpha"], "values": [4]}
    [cell] = made(tree, axes={"rank": axis}).cells()
    assert cell.config.lora is not None
    assert (cell.config.lora.rank, cell.config.lora.alpha) == (4, 4)


def test_cells_left_out_and_cells_besides(tree: dict[str, Any]) -> None:
    axes = {
        "defence": {"sft": {}, "lox": {"defence": "lox"}},
        "p": {"key": "mix.poison_ratio", "values": [0.0, 0.25]},
    }
    changes = {"axes": axes, "skip": [{"defence": "lox", "p": 0.0}]}
    assert labels(made(tree, **changes)) == ["sft 0", "sft 0.25", "lox 0.25"]
    config = made(tree, **changes, also=[{"defence": "sft", "p": [0.5, 0.25]}])
    assert labels(config) == ["sft 0", "sft 0.25", "lox 0.25", "sft 0.5"]
    mix = config.cells()[-1].config.mix
    assert mix is not None
    assert mix.poison_ratio == 0.5


def test_a_cell_besides_has_its_value_to_the_last_digit(tree: dict[str, Any]) -> None:
    rate = {"key": "training.learning_rate", "values": [1e-4]}
    also = [{"rate": value} for value in (3e-6, 1.23456789e-4, "5e-7")]
    cells = made(tree, axes={"rate": rate}, also=also).cells()
    rates = [cell.config.training.learning_rate for cell in cells]
    assert rates == [1e-4, 3e-6, 1.23456789e-4, 5e-7]
    assert cells[1].labels["rate"] == "3e-06"


STEERED = {"name": "asft-alt", "lam": "auto", "steer": "probe"}
LAM: dict[str, Any] = {
    "defence": {"sft": {}, "asft": {"defence": [{"name": "asft"}]}, "lox": None},
    "lam": {"key": "defence.0.lam", "values": [0.1], "only": {"defence": ["asft", "lox"]}},
}


def test_an_axis_may_be_kept_to_what_was_taken_out_or_stands_besides(tree: dict[str, Any]) -> None:
    assert labels(made(tree, axes=LAM)) == ["sft", "asft 0.1"]
    rank = {"key": "lora.rank", "values": [4], "only": {"lam": 7}}
    config = made(tree, axes=LAM | {"rank": rank}, also=[{"defence": "asft", "lam": 7}])
    assert labels(config) == ["sft", "asft 0.1", "asft 7 4"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axes": {"p": {"key": "mix.poison", "values": [0.1]}}}, "unknown key 'mix.poison'"),
        ({"axes": {"d": {"x": {"defence": "lix"}}}}, "d x"),
        ({"axes": {"p": {"key": "mix.rows", "values": []}}}, "axes.p: give key, values"),
        ({"axes": {"p": {"key": "mix.rows", "values": [8, 8]}}}, "a value is given twice"),
        ({"axes": {"p": {}}}, "axes.p: give labels"),
        ({"axes": {"p": {"a": 1}}}, "axes.p.a: expected a label"),
        ({"axes": {"p": {"key": "lora.rank.x", "values": [1]}}}, "there is nothing under 'x'"),
        (
            {"axes": {"p": {"key": "mix.rows", "values": [8], "only": {"q": ["a"]}}}},
            "only names the axis 'q'",
        ),
        (
            {"axes": LAM | {"lam": {**LAM["lam"], "only": {"defence": "asfft"}}}},
            "axes.defence has no 'asfft'; there is sft, asft",
        ),
        ({"axes": LAM, "also": [{"defence": "sft", "lam": 7}]}, "'lam' is for none of the cells"),
        (
            {"axes": {"lam": {"key": "defence.1.lam", "values": [1]}}},
            "defence.1.lam: there is no 'defence' here that could have a place 1",
        ),
        (
            {"axes": {"d": {"x": {"defence": [STEERED]}}}},
            "steer: probe needs a probe section",
        ),
        ({"skip": [{"defence": "lisa"}]}, "axes.defence has no 'lisa'"),
        ({"also": [{"defence": "lisa"}]}, "axes.defence has no 'lisa'"),
        ({"skip": [{"defence": ["sft", "safe-lora", "asft"]}]}, "skip leaves no cell"),
        ({"defaults": {"seed": 1}}, "seed: give seeds, beside axes"),
        ({"defaults": {"penalty": {"anchor": "a"}}}, "penalty: name asft in defence"),
        ({"defaults": {"mix": None}}, "give either data or mix"),
    ],
)
def test_mistakes_are_told(tree: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(tree, **changes).cells()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": [1, 1]}, "seeds: one is given twice"),
        ({"skip": [{"task": "sst2"}]}, "skip: there is no axis 'task'"),
        ({"reference": ["sft"]}, "expected"),
        ({"axis": {}}, "did you mean 'axes'?"),
        ({"axes": {"seed": {"key": "lora.rank", "values": [1]}}}, "axes.seed: list the seeds"),
    ],
)
def test_mistakes_of_the_whole(tree: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        made(tree, **changes)
    assert said in str(caught.value)


def test_merging() -> None:
    tree: dict[str, Any] = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": None}
    merge(tree, {"a": {"b": 5}, "a.c.1.d": 7, "e.f": 8}, "here")
    assert tree == {"a": {"b": 5, "c": [1, {"d": 7}]}, "e": {"f": 8}}


def test_values_as_labels() -> None:
    values = [0.1, 1e-5, 1.0, 3, True, None, ["q_proj", "v_proj"], "x", 0.12345678]
    found = [label_of_value(value) for value in values]
    told = ["0.1", "1e-05", "1", "3", "true", "null", "q_proj+v_proj", "x", "0.12345678"]
    assert found == told
