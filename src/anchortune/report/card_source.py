"""A run's folder -> what a model card tells: what was made, from what, and what was measured of it.

Read are records alone; no torch here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from anchortune.errors import AnchortuneError, DataError, EvaluationError, JobError
from anchortune.evaluation.results import Results
from anchortune.files import parse_json, sha256_file, sha256_text
from anchortune.record import RECORD_FILE, Record, read_record
from anchortune.report.load import read_evaluation
from anchortune.untrusted import stays_inside

Part = Literal["adapter", "adapter-on-base", "model"]
#: What a run may have made, the one that most readers want first.
PARTS: tuple[Part, ...] = ("adapter-on-base", "adapter", "model")
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_RELEASE = "release.json"
#: The Hub's oldest models have no organisation in front, as gpt2.
HUB_ID = re.compile(r"(?:[\w.-]+/)?[\w.-]+")


@dataclass(frozen=True)
class Base:
    """The weights that an adapter belongs on.

    Attributes:
        path: as the run's config names them.
        revision: the commit, for a Hub id.
        sha256: of the weights file; of several, over theirs, as ``record.json`` has it; None where
            no record says.
        file: the name of the GGUF file, where it is one.
        adapter: the identity of the alignment adapter that is merged into them first, if any.
    """

    path: str
    revision: str | None
    sha256: str | None
    file: str | None
    adapter: dict[str, Any] | None

    @property
    def hub_id(self) -> str | None:
        """Where it lies on the Hub; None for a folder, a file or a package."""
        return self.path if self.revision and HUB_ID.fullmatch(self.path) else None


@dataclass(frozen=True)
class Made:
    """What a run made, and everything that is known of it.

    Attributes:
        run: the folder that was named.
        folder: where the adapter, or the model, lies.
        part: what of the run it is.
        record: of the run that made it.
        config: resolved, of the whole job or of that run.
        command: the subcommand that did it all.
        method: how safety was kept, by name; ``sft`` where nothing kept it.
        base: what an adapter belongs on; of a model, what it was trained from.
        evaluation: the record of an evaluation that measured it.
        results: what that one found.
        model: what it is called there.
        gate: what the gate said; None where none was asked.
        screen: what a judge found in the training data, in numbers.
        system_prompt: without which it is not the model that was measured.
    """

    run: Path
    folder: Path
    part: Part
    record: Record
    config: dict[str, Any]
    command: str
    method: str
    base: Base | None
    evaluation: Record | None = None
    results: Results | None = None
    model: str | None = None
    gate: dict[str, Any] | None = None
    screen: dict[str, Any] | None = None
    system_prompt: str | None = None

    @property
    def stopped(self) -> bool:
        """Whether a gate did not let it through."""
        return self.gate is not None and self.gate.get("decision") != "passed"

    @property
    def parts(self) -> list[Part]:
        """What else of the run lies beside it."""
        return [name for name in PARTS if (self.folder.parent / name).is_dir()]


def read_made(
    run: str | Path, *, part: Part | None = None, evaluation: str | Path | None = None
) -> Made:
    """What lies in a run's folder: of a job, a training, ``project`` or ``extrapolate``.

    Args:
        run: the folder, or that of the adapter or model in it.
        part: which of several results; unset: ``adapter-on-base`` where there is one, for it needs
            nothing but the base.
        evaluation: folder of an evaluation that measured it, for what is no job.

    Raises:
        DataError: there is no record, or none that can be read.
        JobError: the run made no such thing.
        EvaluationError: the evaluation measured other weights, or the job has its own.
    """
    folder = Path(run).expanduser()
    with as_a_run_writes_it(folder):
        made = _read(folder, part, evaluation)
    if not stays_inside(made.folder, folder):
        raise JobError(f"{made.folder} leads out of {run}, so it is not what that run made.")
    return made


@contextlib.contextmanager
def as_a_run_writes_it(run: Path) -> Iterator[None]:
    """Tells in a sentence where a record holds something else than what a run writes.

    Raises:
        DataError: it does.
    """
    try:
        yield
    except AnchortuneError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"the records in {run} are not what a run writes ({type(error).__name__}: {error}); "
            "run it again, or name another."
        ) from error


def _read(folder: Path, part: Part | None, evaluation: str | Path | None) -> Made:
    record = read_record(folder)
    if record.kind == "job":
        if evaluation is not None:
            raise EvaluationError(
                f"{folder} is a job, with an evaluation of its own; leave --eval out."
            )
        return _of_job(folder, record, part)
    if record.kind == "eval":
        raise JobError(f"{folder} is an evaluation; name the run that made what it measured.")
    if (folder / ADAPTER_CONFIG).is_file() or (folder / "config.json").is_file():
        job = _job_of(folder)
        if job is not None and evaluation is None:
            return _of_job(*job, _as_part(folder, part))
        place, found = folder, _as_part(folder, part)
        gate = _gate_beside(folder) or _gate_above(folder.parent)
    else:
        found = _chosen(folder, part, folder)
        place, gate = folder / found, _gate_above(folder)
    made = replace(_of_training(folder, place, found, record), gate=gate)
    return made if evaluation is None else _measured(made, evaluation)


def _as_part(folder: Path, part: Part | None) -> Part:
    """What a folder that is itself a result is called."""
    name: Part = "adapter" if (folder / ADAPTER_CONFIG).is_file() else "model"
    if folder.name == "adapter-on-base":
        name = "adapter-on-base"
    if part not in (None, name):
        raise JobError(f"{folder} is one {name}; name the run's folder to choose {part}.")
    return name


def _chosen(place: Path, part: Part | None, run: str | Path) -> Part:
    there = [name for name in PARTS if (place / name).is_dir()]
    if part is None and there:
        return there[0]
    if part is not None and part in there:
        return part
    told = f"no {part}" if part is not None else "no adapter and no model"
    has = f", but {' and '.join(there)}" if there else ""
    raise JobError(f"{run} holds {told}{has}; run it to its end, or name another run.")


def _job_of(folder: Path) -> tuple[Path, Record] | None:
    """The job whose last result, released or rejected, is ``folder``; None for a copy of it."""
    for job in (folder.parent, folder.parent.parent):
        if not (folder / _RELEASE).is_file() or not (job / RECORD_FILE).is_file():
            continue
        record = read_record(job)
        if record.kind != "job":
            continue
        place = (job / str(record.outputs["release"]["path"])).parent
        if (place / folder.name).resolve() == folder.resolve():
            return job, record
    return None


def _gate_beside(folder: Path) -> dict[str, Any] | None:
    """What the gate said of a result that is not where its job put it: it goes along with it."""
    if not (folder / _RELEASE).is_file():
        return None
    note = parse_json((folder / _RELEASE).read_text(encoding="utf-8"))
    gate: dict[str, Any] | None = note["gate"]
    return gate


def _gate_above(run: Path) -> dict[str, Any] | None:
    """What the gate said of a training's result where a job trained it: that of its main arm."""
    job = run.parent.parent
    if run.parent.name != "train" or not (job / RECORD_FILE).is_file():
        return None
    record = read_record(job)
    if record.kind != "job":
        return None
    note = parse_json((job / record.outputs["release"]["path"] / _RELEASE).read_text("utf-8"))
    gate: dict[str, Any] | None = record.metrics.get("gate") if note["arm"] == run.name else None
    return gate


def _of_job(folder: Path, record: Record, part: Part | None) -> Made:
    place = (folder / str(record.outputs["release"]["path"])).parent
    chosen = _chosen(place, part, folder)
    note = parse_json((place / chosen / _RELEASE).read_text(encoding="utf-8"))
    return made_by_job(
        folder,
        place / chosen,
        chosen,
        arm=str(note["arm"]),
        config=record.config,
        gate=record.metrics.get("gate"),
        screen=record.outputs["steps"].get("screen", {}).get("outputs"),
    )


def made_by_job(
    run: Path,
    folder: Path,
    part: Part,
    *,
    arm: str,
    config: dict[str, Any],
    gate: dict[str, Any] | None,
    screen: dict[str, Any] | None,
) -> Made:
    """What a job made, with what its evaluation in ``run/eval`` says of it.

    Args:
        run: the job's folder.
        folder: the result, with the record of its training.
        part: what of the job it is.
        arm: what the evaluation calls it.
        config: the job's, resolved.
        gate: what the gate said; None where the job sets no limits.
        screen: what was found in the data, in numbers; None where nobody looked.

    Raises:
        DataError, EvaluationError: a record is missing or broken.
    """
    made = _of_training(run, folder, part, read_record(folder))
    evaluation, results = read_evaluation(run / "eval")
    return replace(
        made,
        config=config,
        command="run",
        method=_called(config.get("method")) or arm,
        evaluation=evaluation,
        results=results,
        model=arm if arm in results.models else None,
        gate=gate,
        screen=screen,
    )


def _called(method: Any) -> str | None:
    """The name of a job's method, which its record holds as it was written."""
    if isinstance(method, str):
        return method
    if isinstance(method, list):
        return "+".join(filter(None, map(_called, method)))
    if isinstance(method, dict):
        return method.get("label") or _called(method.get("chain")) or method.get("name")
    return None


def _of_training(run: Path, folder: Path, part: Part, record: Record) -> Made:
    return Made(
        run=run,
        folder=folder,
        part=part,
        record=record,
        config=record.config,
        command=record.kind,
        method=_method_of(record),
        base=_base_of(record),
        screen=_screen_of(record),
        system_prompt=record.outputs.get("system_prompt"),
    )


def _method_of(record: Record) -> str:
    config = record.config
    if record.kind == "align":
        return f"align ({config.get('method')})"
    if record.kind in ("project", "extrapolate"):
        return str((config.get("method") or {}).get("name", record.kind))
    names = [str(one["name"]) for one in config.get("defence") or [] if isinstance(one, dict)]
    penalty = config.get("penalty")
    if penalty:
        names.append("asft-alt" if penalty.get("side") == "along" else "asft")
    return "+".join(names) or "sft"


def _base_of(record: Record) -> Base | None:
    """What the result belongs on: the base, for a defence that starts there."""
    defence = record.inputs.get("defence") or {}
    found = defence.get("base") or record.inputs.get("model")
    if found is None:
        found = record.config.get("model")
        if not isinstance(found, dict):
            return None
        adapter = found.get("adapter")
        found = found | {"adapter": {"path": adapter} if adapter else None}
    only, sha256 = _weights_of(found)
    gguf = only if only.endswith(".gguf") else None
    return Base(str(found["path"]), found.get("revision"), sha256, gguf, found.get("adapter"))


def _weights_of(facts: dict[str, Any]) -> tuple[str, str | None]:
    """(name, SHA-256) of a model's one weights file; of several, no name and that over theirs."""
    files = facts.get("files") or {}
    return next(iter(files.items())) if len(files) == 1 else ("", facts.get("sha256"))


def _screen_of(record: Record) -> dict[str, Any] | None:
    found = record.inputs.get("screen")
    if not found:
        return None
    sources = found["sources"]
    return {
        "judge": found["judge"].get("name"),
        "indicative": bool(found["judge"].get("indicative")),
        "action": found["action"],
        "judged": sum(source["judged"] for source in sources),
        "harmful": sum(len(source["harmful"]) for source in sources),
        "unscored": sum(source["unscored"] for source in sources),
        "dropped": found["dropped"],
    }


def _measured(made: Made, evaluation: str | Path) -> Made:
    """``made`` with what an evaluation found, whose model must be these very weights."""
    record, results = read_evaluation(evaluation)
    held = _weights_hashes(made)
    elsewhere = []
    for name, facts in results.models.items():
        adapters = facts.get("adapters") or []
        its = adapters[-1].get("sha256") if adapters else facts.get("sha256")
        if its not in held:
            continue
        if not adapters or _on_its_base(made, facts):
            return replace(made, evaluation=record, results=results, model=name)
        elsewhere.append(name)
    if elsewhere:
        raise EvaluationError(
            f"{evaluation} measured {' and '.join(elsewhere)} on another base than {made.folder} "
            "belongs on; evaluate it there, or leave --eval out."
        )
    raise EvaluationError(
        f"{evaluation} measured {', '.join(results.models)}, none of which has the weights in "
        f"{made.folder}; evaluate these, or leave --eval out."
    )


def _on_its_base(made: Made, facts: dict[str, Any]) -> bool:
    """Whether an evaluated adapter lay on the weights it belongs on, as far as records say."""
    wanted, found = made.base.sha256 if made.base is not None else None, _weights_of(facts)[1]
    return None in (wanted, found) or wanted == found


def _weights_hashes(made: Made) -> set[str]:
    """As the records of models have it: over the hashes of the weights files.

    An adapter and the same one composed with the alignment's are one model on two bases.
    """
    if made.part == "model":
        files = sorted(made.folder.glob("*.safetensors"))
        return {sha256_text("".join(sha256_file(file) for file in files))}
    places = {made.folder, *(made.folder.parent / name for name in made.parts if name != "model")}
    held = (folder / ADAPTER_WEIGHTS for folder in places)
    return {sha256_text(sha256_file(file)) for file in held if file.is_file()}
