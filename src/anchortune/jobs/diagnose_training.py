"""What a training's folder, or the record of a sweep's run, tells ``anchortune diagnose``."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anchortune.config import PenaltySection
from anchortune.config_io import parse_yaml, validate
from anchortune.data.mix import FACTS_SUFFIX
from anchortune.data.named import local_path, name_for_records
from anchortune.data.screened import SCREEN_FILE
from anchortune.errors import AnchortuneError, DataError, TrainingError
from anchortune.files import parse_json, sha256_file
from anchortune.record import RECORD_FILE, Record, read_record
from anchortune.report.diagnosis.facts import Harmful, Training
from anchortune.report.load import read_rows
from anchortune.report.runs import RunRecord
from anchortune.training.health import review
from anchortune.untrusted import stays_inside

CONFIG_FILE = "config.yaml"
LOG_FILE = "log.jsonl"
STOPPED = "stopped.json"
#: Places and pace: they decide no result, or their hashes do.
_PLACES = {"path", "revision", "output", "machine", "anchor", "harmful_anchor", "preset"}
_COMPUTES = ("torch", "transformers", "peft", "trl", "accelerate", "anchortune")
#: How a weight of the penalty is called where an operator is not named.
_OPERATOR, _LAM = "subspace", 1.0


def config_of(folder: Path) -> dict[str, Any]:
    """The resolved config of a training's folder, as plain values.

    Raises:
        TrainingError: it is no training's folder.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise TrainingError(
            f"{folder} is no training's folder (it has no {CONFIG_FILE}): give the output folder "
            "of anchortune train, align or run, or the record of a sweep's run"
        )
    tree = parse_yaml(file.read_text(encoding="utf-8", errors="replace"), str(file))
    if not isinstance(tree, dict) or "training" not in tree:
        raise TrainingError(f"{file} is no training's config: it has no section training")
    return tree


def record_of(folder: Path) -> Record | None:
    """The record of a complete training; None while it is unfinished.

    Raises:
        DataError: there is one that cannot be read.
        TrainingError: it is of another command.
    """
    if not (folder / RECORD_FILE).is_file():
        return None
    record = read_record(folder)
    if record.kind not in ("train", "align"):
        raise TrainingError(
            f"{folder / RECORD_FILE} is of a run of kind {record.kind!r}: give a training's "
            "folder, a job's, or a sweep's record; an evaluation goes with --eval"
        )
    return record


def training_of(folder: Path, name: str) -> Training:
    """A training by its folder, complete or not.

    Raises:
        AnchortuneError: it is none, or its files cannot be read.
    """
    record = record_of(folder)
    tree = record.config if record is not None else config_of(folder)
    inputs: Mapping[str, Any] = record.inputs if record is not None else {}
    metrics: Mapping[str, Any] = record.metrics if record is not None else {}
    log = [_line(row) for row in read_rows(folder / LOG_FILE) if {"loss", "step"} <= row.keys()]
    log = [line for line in log if line["step"] is not None]
    anchor = _anchor_of(inputs)
    data = _data(inputs.get("data"))
    stopped = folder / STOPPED
    return Training(
        name=name,
        penalty=_penalty(inputs.get("penalty"), tree),
        seed=count(tree.get("seed")),
        complete=record is not None,
        start=None if anchor is None or "start" not in anchor else str(anchor["start"]),
        parents=_parents(anchor),
        log=log,
        health=_health(log, metrics),
        data=data,
        harmful=_screened(folder, inputs) or _mixed(data),
        last=_line(mapping(metrics.get("last"))) or (log[-1] if log else {}),
        metrics={key: number(metrics.get(key)) for key in ("steps", "epochs")},
        outputs={} if record is None else _texts(record.outputs.get("sha256")),
        stopped=mapping(_json(stopped)) if stopped.is_file() else None,
        warn_below=number(mapping(tree.get("probe")).get("warn_below")),
        adapted=tree.get("lora") is not None,
        versions={} if record is None else record.versions,
        decides={} if record is None else _decides(record),
    )


def training_of_cell(run: RunRecord) -> Training:
    """What a sweep's record says of its run's training; it holds neither log nor weights."""
    settings, numbers = run.settings, _line(run.numbers)
    named = map(mapping, listed(settings.get("defence")))
    section = next((one for one in named if one.get("name") in ("asft", "asft-alt")), None)
    rows, bad = numbers.get("rows"), numbers.get("harmful_rows")
    given = mapping(settings.get("anchor"))
    built = section is not None and section.get("name") == "asft" and not given.get("path")
    return Training(
        name=", ".join(run.labels.values()),
        penalty=None if section is None else _settled(section),
        seed=run.seed,
        start="aligned" if built else None,
        parents="the anchor that the sweep built from model and base",
        harmful=None
        if rows is None or bad is None
        else Harmful(count(bad), count(rows), "mix", True),
        last=numbers,
        metrics=numbers,
        adapted=settings.get("lora") is not None,
        versions=run.versions,
        decides={
            "settings": {**flat(settings), "seed": run.seed},
            "inputs": dict(run.inputs),
            "machine": {
                **{key: run.versions.get(key) for key in _COMPUTES},
                **flat({key: run.platform.get(key) for key in ("trained_on", "asked_on", "gpu")}),
            },
        },
    )


def changed_files(folder: Path) -> tuple[list[str], int]:
    """(what is no longer as a complete training's record says, how many files were looked at).

    Looked at are the data files, the anchor's and the result; the start model's weights are not,
    for reading all of a large model takes minutes.
    """
    record = record_of(folder)
    if record is None:
        return [], 0
    expected: list[tuple[str, Path, str, bool]] = []
    for key in ("data", "eval_data"):
        for source in map(mapping, listed(mapping(record.inputs.get(key)).get("sources"))):
            told = str(source.get("path"))
            try:
                expected.append((told, local_path(told), str(source.get("sha256")), False))
            except DataError:
                continue
    anchor = _anchor_of(record.inputs)
    if anchor is not None:
        file = str(anchor.get("path"))
        expected.append((file, Path(file).expanduser(), str(anchor.get("sha256")), False))
    made = folder / str(record.outputs.get("path"))
    for name, digest in _texts(record.outputs.get("sha256")).items():
        if stays_inside(made / name, folder):
            expected.append((f"{made.name}/{name}", made / name, digest, True))
    changed, count = [], 0
    for told, path, digest, ours in expected:
        if path.is_file():
            count += 1
            if sha256_file(path) != digest:
                changed.append(f"{told} holds other bytes than the record says")
        elif ours:
            count += 1
            changed.append(f"{told} is gone")
    return changed, count


def result_sha256(training: Training) -> str | None:
    """The hash under which an evaluation knows a training's result; None where it is not known."""
    names = sorted(training.outputs)
    if not names:
        return None
    return hashlib.sha256("".join(training.outputs[name] for name in names).encode()).hexdigest()


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested plain values by dotted key, without places and pace."""
    pairs: Any = ()
    if isinstance(value, Mapping):
        pairs = ((key, item) for key, item in value.items() if key not in _PLACES)
    elif isinstance(value, list):
        pairs = ((str(number), item) for number, item in enumerate(value))
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in pairs:
        found |= flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _health(log: list[dict[str, Any]], metrics: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """What the record holds of the training's health, or else what its log says now.

    Cut rows and harmful data have checks of their own.
    """
    held = metrics.get("health")
    # Where a GradScaler was at work, its first gradients overflow and are no fault.
    found = held if isinstance(held, list) else [one.summary() for one in review(log, scaled=True)]
    return [
        (str(one.get("told")), bool(one.get("stops")))
        for one in found
        if isinstance(one, dict) and one.get("kind") not in ("cut-rows", "harmful-data")
    ]


def _anchor_of(inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The facts of the penalty's anchor, or of the one that a defence was given."""
    defence = inputs.get("defence")
    given = defence if isinstance(defence, dict) else {}
    for found in (inputs.get("anchor"), given.get("anchor"), given.get("harmful_anchor")):
        if isinstance(found, dict):
            return found
    return None


def _parents(anchor: Mapping[str, Any] | None) -> str:
    if anchor is None:
        return "the anchor"
    sides = [str(mapping(anchor.get(side)).get("id")) for side in ("aligned", "base")]
    place = name_for_records(str(anchor.get("path")))
    return f"{place} was built from {sides[0]} and {sides[1]}"


def _penalty(resolved: Any, tree: Mapping[str, Any]) -> dict[str, Any] | None:
    """The penalty's settings with every default, from the record or else from the config.

    Raises:
        ConfigError: they are none.
    """
    section = resolved if resolved is not None else tree.get("penalty")
    return None if section is None else _settled(mapping(section))


def _settled(section: Mapping[str, Any]) -> dict[str, Any]:
    keys = set(PenaltySection.model_fields) - {"steer", "probe_target", "off_budget"}
    known = {key: value for key, value in section.items() if key in keys}
    found = validate({"anchor": "", **known}, PenaltySection, "penalty").model_dump(mode="json")
    found["operator"] = found.get("operator") or _OPERATOR
    found["lam"] = _LAM if found.get("lam") is None else found["lam"]
    if section.get("name") == "asft-alt":
        found["side"] = "along"
    return found


def screened_rows(value: Any) -> Harmful | None:
    """What a ``screen.json`` says; None where it is none."""
    try:
        sources = value["sources"]
        judged = sum(int(source["judged"]) for source in sources)
        harmful = sum(len(source["harmful"]) for source in sources)
        return Harmful(harmful, judged, "screen", value["action"] != "drop")
    except (KeyError, TypeError, ValueError):
        return None


def _screened(folder: Path, inputs: Mapping[str, Any]) -> Harmful | None:
    value = inputs.get("screen")
    file = folder / SCREEN_FILE
    if value is None and file.is_file():
        value = _json(file)
    return None if value is None else screened_rows(value)


def _mixed(data: Mapping[str, Any] | None) -> Harmful | None:
    """What the mix of ``anchortune mix`` says of its own rows, where its facts lie beside it."""
    rows = bad = 0
    for source in listed((data or {}).get("sources")):
        try:
            place = local_path(str(source["path"]))
            facts = _json(place.with_name(place.name + FACTS_SUFFIX))
            if facts["sha256"] != source["sha256"]:
                return None
            rows, bad = rows + int(facts["rows"]), bad + int(facts["harmful"]["used"])
        except (AnchortuneError, OSError, KeyError, TypeError, ValueError):
            return None  # of one source nothing is known, so nothing of the whole
    return Harmful(bad, rows, "mix", True) if rows else None


def _decides(record: Record) -> dict[str, dict[str, Any]]:
    numbers, platform = record.numbers, record.platform
    return {
        "settings": {**flat(record.config), "seed": record.seed},
        "inputs": {
            key: value
            for key, value in flat(record.inputs).items()
            if key.endswith("sha256") or key.endswith((".used", "sequences", "learnt_tokens"))
        },
        "machine": {
            **{key: numbers.get(key) for key in ("device", "compute_dtype", "weights_dtype")},
            **{key: platform.get(key) for key in ("machine", "threads", "gpu")},
            **{key: record.versions.get(key) for key in _COMPUTES},
        },
    }


def mapping(value: Any) -> dict[str, Any]:
    """A part of a record that should be a mapping; empty where it is something else."""
    return value if isinstance(value, dict) else {}


def listed(value: Any) -> list[Any]:
    """A part of a record that should be a list; empty where it is something else."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A figure of a record; None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond all floats
        return None


def count(value: Any) -> int:
    """A count of a record; 0 where it is none."""
    found = number(value)
    return 0 if found is None else int(found)


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a log's line; what is no number is None, as a loss of nan is."""
    return {key: number(value) for key, value in row.items()}


def _texts(value: Any) -> dict[str, str]:
    return {key: item for key, item in mapping(value).items() if isinstance(item, str)}


def _data(value: Any) -> dict[str, Any] | None:
    """``inputs.data`` of a record, every part of the kind that it should be."""
    if not isinstance(value, dict):
        return None
    counts = ("sequences", "truncated", "learnt_tokens", "max_length_tokens")
    sources = [
        {
            **{key: count(source.get(key)) for key in ("rows", "sampled", "used")},
            **{key: str(source.get(key) or "") for key in ("path", "sha256", "first_bad")},
            "dropped": {key: count(n) for key, n in mapping(source.get("dropped")).items()},
        }
        for source in map(mapping, listed(value.get("sources")))
    ]
    return {**{key: count(value.get(key)) for key in counts}, "sources": sources}


def _json(path: Path) -> Any:
    """A small JSON file of our own; None where it is none."""
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
