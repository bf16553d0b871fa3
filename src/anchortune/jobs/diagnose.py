"""``anchortune diagnose``: everything that a run's folder tells, gathered for the rules.

A run is a training's folder, a whole job's, a sweep's record of a run or its folder in the work
folder. What cannot be read is not an error: the checks that need it say that they did not look.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anchortune.config_io import load_config
from anchortune.errors import AnchortuneError, JobError, TrainingError
from anchortune.evaluation.results import Results
from anchortune.files import parse_json
from anchortune.jobs.config import JobConfig
from anchortune.jobs.diagnose_measures import (
    asked_same,
    decides_of,
    measured,
    measures_of,
    measures_of_cell,
    model_in,
    outcomes_in,
)
from anchortune.jobs.diagnose_training import (
    CONFIG_FILE,
    changed_files,
    listed,
    mapping,
    record_of,
    result_sha256,
    screened_rows,
    training_of,
    training_of_cell,
)
from anchortune.jobs.folder import JobFolder
from anchortune.record import RECORD_FILE, Record, versions
from anchortune.report.diagnosis.facts import Decides, Facts, Measured, Training
from anchortune.report.load import read_evaluation
from anchortune.report.runs import read_run
from anchortune.report.sweep_load import UNTRAINED

EVALUATED = "evaluated.json"
DEFAULT_ROWS = 32


@dataclass(frozen=True)
class Asked:
    """What is to be looked at besides the run itself.

    Attributes:
        evaluation: the folder of an evaluation that asked a training's result.
        model: which of its models is the run's; None: told by folder or hash.
        arm: which of a job's trainings; None: the main method's first.
        anchor: a file to hold the update against; None: the run's own.
        against: another run, whose result this one should repeat.
        gradients: compute the task's gradient at the start model.
        refusals: rows whose gradient is compared with it.
        rows: at most, of each source.
    """

    evaluation: Path | None = None
    model: str | None = None
    arm: str | None = None
    anchor: Path | None = None
    against: Path | None = None
    gradients: bool = False
    refusals: str | None = None
    rows: int = DEFAULT_ROWS


@dataclass
class _Found:
    """What has been gathered so far; ``folder`` is the training's, where there is one."""

    run: str
    folder: Path | None = None
    plain_folder: Path | None = None
    training: Training | None = None
    plain: Training | None = None
    measures: list[Measured] | None = None
    results: Results | None = None
    asked: bool | None = None
    decides: dict[str, dict[str, Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def gather(run: Path, asked: Asked | None = None) -> Facts:
    """All that can be known of a run without training or asking anything.

    Raises:
        AnchortuneError: it is no run, or what was asked for by name is not there.
    """
    asked = asked or Asked()
    found = _read(run, asked)
    facts = Facts(
        run=found.run,
        training=found.training,
        plain=found.plain,
        measures=found.measures,
        missing=found.missing,
        warnings=found.results.warnings if found.results is not None else None,
        agreements=found.results.agreements if found.results is not None else (),
        asked=found.asked,
        here=versions(),
        decides=found.decides,
        other=_other(asked.against),
    )
    facts = _with_files(facts, found)
    return _with_weights(facts, found, asked)


def _read(run: Path, asked: Asked) -> _Found:
    """The run by its kind."""
    if run.is_file() and run.name != RECORD_FILE:
        return _cell(run, asked)
    folder = run.parent if run.is_file() else run
    if not folder.is_dir():
        raise JobError(
            f"{run} is not there: give the output folder of anchortune train, align or run, or the "
            "record of a sweep's run"
        )
    if JobFolder(folder).is_job():
        return _job(folder, asked)
    if asked.arm is not None:
        raise JobError(f"--arm is of a whole job, and {run} is none; leave it out")
    if (folder / EVALUATED).is_file():
        return _work(folder, asked)
    if not (folder / CONFIG_FILE).is_file() and any(folder.glob("*.json")):
        raise JobError(
            f"{run} is no run; of a sweep's results, name one record, and of a job or a training "
            "the output folder"
        )
    found = _Found(f"{run} (training)", folder, training=training_of(folder, folder.name))
    if asked.evaluation is not None:
        _evaluated(found, asked.evaluation, asked.model, plain=None)
    else:
        found.missing["measures"] = (
            "no evaluation of it is known: give its folder with --eval, or diagnose the whole job"
        )
    found.missing["other"] = "no run to compare with was given (--against)"
    return found


def _job(folder: Path, asked: Asked) -> _Found:
    if asked.evaluation is not None or asked.model is not None:
        raise JobError(
            "--eval and --model are of a training; a job has its own evaluation, so leave them out"
        )
    config = load_config(folder / CONFIG_FILE, JobConfig)
    arms = {arm.name: arm for arm in config.arms}
    if asked.arm is not None and asked.arm not in arms:
        raise JobError(f"--arm {asked.arm} is not in {folder}; it has {', '.join(arms)}")
    arm = arms[asked.arm] if asked.arm is not None else config.main[0]
    where = JobFolder(folder)
    found = _Found(f"{folder} (job, arm {arm.name})")
    found.missing["other"] = "no run to compare with was given (--against)"
    try:
        found.training = training_of(where.train(arm.name), arm.name)
        found.folder = where.train(arm.name)
    except TrainingError:
        found.missing["training"] = f"the job has not trained {arm.name} yet"
    plain = next(
        (other for other in config.arms
         if other.seed == arm.seed and [getattr(one, "name", one) for one in other.how.chain]
         == ["sft"] and other.name != arm.name),
        None,
    )  # fmt: skip
    if plain is not None and (where.train(plain.name) / RECORD_FILE).is_file():
        found.plain_folder = where.train(plain.name)
        found.plain = training_of(found.plain_folder, plain.name)
    if found.training is not None and found.training.harmful is None:
        rows = screened_rows(_json(folder / "screen.json"))
        found.training = replace(found.training, harmful=rows)
    if (where.eval / RECORD_FILE).is_file():
        method = arm.method if config.seeds is not None else None
        _evaluated(found, where.eval, arm.name, plain.name if plain else None, method)
    else:
        found.missing["measures"] = "the job's evaluation is not complete"
    return found


def _evaluated(
    found: _Found, place: Path, model: str | None, plain: str | None, arm: str | None = None
) -> None:
    """Adds what an evaluation found of a model."""
    record, results = read_evaluation(place)
    made = None if found.training is None else result_sha256(found.training)
    if model is None:
        model = model_in(record, results, found.folder or place, made)
    elif model not in results.models:
        raise JobError(f"{model} is not in {place}; it has {', '.join(results.models)}")
    if arm is None:
        said = mapping(mapping(record.config.get("models")).get(model)).get("arm")
        arm = said if isinstance(said, str) else None
    found.measures = measures_of(results, model, arm, plain)
    found.results = results
    found.asked = asked_same(results, model, made)
    found.decides = decides_of(record, results, model)


def _cell(path: Path, asked: Asked) -> _Found:
    _refuse_eval(asked, path)
    run = read_run(path)
    if run.state != "complete":
        raise JobError(
            f"{path}: the run failed ({run.error}): run the sweep again with --retry-failed"
        )
    if run.labels.get("defence") in UNTRAINED:
        raise JobError(
            f"{path} is of the {run.labels['defence']} model as it was before any training: name "
            "the record of a trained one, beside which it is held"
        )
    found = _Found(f"{path} (a sweep's record)", training=training_of_cell(run))
    found.measures, plain = measures_of_cell(path, run)
    found.plain = None if plain is None else training_of_cell(plain)
    found.missing = {
        "lie": "a sweep's record holds no weights; its folder under work/runs leads to them",
        "gradients": "a sweep's record holds no weights",
        "files": "a sweep's record names no places of files",
        "other": "no run to compare with was given (--against)",
    }
    return found


def _work(folder: Path, asked: Asked) -> _Found:
    """A run's folder in a sweep's work folder: ``work/runs/<digest>``."""
    _refuse_eval(asked, folder)
    own = outcomes_in(folder / EVALUATED)
    aligned: list[Any] = []
    for file in sorted(folder.parent.parent.glob(f"reference/*/{EVALUATED}")):
        said = outcomes_in(file)
        if {one.set: set(one.items) for one in said} == {one.set: set(one.items) for one in own}:
            aligned = said
    found = _Found(f"{folder} (a sweep's run)", measures=measured(own, aligned))
    found.missing["other"] = "no run to compare with was given (--against)"
    found.missing["plain"] = "a sweep's work folder does not say which run is plain fine-tuning"
    identity = mapping(_json(folder / "eval" / "identity.json"))
    section = mapping(mapping(identity.get("models")).get("run"))
    made = Path(str((listed(section.get("adapter")) or [section.get("path")])[-1]))
    for training in (made.parent, folder.parent.parent / "train" / made.parent.name):
        if (training / CONFIG_FILE).is_file():
            found.folder, found.training = training, training_of(training, training.name)
            return found
    found.missing["training"] = "the run's training is not where its evaluation found it"
    return found


def _refuse_eval(asked: Asked, place: Path) -> None:
    for value, option in ((asked.evaluation, "--eval"), (asked.model, "--model"),
                          (asked.arm, "--arm")):  # fmt: skip
        if value is not None:
            raise JobError(f"{option} is not of a sweep's run, and {place} is one; leave it out")


def _with_files(facts: Facts, found: _Found) -> Facts:
    if found.folder is None:
        return facts
    changed, checked = changed_files(found.folder)
    missing = dict(facts.missing)
    if not checked:
        missing["files"] = "the run is not complete, so nothing says what its files were"
    return replace(facts, changed=changed, checked=checked, missing=missing)


def _with_weights(facts: Facts, found: _Found, asked: Asked) -> Facts:
    """The update beside its anchor, and on request the gradients."""
    missing = dict(facts.missing)
    missing.setdefault("gradients", "nobody asked (--gradients)")
    if found.folder is None:
        missing.setdefault("lie", facts.why("training"))
        if asked.gradients or asked.anchor is not None:
            raise TrainingError(
                f"--gradients and --anchor need a training's folder: {facts.why('training')}"
            )
        return replace(facts, missing=missing)
    from anchortune.jobs import diagnose_weights as weights
    from anchortune.landscape.run import read_run as read_training

    record = record_of(found.folder)
    lie = gradients = None
    try:
        run = read_training(found.folder)
        anchor = weights.anchor_of(run, asked.anchor, _anchor_sha256(record))
        lie = weights.lie_of(run, anchor, facts.training.penalty if facts.training else None)
    except AnchortuneError as error:
        if asked.anchor is not None or asked.gradients:
            raise
        missing["lie"] = str(error)
    else:
        if not lie.modules:
            missing["lie"] = "no module that the anchor holds has moved"
        if asked.gradients:
            gradients = weights.gradients_of(run, anchor, asked.rows, asked.refusals)
    plain = None if found.plain_folder is None else weights.energy_of(found.plain_folder)
    return replace(facts, lie=lie, gradients=gradients, plain_energy=plain, missing=missing)


def _anchor_sha256(record: Record | None) -> str | None:
    anchor = None if record is None else record.inputs.get("anchor")
    return str(anchor["sha256"]) if isinstance(anchor, dict) and "sha256" in anchor else None


def _other(place: Path | None) -> tuple[str, Decides, Decides] | None:
    """What decided the result of the run that this one should repeat."""
    if place is None:
        return None
    found = _read(place, Asked())
    trained = found.training.decides if found.training else {}
    if not trained and not found.decides:
        raise JobError(
            f"--against {place} is not complete, so nothing says what decided it: run it to its end"
        )
    return str(place), trained, found.decides


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
