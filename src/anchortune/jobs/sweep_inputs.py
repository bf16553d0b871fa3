"""What decides a run's result: its settings with hashes in place of files, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from anchortune.checkpoints.packaged import PREFIX, resolve
from anchortune.config_defences import label_of
from anchortune.data.named import is_named, local_path, name_for_records
from anchortune.defences.base import Need
from anchortune.errors import ConfigError, EvaluationError
from anchortune.evaluation import prompt_sets
from anchortune.evaluation.config import AskSection
from anchortune.evaluation.select import Source
from anchortune.evaluation.tasks import load as tasks
from anchortune.files import sha256_file
from anchortune.jobs.sweep_config import Cell, CellConfig
from anchortune.sections import RowsSection
from anchortune.training.defended import as_defences, check_together, split_chain

#: Keys of configs whose text may be the place of a file.
_PLACES = {"path", "adapter", "file", "outputs", "model", "prompt"}
#: Under it stand columns of a table and what their cells hold, whatever they are called.
_CELLS = "where"
_FILES = {".json", ".jsonl", ".csv", ".parquet", ".safetensors", ".gguf"}
#: Of a folder, what says what a model or an adapter is.
_TELLING = {".safetensors", ".gguf", ".json", ".jinja", ".model"}
#: How something is done, and what is kept of it: no part of a run's identity.
_PACE = {"machine", "bootstrap", "keep", "batch_size", "concurrency", "timeout_s", "retries"}
_HEAD = Path(__file__).parents[1] / "evaluation" / "judges" / "builtin_head_data"


def needs_of(chain: list[Any]) -> frozenset[Need]:
    """What the methods of a chain must be given."""
    return frozenset().union(*(defence.needed() for defence in as_defences(chain)))


def disjoint(cell: CellConfig) -> CellConfig:
    """The cell with every evaluation set kept out of its mix.

    Raises:
        EvaluationError: a set or a task of that name is not known.
    """
    if cell.mix is None:
        return cell
    known = {_which(place) for place in cell.mix.disjoint_from}
    found = {_which(place): place for place in _asked_places(cell.evaluate)}
    added = [place for key, place in found.items() if key not in known]
    mix = cell.mix.model_copy(update={"disjoint_from": [*cell.mix.disjoint_from, *added]})
    return cell.model_copy(update={"mix": mix})


def _asked_places(evaluate: AskSection) -> Iterator[RowsSection]:
    for harm in evaluate.harm:
        source, _, _ = prompt_sets.place_of(harm)
        yield _rows_at(source, "train", harm.column)
    for task in evaluate.tasks:
        spec = tasks.spec_of(task)
        source = tasks.place_of(task, spec)
        if spec.unread and not _is_file(source.path):
            continue
        # In a named task's prompt {text} is the item's text, whatever its column is called.
        fields = tasks.fields_of(task.prompt or "") if task.name is None else []
        yield _rows_at(source, spec.split, fields[0] if fields else None)


def _is_file(path: str) -> bool:
    return is_named(path) or local_path(path).is_file()


def _which(place: RowsSection) -> tuple[str | None, ...]:
    """What tells a place from others: of a file its path, and which rows are meant."""
    rows = json.dumps(place.where, sort_keys=True)
    if _is_file(place.path):
        return (place.path, rows)
    return (place.path, place.subset, place.split, place.revision, rows)


def _rows_at(source: Source, split: str, column: str | None) -> RowsSection:
    """As a mix takes it; of a file without what is of Hub datasets alone."""
    columns = {} if column is None else {"prompt": column}
    if _is_file(source.path):
        return RowsSection(path=source.path, columns=columns)
    return RowsSection(
        path=source.path,
        split=source.split or split,
        subset=source.subset,
        revision=source.revision,
        columns=columns,
    )


def apart(cell: Cell) -> Cell:
    """The cell with every evaluation set kept out of its mix.

    Raises:
        ConfigError: naming the cell, where a set or a task of that name is not known.
    """
    try:
        return Cell(cell.labels, disjoint(cell.config))
    except EvaluationError as error:
        raise ConfigError(f"{', '.join(cell.labels.values())}: {error}") from None


def check_cell(cell: Cell) -> None:
    """Raises where a cell lacks what its defences need, or they cannot be in one run.

    Raises:
        ConfigError: naming the cell and the key.
    """
    config = cell.config
    try:
        check_together(as_defences(config.defence), config.lora, penalised=False)
    except ConfigError as error:
        raise ConfigError(f"{', '.join(cell.labels.values())}: {error}") from None
    needed = needs_of(config.defence)
    given = {
        "anchor": base_of(config) is not None
        or (config.anchor is not None and config.anchor.path is not None),
        "harmful_anchor": config.harmful_anchor is not None,
        "refusals": bool(config.refusals),
        "base": base_of(config) is not None,
    }
    mend = {
        "anchor": "base (what the model was aligned from) or anchor (a file)",
        "harmful_anchor": "harmful_anchor (a file or Hub id)",
        "refusals": "refusals (safe answers)",
        "base": "base (what the model was aligned from)",
    }
    for need in sorted(needed):
        if not given[need]:
            raise ConfigError(
                f"{', '.join(cell.labels.values())}: {label_of(config.defence)} needs {mend[need]}."
            )


class Inputs:
    """Hashes of files and folders, each taken once, by what the config calls them."""

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}

    def sha256(self, name: str) -> str | None:
        """The hash of what ``name`` means here; None where it is on the Hub.

        Raises:
            ConfigError: it looks like a local place, and nothing is there.
            DataError: a ``data:`` name whose file is not there.
        """
        if name not in self._known:
            self._known[name] = self._hash(name)
        return self._known[name]

    def _hash(self, name: str) -> str | None:
        place = Path(resolve(name)) if name.startswith(PREFIX) else local_path(name)
        if place.is_file():
            return sha256_file(place)
        if place.is_dir():
            files = sorted(
                file
                for file in place.iterdir()
                if file.suffix in _TELLING and file.name not in ("record.json", "release.json")
            )
            text = "".join(f"{file.name} {sha256_file(file)}\n" for file in files)
            return hashlib.sha256(text.encode()).hexdigest()
        local = name.startswith((".", "/", "~")) or name.count("/") > 1
        if not name.startswith("hf://") and (local or place.suffix in _FILES):
            raise ConfigError(f"{name}: there is no such file or folder; check the path.")
        return None


def places(tree: Any, change: Callable[[str, str], str], at: str = "") -> Any:
    """``tree`` with ``change(where, text)`` in place of every text that may name a file."""
    if isinstance(tree, dict):
        found = {}
        for key, value in tree.items():
            if key == _CELLS:
                found[key] = value
            elif key in _PLACES and isinstance(value, str) and _may_be_a_place(key, value):
                found[key] = change(f"{at}{key}", value)
            else:
                found[key] = places(value, change, f"{at}{key}.")
        return found
    if isinstance(tree, list):
        return [places(value, change, f"{at}{number}.") for number, value in enumerate(tree)]
    return tree


def _may_be_a_place(key: str, value: str) -> bool:
    """Prompts and names of models behind servers are no places, unless a file is there."""
    if key not in {"prompt", "model"}:
        return True
    try:
        return value.startswith(PREFIX) or is_named(value) or Path(value).expanduser().exists()
    except (OSError, RuntimeError):  # a text too long for a path, or a ~ of nobody
        return False


def without_pace(value: Any) -> Any:
    """Settings without what decides how fast they are done."""
    if isinstance(value, dict):
        return {
            key: item if key == _CELLS else without_pace(item)
            for key, item in value.items()
            if key not in _PACE
        }
    return [without_pace(item) for item in value] if isinstance(value, list) else value


def training_tree(cell: CellConfig, seed: int) -> dict[str, Any]:
    """The settings that decide the trained adapter, and only those."""
    during, _ = split_chain(cell.defence)
    tree = _used(cell, needs_of(during))
    del tree["evaluate"]
    tree["defence"] = [section.model_dump(mode="json") for section in during]
    return tree | {"seed": seed}


def run_tree(cell: CellConfig, seed: int) -> dict[str, Any]:
    """The settings that decide a trained run's result."""
    return _used(cell, needs_of(cell.defence)) | {"seed": seed}


def reference_tree(cell: CellConfig, which: str) -> dict[str, Any]:
    """The settings that decide what an untrained model answers.

    Args:
        cell: a cell beside which it stands.
        which: ``aligned`` or ``base``.
    """
    model = cell.model if which == "aligned" else base_of(cell)
    if model is None:
        raise ConfigError("reference names base, but the runs have none; give base.")
    tree: dict[str, Any] = {"model": model.model_dump(mode="json")}
    if which == "base":  # what is coherent is measured under the aligned model
        tree["aligned"] = cell.model.model_dump(mode="json")
    return tree | {"evaluate": without_pace(cell.evaluate.model_dump(mode="json"))}


def base_of(cell: CellConfig) -> Any:
    """What the model was aligned from: named, or what its adapter lies on; None: not known."""
    if cell.base is None and cell.model.adapter is not None:
        return cell.model.model_copy(update={"adapter": None})
    return cell.base


def _used(cell: CellConfig, needed: frozenset[Need]) -> dict[str, Any]:
    """The cell without its pace, and without what no method of it looks at."""
    tree: dict[str, Any] = without_pace(cell.model_dump(mode="json"))
    for key in ("output", "seed", "penalty", "preset", "screen"):
        del tree[key]
    # Rows a step are no pace. At the default they stay out: records from before carry none.
    if cell.training.batch_size != type(cell.training).model_fields["batch_size"].default:
        tree["training"]["batch_size"] = cell.training.batch_size
    if not needed & {"anchor", "base"}:
        tree["base"] = None
    elif tree["base"] is None and cell.model.adapter is not None:
        tree["base"] = base_of(cell).model_dump(mode="json")
    if "anchor" not in needed:
        tree["anchor"] = None
    elif tree["anchor"] is not None and tree["anchor"]["path"] is not None and "base" not in needed:
        tree["base"] = None
    for key in ("harmful_anchor", "refusals"):
        if key not in needed:
            tree[key] = None
    return tree


def hashed(tree: Any, inputs: Inputs) -> Any:
    """What a digest is taken over: the hash of a file in place of its name, nothing that is unset.

    So a key that a later version adds, and that nobody sets, makes no record stale.
    """
    return _set(places(tree, lambda where, name: inputs.sha256(name) or name))


def _set(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _set(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, [], {})}
    return [_set(item) for item in value] if isinstance(value, list) else value


def hashes_of(tree: Any, inputs: Inputs) -> dict[str, str]:
    """By the key that names it, the SHA-256 of every file."""
    found: dict[str, str] = {}

    def note(where: str, name: str) -> str:
        sha256 = inputs.sha256(name)
        if sha256 is not None:
            found[where] = sha256
        return name

    places(tree, note)
    judges = tree.get("evaluate", {}).get("judges", [])
    if any(judge["name"] == "builtin" for judge in judges):
        found["judge.builtin"] = inputs.sha256(str(_HEAD)) or ""
    return dict(sorted(found.items()))


def named(tree: Any) -> Any:
    """``tree`` with the names of files in place of paths: what a record keeps."""
    return places(tree, lambda where, name: _name(name))


def _name(name: str) -> str:
    outside = name.startswith("..") or Path(name).is_absolute()
    return Path(name).name if outside else name_for_records(name)
