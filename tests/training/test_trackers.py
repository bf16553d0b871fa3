"""Trackers: what the trainer logs appears in them, for our runs and for a stranger's trainer.

tensorboard, wandb, trackio and mlflow are no dependencies: where one is not installed, its test is
skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import ConfigError, TrainingError
from anchortune.training.plan import plan_stage
from anchortune.training.seam import attach
from anchortune.training.trackers import check_trackers, run_name, tracking
from anchortune.training.train import train
from tests.training.test_seam import Rows, adapted, anchor_for, arguments
from tests.training.test_stage import anchor, data, make

__all__ = ["anchor", "data"]  # fixtures

Make = Callable[..., Any]
SECRET = "hf_thisIsATokenThatNobodyMaySee"
SEEN = {"asft/penalty", "asft/lam", "asft/inside_share", "asft/penalised_share", "loss"}


@pytest.fixture
def config(llama_aligned: Path, data: Path, anchor: Path, tmp_path: Path) -> Make:
    """The config of a run with the penalty, in ``tmp_path / run``."""

    def made(*trackers: str, **changes: Any) -> Any:
        machine = {"device": "cpu", "dtype": "float32", "report_to": list(trackers)}
        return make(
            llama_aligned,
            data,
            tmp_path / "run",
            penalty={"anchor": str(anchor), "lam": 0.5},
            training={"epochs": 1},
            machine=machine,
            eval_data=str_rows(tmp_path),
            **changes,
        )

    return made


def str_rows(folder: Path) -> dict[str, str]:
    path = folder / "eval.jsonl"
    path.write_text('{"instruction": "another", "output": "row"}\n')
    return {"path": str(path)}


def scalars(folder: Path) -> dict[str, list[Any]]:
    """What TensorBoard's own reader finds in its event files, by name."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="tensorboard is not installed",
    )
    found: dict[str, list[Any]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*")):
        events = reader.EventAccumulator(str(file))
        events.Reload()
        for name in events.Tags()["scalars"]:
            found.setdefault(name, []).extend(events.Scalars(name))
    return found


def everything(folder: Path) -> bytes:
    return b"\n".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


def test_tensorboard_gets_what_the_log_gets(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    record = train(config("tensorboard"))
    found = scalars(tmp_path / "run" / "tensorboard")
    assert {f"train/{name}" for name in SEEN} <= found.keys()
    assert "eval/loss" in found
    assert [event.step for event in found["train/asft/lam"]] == [1, 2, 3]
    assert found["train/asft/lam"][0].value == 0.5
    last = record.metrics["last"]["asft/penalty"]
    assert found["train/asft/penalty"][-1].value == pytest.approx(last, rel=1e-6)
    assert SECRET.encode() not in everything(tmp_path / "run")
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    assert capsys.readouterr().out == ""


def test_a_tracker_is_no_part_of_a_runs_identity(config: Make, tmp_path: Path) -> None:
    record = train(config())
    assert not (tmp_path / "run" / "tensorboard").exists()
    # Complete, and read where the tracker is not installed.
    assert train(config("wandb")).created == record.created


def test_a_strangers_trainer_reports_the_penalty_by_itself(
    llama_aligned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from transformers import Trainer

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    args = arguments(tmp_path, report_to=["tensorboard"], max_steps=2)
    trainer = Trainer(adapted(llama_aligned), args, train_dataset=Rows())
    attach(trainer, anchor_for(llama_aligned), lam=0.5)
    trainer.train()
    found = scalars(tmp_path / "events")
    assert {f"train/{name}" for name in SEEN} <= found.keys()
    assert [event.step for event in found["train/asft/inside_share"]] == [1, 2]


def test_wandb_gets_it_offline_in_the_runs_folder(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", SECRET + "0" * 20)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    train(config("wandb"))
    assert wandb.run is None
    [file] = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    sent = file.read_bytes()
    assert all(f"train/{name}".encode() in sent for name in SEEN)
    assert b"eval/loss" in sent
    assert f"{tmp_path.name}/run-".encode() in sent
    assert SECRET.encode() not in everything(tmp_path / "run")
    assert capsys.readouterr().out == ""


def test_wandb_without_a_login_is_told_before_the_model_is_loaded(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")
    wandb.teardown()  # of another test's session, which was offline
    monkeypatch.setattr("anchortune.training.stage._load", lambda plan: pytest.fail("loaded"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TrainingError, match=r"wandb opened no run .*WANDB_MODE=offline"):
        train(config("wandb"))


def test_trackio_gets_it(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read at its import
    pytest.importorskip("trackio", reason="trackio is not installed")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    train(config("trackio"))
    sent = everything(tmp_path / "trackio")
    assert all(f"train/{name}".encode() in sent for name in SEEN)
    assert SECRET.encode() not in sent
    assert capsys.readouterr().out == ""


def test_mlflow_gets_it_in_one_run(
    config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    train(config("mlflow"))
    [run] = mlflow.search_runs(output_format="list", search_all_experiments=True)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run_name(tmp_path / "run", identity(tmp_path / "run"))
    assert SEEN | {"eval_loss"} <= run.data.metrics.keys()
    assert capsys.readouterr().out == ""


def identity(folder: Path) -> str:
    from anchortune.record import read_record

    return str(read_record(folder).numbers["identity"])


def test_a_tracker_that_is_not_installed_is_refused_in_the_plan(
    config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "transformers.integrations.get_available_reporting_integrations", lambda: ["tensorboard"]
    )
    check_trackers(["tensorboard"])
    with pytest.raises(TrainingError, match=r"names trackio, which is not installed; pip install"):
        plan_stage(config("trackio"))


@pytest.mark.parametrize(("value", "said"), [("TRUE", "switches off"), ("FALSE", "pip install")])
def test_a_switch_is_blamed_only_where_it_is_on(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = "transformers.integrations.get_available_reporting_integrations"
    monkeypatch.setattr(found, lambda: [])
    monkeypatch.setenv("DISABLE_MLFLOW_INTEGRATION", value)
    with pytest.raises(TrainingError, match=said):
        check_trackers(["mlflow"])


def test_a_tracker_that_nobody_knows_is_refused_by_its_name(
    llama_aligned: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"machine\.report_to.*expected tensorboard, wandb"):
        make(llama_aligned, data, tmp_path, machine={"report_to": "tensorbord"})


def test_one_name_stands_for_a_list(llama_aligned: Path, data: Path, tmp_path: Path) -> None:
    config = make(llama_aligned, data, tmp_path, machine={"report_to": "tensorboard"})
    assert config.machine.report_to == ["tensorboard"]


@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_what_transformers_prints_when_it_is_imported_is_no_result(
    trackers: list[str], tmp_path: Path
) -> None:
    """It tells of WANDB_MODE=offline with ``print``, into the JSON of a command."""
    script = (
        "import contextlib, pathlib\n"
        "from anchortune.training.trackers import check_trackers, tracking\n"
        f"with contextlib.suppress(Exception): check_trackers({trackers})\n"
        f"with tracking([], pathlib.Path({str(tmp_path)!r}), 'name'):\n"
        "    from transformers import Trainer\n"
        "print('result')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "result\n"
    assert "offline" in done.stderr


def test_two_folders_runs_have_two_names(tmp_path: Path) -> None:
    names = {run_name(tmp_path / a / "asft" / "0", d) for a in "xy" for d in ("1", "2")}
    assert len(names) == 4
    assert all(name.startswith("asft/0-") for name in names)


def test_a_users_own_variable_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "mine")
    with tracking(["tensorboard"], tmp_path, "name"):
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
        assert sys.stdout is sys.stderr
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == "mine"
