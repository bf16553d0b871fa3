"""A saved adapter mended against an anchor, and LoX's edit written as an adapter; no training."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anchortune.adapter.compose import CONFIG, WEIGHTS, unname_base, write_adapter
from anchortune.adapter.update import update_as_lora
from anchortune.anchor.anchor import Anchor
from anchortune.anchor.binding import match_name
from anchortune.config import ModelSection
from anchortune.data.named import name_for_records
from anchortune.defences.against import factors_beside
from anchortune.defences.base import Anchors, Defence
from anchortune.defences.lox import Lox
from anchortune.errors import AnchorError, JobError
from anchortune.files import atomic_directory
from anchortune.jobs.origin import NAMED, OpenAnchor, check_origin, read_source, warn_of
from anchortune.maths.factors import Factors
from anchortune.maths.lowrank import LowRank, Update, add
from anchortune.maths.split import split
from anchortune.models.load import load_skeleton
from anchortune.progress import counted
from anchortune.record import RECORD_FILE, Record, now, platform_facts, versions, write_record
from anchortune.training.defended import result_files
from anchortune.untrusted import stays_inside

logger = logging.getLogger(__name__)

_PARTS = ("aligned", "one_sided", "outside")
#: What a trainer leaves in an adapter's folder that is not of the adapter.
_LEFT_OUT = {CONFIG, WEIGHTS, RECORD_FILE, "trainer_state.json", "all_results.json"}
_CARRIED = {".json", ".jinja", ".model", ".txt", ".md"}


def _is_carried(file: Path) -> bool:
    """Whether a file of an adapter's folder goes with it; nothing that a link fetches from afar."""
    kind = file.is_file() and file.suffix in _CARRIED and file.name not in _LEFT_OUT
    if kind and not stays_inside(file, file.parent):
        logger.warning("%s is a link out of its folder and is not copied", file)
        return False
    return kind


@dataclass(frozen=True)
class Figures:
    """What a method did to an update.

    Attributes:
        changed: modules that are no longer what they were, or are new.
        total: modules of the result.
        norm_before: ``‖U‖_F`` over all modules.
        norm_after: of the result.
        change_frac: ``‖result − U‖_F / ‖U‖_F``.
        energy_before: of each part against the anchor's subspaces: ``aligned``, ``one_sided``,
            ``outside``.
        energy_after: of the result.
        by_module: the same of each module, its rank, and for Safe LoRA its cosine.
    """

    changed: int
    total: int
    norm_before: float
    norm_after: float
    change_frac: float | None
    energy_before: dict[str, float]
    energy_after: dict[str, float]
    by_module: dict[str, dict[str, Any]] = field(default_factory=dict)

    def metrics(self) -> dict[str, Any]:
        """As plain values, for the record."""
        return dict(vars(self))


def project(
    adapter: str,
    method: Defence,
    out: Path,
    *,
    anchor: OpenAnchor | None = None,
    harmful: OpenAnchor | None = None,
    allow_other_start: bool = False,
) -> tuple[Record, Figures]:
    """Writes ``adapter``, mended by a method, as a new standard adapter with its record.

    Args:
        adapter: a folder that PEFT saved, by us or elsewhere, or a Hub id.
        method: one with an ``after``: Safe LoRA, CSULoRA, RESTA.
        out: the new folder, which must not exist.
        anchor: of aligned - base.
        harmful: of harmful - aligned.
        allow_other_start: go on where the anchor was built from other weights than the adapter's.

    Raises:
        JobError: ``out`` is there already.
        CheckpointError: the adapter cannot be mended.
        AnchorError: an anchor that the method needs is missing, or does not fit the adapter.
    """
    started = time.perf_counter()
    refuse_existing(out)
    source = read_source(adapter)
    inputs: dict[str, Any] = {"adapter": source.identity()}
    if source.record is not None and "model" in source.record.inputs:
        inputs["model"] = source.record.inputs["model"]
    for key, opened, parent in (
        ("anchor", anchor, "aligned"),
        ("harmful_anchor", harmful, "base"),
    ):
        if opened is not None and key in method.needed():
            start = check_origin(opened, source.model, parent, allow_other_start)
            if start not in (parent, NAMED):
                warn_of(opened, source, start)
            inputs[key] = opened.facts(start)
    anchors = Anchors(
        None if anchor is None else anchor.anchor, None if harmful is None else harmful.anchor
    )
    mended = method.after(source.update, anchors)
    measured = anchors.harmful if "harmful_anchor" in method.needed() else anchors.aligned
    figures = measure(source.update, mended, measured, method)
    tensors, config = update_as_lora(
        mended,
        base=source.config.get("base_model_name_or_path"),
        revision=source.config.get("revision"),
        like=source.config,
    )
    with atomic_directory(out) as temporary:
        for file in sorted(source.folder.iterdir()):
            if _is_carried(file):
                shutil.copy(file, temporary)
        write_adapter(temporary, tensors, config)
        record = _record(
            "project",
            {
                "adapter": name_for_records(adapter),
                "method": method.model_dump(mode="json"),
                "allow_other_start": allow_other_start,
                "model": None if source.model is None else source.model.model_dump(mode="json"),
            },
            inputs,
            {**result_files(temporary), "path": out.name},
            figures.metrics(),
            started,
            seed=source.record.seed if source.record is not None else 0,
        )
        write_record(temporary, record)
    return record, figures


def extrapolate(
    model: ModelSection,
    method: Lox,
    anchor: OpenAnchor,
    out: Path,
    *,
    allow_other_start: bool = False,
) -> Record:
    """Writes LoX's edit of the aligned model as a standard adapter on it.

    Args:
        model: the aligned model; only its config is read, and its weights to compare hashes.
        method: α and the rank.
        anchor: of aligned - base.
        out: the new folder, which must not exist.
        allow_other_start: go on where the anchor was built from other weights than the model's.

    Raises:
        JobError: ``out`` is there already.
        AnchorError: the anchor does not fit the model, or was cut off below the rank.
        CheckpointError: the model cannot be read.
    """
    started = time.perf_counter()
    refuse_existing(out)
    skeleton = load_skeleton(model)
    edit, transposed = _on_model(method.before(Anchors(anchor.anchor)), skeleton)
    start = check_origin(anchor, model, "aligned", allow_other_start)
    tensors, config = update_as_lora(
        edit, base=model.path, revision=model.revision, like={"fan_in_fan_out": transposed}
    )
    metrics = {
        "modules": len(edit),
        "rank_max": max(part.rank for part in edit.values()),
        "norm": _norm(edit),
        "by_module": {
            name: {"norm": part.norm(), "rank": part.rank} for name, part in edit.items()
        },
    }
    with atomic_directory(out) as temporary:
        write_adapter(temporary, tensors, config)
        if model.adapter is not None:
            unname_base(temporary, model.path, model.adapter)
        record = _record(
            "extrapolate",
            {
                "method": method.model_dump(mode="json"),
                "allow_other_start": allow_other_start,
                "model": model.model_dump(mode="json"),
            },
            {"anchor": anchor.facts(start)},
            {**result_files(temporary), "path": out.name},
            metrics,
            started,
        )
        write_record(temporary, record)
    return record


def refuse_existing(out: Path) -> None:
    """Raises where the result's folder is there already.

    Raises:
        JobError: it is.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise JobError(f"{out} is there already and is not written over; name another with -o.")


def measure(update: Update, mended: Update, anchor: Anchor | None, method: Defence) -> Figures:
    """What became of an update, by the parts against the anchor that the method used.

    Args:
        update: before.
        mended: after; it may be of more modules.
        anchor: the method's.
        method: whose ``rank`` says how many of the anchor's directions count.

    Raises:
        AnchorError: the anchor does not fit.
    """
    if anchor is None:
        raise AnchorError(f"{method.label} needs an anchor and was given none.")
    factors = factors_beside(mended, anchor, getattr(method, "rank", None))
    cosines = getattr(method, "cosines", None)
    told = cosines(update, Anchors(aligned=anchor)) if cosines is not None else {}
    by_module: dict[str, dict[str, Any]] = {}
    squared_change = 0.0
    for name, part in counted("measuring modules", mended.items()):
        was = update.get(name)
        changed = was is not part
        squared_change += _change(was, part) ** 2 if changed else 0.0
        by_module[name] = {
            "changed": changed,
            "rank": part.rank,
            "before": _energies(was, factors[name]),
            "after": _energies(part, factors[name]),
        }
        if name in told:
            by_module[name]["cosine"] = told[name]
    norm = _norm(update)
    return Figures(
        changed=sum(one["changed"] for one in by_module.values()),
        total=len(by_module),
        norm_before=norm,
        norm_after=_norm(mended),
        change_frac=squared_change**0.5 / norm if norm else None,
        energy_before=_summed(by_module, "before"),
        energy_after=_summed(by_module, "after"),
        by_module=by_module,
    )


def _energies(part: LowRank | None, factors: Factors) -> dict[str, float]:
    if part is None:
        return dict.fromkeys(_PARTS, 0.0)
    found = split(part, factors.left, factors.right).energies()
    return {name: float(getattr(found, name)) for name in _PARTS}


def _summed(by_module: Mapping[str, Mapping[str, Any]], key: str) -> dict[str, float]:
    return {part: sum(one[key][part] for one in by_module.values()) for part in _PARTS}


def _change(was: LowRank | None, part: LowRank) -> float:
    return part.norm() if was is None else add([part, was.scaled(-1)]).norm()


def _norm(update: Update) -> float:
    return float(sum(part.norm() ** 2 for part in update.values()) ** 0.5)


def _on_model(edit: Update, skeleton: Any) -> tuple[Update, bool]:
    """The edit under the model's names, and whether its weights are stored (d_in, d_out).

    Raises:
        AnchorError: the model lacks a module of the edit, or has it in another shape.
    """
    modules = {
        name: module
        for name, module in skeleton.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    found: Update = {}
    turned = set()
    for key, part in edit.items():
        name = match_name(key, modules)
        if name is None:
            raise AnchorError(
                f"{key} of the anchor is no module of the model: give the anchor of this one."
            )
        conv1d = type(modules[name]).__name__ == "Conv1D"
        shape = tuple(modules[name].weight.shape)
        if (shape[::-1] if conv1d else shape) != part.shape:
            raise AnchorError(
                f"{key} is {part.shape[0]} × {part.shape[1]} in the anchor and another shape in "
                "the model: they are not of one family"
                "; give the anchor of this one."
            )
        found[name] = part
        turned.add(conv1d)
    return found, turned == {True}


def _record(
    kind: str,
    config: dict[str, Any],
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    metrics: dict[str, Any],
    started: float,
    seed: int = 0,
) -> Record:
    return Record(
        kind=kind,
        created=now(),
        config=config,
        seed=seed,
        inputs=inputs,
        outputs=outputs,
        numbers={"device": "cpu", "compute_dtype": "float64", "weights_dtype": "float32"},
        timings={"total_s": time.perf_counter() - started},
        metrics=metrics,
        versions=versions(),
        platform=platform_facts(),
    )
