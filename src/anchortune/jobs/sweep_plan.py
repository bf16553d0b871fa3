"""A sweep checked before any work: every cell, and one training of each kind planned in full."""

from __future__ import annotations

from typing import Any

from anchortune.config import DataSection, TrainConfig
from anchortune.config_io import validate
from anchortune.errors import AnchortuneError, ConfigError
from anchortune.evaluation.config import CandidateSection, EvalConfig
from anchortune.jobs.sweep import Run, Sweep
from anchortune.jobs.sweep_config import CellConfig
from anchortune.jobs.sweep_inputs import needs_of, without_pace
from anchortune.jobs.unseen import check_unseen


def check_sweep(sweep: Sweep) -> list[str]:
    """Plans what the runs share: each model with each kind of rows, and each evaluation.

    Nothing is written. Every mix is drawn, at its first seed; an anchor that is not there yet is
    planned without.

    Returns:
        Notes for people.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    check_reported(sweep)
    evaluations: dict[str, Run] = {}
    trainings: dict[str, Run] = {}
    for run in sweep.runs:
        cell = run.config
        evaluations.setdefault(repr((cell.model, _asked(cell))), run)
        if run.kind == "trained":
            rows = (cell.data, cell.mix)
            trainings.setdefault(repr((cell.model, cell.lora, cell.training, rows)), run)
    return [
        *(f"{run.line()}: {_check_evaluation(run)} answers a run" for run in evaluations.values()),
        *(f"{run.line()}: {_check_training(sweep, run)}" for run in trainings.values()),
    ]


def check_reported(sweep: Sweep) -> None:
    """Refuses a sweep whose probes or refusals ask what it reports on.

    Raises:
        ConfigError: naming the first such run.
        AnchortuneError: a run is none, or names a file that is not there.
    """
    beside: dict[str, Run] = {}
    for run in sweep.runs:
        if run.kind == "trained":
            cell = run.config
            beside.setdefault(repr((_asked(cell), cell.probe, _refusals(cell))), run)
    for run in beside.values():
        cell = run.config
        try:
            check_unseen(cell.probe, _refusals(cell), sweep.config.seeds, cell.evaluate)
        except AnchortuneError as error:
            raise _where(run, error) from None


def _asked(cell: CellConfig) -> Any:
    """What decides its evaluation, to tell evaluations apart."""
    return without_pace(cell.evaluate.model_dump(mode="json"))


def _refusals(cell: CellConfig) -> list[DataSection]:
    """Those that its methods read."""
    return cell.refusals if "refusals" in needs_of(cell.defence) else []


def _where(run: Run, error: AnchortuneError) -> ConfigError:
    return ConfigError(f"{run.line()}: {error}")


def _check_evaluation(run: Run) -> int:
    from anchortune.evaluation.plan import plan_eval

    cell = run.config
    model = cell.model
    section = CandidateSection(
        path=model.path,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        adapter=[] if model.adapter is None else [model.adapter],  # or it would be its own base
    )
    settings = dict(cell.evaluate) | {"models": {"aligned": section}, "output": "not-made"}
    try:
        return plan_eval(EvalConfig(**settings)).answers
    except AnchortuneError as error:
        raise _where(run, error) from None


def _check_training(sweep: Sweep, run: Run) -> str:
    """The plain training of a cell, planned on its rows."""
    import tempfile
    from pathlib import Path

    from anchortune.data.mix import make_mix
    from anchortune.training.plan import plan_stage

    cell = run.config
    kept = {"model", "lora", "training", "machine", "data", "eval_data"}
    tree = cell.model_dump(mode="json", include=kept)
    with tempfile.TemporaryDirectory() as folder:
        try:
            if cell.mix is not None:
                path = Path(folder) / "mix.jsonl"
                make_mix(cell.mix, run.seed, path)
                tree["data"] = [{"path": str(path)}]
            tree |= {"seed": run.seed, "output": str(Path(folder) / "train")}
            plan = plan_stage(validate(tree, TrainConfig, run.line()))
        except AnchortuneError as error:
            raise _where(run, error) from None
        trained, total = plan.parameters
        return (
            f"{total / 1e6:.1f} M parameters, {trained} trained, {plan.steps} steps, memory about "
            f"{plan.estimate.memory_bytes / 2**30:.1f} GiB"
        )
