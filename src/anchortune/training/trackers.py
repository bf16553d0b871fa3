"""Trackers of experiments: what the trainer logs goes to those that the config names.

The trainer's own callbacks of transformers report; here is what they leave to chance: that the
package is there before any work, the run's name, where its files lie, and that it is closed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anchortune.config import AlignConfig, TrainConfig
from anchortune.errors import TrainingError

PROJECT = "anchortune"
"""What holds the runs of wandb and trackio where ``WANDB_PROJECT`` or ``TRACKIO_PROJECT`` is unset.
"""


def check_trackers(names: Sequence[str]) -> None:
    """Refuses trackers that transformers would not find.

    Args:
        names: of ``machine.report_to``.

    Raises:
        TrainingError: a tracker's package is not installed, or its integration is switched off.
    """
    if not names:
        return
    with contextlib.redirect_stdout(sys.stderr):  # transformers tells of WANDB_MODE on stdout
        from transformers.integrations import get_available_reporting_integrations

    found = get_available_reporting_integrations()
    for name in names:
        if name in found:
            continue
        off = os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() == "TRUE"
        if name == "mlflow" and off:
            raise TrainingError(
                "machine.report_to names mlflow, which the environment variable "
                "DISABLE_MLFLOW_INTEGRATION switches off; unset it, or leave mlflow out."
            )
        raise TrainingError(
            f"machine.report_to names {name}, which is not installed; pip install {name}, or leave "
            "it out."
        )


def run_name(output: str | Path, digest: str) -> str:
    """What a run is called in a tracker: its folder, and a mark that no other folder's run has.

    Args:
        output: the run's folder.
        digest: of the run's identity.
    """
    folder = Path(output).resolve()
    mark = hashlib.sha256(f"{digest} {folder}".encode()).hexdigest()[:8]
    return f"{'/'.join(folder.parts[-2:]).lstrip('/')}-{mark}"


def tracker_arguments(config: TrainConfig | AlignConfig, name: str) -> dict[str, Any]:
    """Keywords of ``transformers.TrainingArguments`` for the trackers of a config."""
    if not config.machine.report_to:
        return {}
    return {
        "report_to": list(config.machine.report_to),
        "run_name": name,
        "project": os.environ.get("TRACKIO_PROJECT", PROJECT),
    }


@contextlib.contextmanager
def tracking(names: Sequence[str], folder: Path, name: str) -> Iterator[None]:
    """Keeps the trackers' runs open, and closes those that were opened here.

    TensorBoard's and wandb's files lie in the run's folder; trackio and mlflow keep many runs in
    one store, which their own variables place. What they and the trainer print goes to stderr,
    for stdout is a command's result.

    Args:
        names: of ``machine.report_to``.
        folder: of the run.
        name: of the run.

    Raises:
        TrainingError: wandb or mlflow cannot open a run.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if "tensorboard" in names:
            default = {"TENSORBOARD_LOGGING_DIR": str(folder / "tensorboard")}
            stack.enter_context(_environment(default))
        if "wandb" in names:
            stack.enter_context(_wandb_run(folder, name))
        if "trackio" in names:
            stack.callback(_finish_trackio)
        if "mlflow" in names:
            stack.enter_context(_mlflow_run(name))
        yield


@contextlib.contextmanager
def _environment(defaults: dict[str, str]) -> Iterator[None]:
    """Sets variables that are not set, for a while: transformers reads them."""
    mine = {key: value for key, value in defaults.items() if key not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key in mine:
            os.environ.pop(key, None)


@contextlib.contextmanager
def _wandb_run(folder: Path, name: str) -> Iterator[None]:
    """A run of wandb, which transformers' callback takes up and would leave open."""
    import wandb

    if wandb.run is not None:  # whoever called us has one
        yield
        return
    place = Path(os.environ.get("WANDB_DIR", folder))
    place.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", name),
            dir=str(place),
            # What is printed is in our own log; wandb would send every line of the process.
            settings=wandb.Settings(console="off"),
        )
    except Exception as error:  # no login, no network: many kinds, and not all of them wandb's
        raise TrainingError(
            f"wandb opened no run ({error}); log in with `wandb login`, keep it on this machine "
            "with WANDB_MODE=offline, or take wandb out of machine.report_to."
        ) from None
    code = 1
    try:
        yield
        code = 0
    finally:
        run.finish(exit_code=code)


def _finish_trackio() -> None:
    """Closes the run that an evaluation after the training opens again."""
    import trackio

    if trackio.context_vars.current_run.get() is not None:
        trackio.finish()


@contextlib.contextmanager
def _mlflow_run(name: str) -> Iterator[None]:
    """A run of mlflow, which stays open for the evaluation after training."""
    import mlflow

    if mlflow.active_run() is not None:
        yield
        return
    try:
        if experiment := os.environ.get("MLFLOW_EXPERIMENT_NAME"):
            mlflow.set_experiment(experiment)
        mlflow.start_run(run_name=name)
    except Exception as error:
        raise TrainingError(
            f"mlflow opened no run ({error}); say where it keeps them with MLFLOW_TRACKING_URI, or "
            "take mlflow out of machine.report_to."
        ) from None
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    finally:
        mlflow.end_run(status=status)
