"""Names of ours that go: announced once, with the mend, and the old name works until then."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchortune import deprecations
from anchortune.cli.app import app
from anchortune.config import TrainConfig
from anchortune.config_io import load_config
from anchortune.deprecations import (
    AnchortuneDeprecation,
    Renamed,
    announce,
    renamed_keyword,
    with_new_options,
)
from anchortune.errors import ConfigError
from tests.report import made_up

KEY = Renamed("TrainConfig", "training.lr", "training.learning_rate", "0.3")
OPTION = Renamed("gate", "--most-harm", "--max-harm", "0.3")
CONFIG = "model: {path: m}\ndata: [{path: d.jsonl}]\noutput: out\ntraining: {%s}\n"


@pytest.fixture(autouse=True)
def _announced_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deprecations, "_announced", set())
    monkeypatch.setattr(deprecations, "_tell", None)
    monkeypatch.setattr(deprecations, "CONFIG_KEYS", (KEY,))
    monkeypatch.setattr(deprecations, "OPTIONS", (OPTION,))


def write(folder: Path, training: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(CONFIG % training, encoding="utf-8")
    return path


def test_a_renamed_key_is_read_and_announced_once(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: 3e-4")
    told = (
        f"^{path}: training.lr is deprecated and goes in version 0.3; use training.learning_rate.$"
    )
    with pytest.warns(AnchortuneDeprecation, match=told):
        assert load_config(path, TrainConfig).training.learning_rate == 3e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(path, TrainConfig)


def test_a_renamed_key_of_set_counts_too(tmp_path: Path) -> None:
    with pytest.warns(AnchortuneDeprecation, match="training.lr"):
        config = load_config(write(tmp_path, ""), TrainConfig, ["training.lr=2e-4"])
    assert config.training.learning_rate == 2e-4


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    told = "training.lr and training.learning_rate are one key; take training.lr out"
    with pytest.raises(ConfigError, match=told):
        load_config(write(tmp_path, "lr: 3e-4, learning_rate: 3e-4"), TrainConfig)


def test_the_new_name_and_other_configs_announce_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_config(write(tmp_path, "learning_rate: 3e-4"), TrainConfig)


def test_a_renamed_option_works_on_the_command_line(tmp_path: Path) -> None:
    folder = made_up.write(tmp_path / "eval")
    for given in (["--most-harm", "0.5"], ["--most-harm=0.5"]):
        deprecations._announced.clear()
        with pytest.warns(AnchortuneDeprecation, match="^gate: --most-harm is deprecated"):
            result = CliRunner().invoke(app, ["gate", str(folder), *given, "--model", "sft"])
        assert result.exit_code == 3, result.output


def test_the_command_line_tells_it_in_a_line_of_its_own() -> None:
    lines: list[str] = []
    deprecations.tell_with(lines.append)
    assert with_new_options(["--most-harm", "1", "--", "--most-harm"], "gate") == [
        "--max-harm", "1", "--", "--most-harm",
    ]  # fmt: skip
    assert lines == ["gate: --most-harm is deprecated and goes in version 0.3; use --max-harm."]


def test_a_renamed_keyword_points_at_its_caller() -> None:
    @renamed_keyword("lr", "learning_rate", "0.3")
    def step(*, learning_rate: float) -> float:
        return learning_rate

    with pytest.warns(AnchortuneDeprecation, match="lr= is deprecated") as caught:
        assert step(lr=0.5) == 0.5  # type: ignore[call-arg]
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="lr and learning_rate are one"):
        step(lr=0.5, learning_rate=0.5)  # type: ignore[call-arg]


def test_what_an_anchor_s_format_would_say() -> None:
    with pytest.warns(AnchortuneDeprecation, match="^a.safetensors: anchor format 1 is deprecated"):
        announce("anchor format 1", "format 2: save it again", "0.3", "a.safetensors")
