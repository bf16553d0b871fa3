"""Where a saved adapter and an anchor are from, and whether they belong together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.adapter.compose import CONFIG, WEIGHTS
from anchortune.adapter.merge import locate_adapter
from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.config import ModelSection
from anchortune.data.named import name_for_records
from anchortune.errors import AnchorError, CheckpointError, DataError
from anchortune.files import sha256_file
from anchortune.maths.lowrank import Update
from anchortune.record import Record, read_record
from anchortune.training.anchored import UNVERIFIED, anchor_facts, check_parent, open_anchor

logger = logging.getLogger(__name__)

#: The start is one of the anchor's parents by name; its weights are not here to be compared.
NAMED = "named"
SWITCH = "--allow-other-start"


@dataclass(frozen=True)
class OpenAnchor:
    """An anchor, and what the user called it."""

    anchor: Anchor
    place: str

    @classmethod
    def at(cls, place: str, *, harmful: bool = False) -> OpenAnchor:
        """The anchor in a file or on the Hub.

        Raises:
            AnchorError: there is none, or it is a harmful one and none was asked for.
        """
        anchor = open_anchor(place, None, "the revision")
        if anchor.metadata.harmful is not None and not harmful:
            raise AnchorError(
                f"{place} is a harmful anchor, along which safety is lost; give it as "
                "--harmful-anchor, and as --anchor the one of aligned - base."
            )
        return cls(anchor, place)

    def facts(self, start: str) -> dict[str, Any]:
        """Its identity, for the record."""
        return anchor_facts(self.anchor, name_for_records(self.place), None) | {"start": start}


@dataclass(frozen=True)
class Source:
    """A saved adapter and what is known of where it is from.

    Attributes:
        name: what the user called it.
        folder: where it lies.
        commit: on the Hub.
        config: its ``adapter_config.json``.
        update: what it adds.
        record: of the run that made it; None for one made elsewhere.
        model: what it was trained on, where anything says so.
    """

    name: str
    folder: Path
    commit: str | None
    config: dict[str, Any]
    update: Update
    record: Record | None = None
    model: ModelSection | None = None

    def identity(self) -> dict[str, Any]:
        """What it is, for the record."""
        return {
            "path": name_for_records(self.name),
            "revision": self.commit,
            "sha256": sha256_file(self.folder / WEIGHTS),
            "config_sha256": sha256_file(self.folder / CONFIG),
            "modules": len(self.update),
            "run": self.record.numbers.get("identity") if self.record is not None else None,
        }


def read_source(adapter: str) -> Source:
    """A saved adapter with its record, if it has one, and the model that it was trained on.

    Raises:
        CheckpointError: there is no such adapter, it is more than s·B·A, or it holds the alignment
            as well.
    """
    inner = Path(adapter).expanduser() / "adapter"
    if (inner / CONFIG).is_file() and not (inner.parent / CONFIG).is_file():
        raise CheckpointError(f"{adapter} is a run's folder; name the adapter in it: {inner}.")
    folder, commit = locate_adapter(adapter)
    update, config = read_update(folder)
    record = _record_of(adapter, folder)
    return Source(adapter, folder, commit, config, update, record, _trained_on(record, config))


def _record_of(adapter: str, folder: Path) -> Record | None:
    """The record of the run whose output the adapter is, told by the hash of its weights."""
    held = sha256_file(folder / WEIGHTS)
    for place in (folder, folder.parent):
        try:
            record = read_record(place)
        except DataError:
            continue
        on_base = record.outputs.get("on_base") or {}
        if (on_base.get("sha256") or {}).get(WEIGHTS) == held:
            raise CheckpointError(
                f"{adapter} holds the alignment and the fine-tune as one adapter; give the "
                f"fine-tune alone, {folder.parent / str(record.outputs.get('path'))}."
            )
        made = (record.outputs, record.outputs.get("trained") or {})
        if any((one.get("sha256") or {}).get(WEIGHTS) == held for one in made):
            return record
    return None


def _trained_on(record: Record | None, config: Mapping[str, Any]) -> ModelSection | None:
    if record is not None:
        told = record.config
        from_base = any(
            isinstance(one, dict) and one.get("start") == "base"
            for one in told.get("defence") or []
        )
        section = told.get("base") if from_base else told.get("model")
        if isinstance(section, dict) and section.get("path"):
            return ModelSection.model_validate(section)
    base = config.get("base_model_name_or_path")
    if not base:
        return None
    revision = None if Path(base).expanduser().exists() else config.get("revision")
    return ModelSection(path=str(base), revision=revision)


def check_origin(opened: OpenAnchor, model: ModelSection | None, parent: str, allowed: bool) -> str:
    """Whether an anchor belongs to the model that an adapter was trained on.

    Nothing is downloaded: a model that is not here is told by its name alone.

    Args:
        opened: the anchor.
        model: what the adapter was trained on; None where nothing says so.
        parent: which of the anchor's parents that must be: ``aligned``, or, for a harmful
            anchor, ``base``.
        allowed: take another one too.

    Returns:
        ``parent``, ``named``, ``unverified``, or ``other`` where that was allowed.

    Raises:
        AnchorError: it is certainly another model.
    """
    if model is None:
        return UNVERIFIED
    anchor = opened.anchor
    if Path(model.path).expanduser().exists() or model.path.startswith("package:"):
        return check_parent(anchor, model, (parent,), opened.place, SWITCH, allowed)
    named = {key: getattr(anchor.metadata, key).id for key in ("aligned", "base")}
    if model.adapter is not None:
        return UNVERIFIED
    if model.path == named[parent]:
        return NAMED
    if model.path in named.values():
        if allowed:
            return "other"
        raise AnchorError(
            f"the adapter was trained on {model.path}, the other parent of {opened.place}, which "
            f"was built from {named['aligned']} and {named['base']}; give the anchor whose "
            f"{parent} model it is, or set {SWITCH}."
        )
    return UNVERIFIED


def warn_of(opened: OpenAnchor, source: Source, start: str) -> None:
    """Tells that an anchor and an adapter were not found to belong together."""
    on = source.model.path if source.model is not None else "a model that it does not name"
    if start == UNVERIFIED:
        logger.warning(
            "warning: %s was trained on %s, which could not be compared with the parents of %s",
            source.name, on, opened.place,
        )  # fmt: skip
    else:
        logger.warning(
            "warning: %s was built from other weights than %s", opened.place, on
        )  # fmt: skip
