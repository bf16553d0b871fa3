"""``record.json``: what a run was. Written last, by an atomic rename: present means complete."""

from __future__ import annotations

import datetime
import importlib.metadata
import math
import platform
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from anchortune._version import __version__
from anchortune.errors import DataError
from anchortune.files import parse_json, write_json

RECORD_FILE = "record.json"
FORMAT_VERSION = 1
_PACKAGES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "safetensors")


class Record(BaseModel):
    """One run.

    Attributes:
        format_version: of this file.
        kind: the command: ``train``, ``align``, …
        created: when it was written, UTC, ISO 8601.
        config: resolved: every default filled in.
        seed: of data order, dropout and new weights.
        inputs: what the run was made from, with SHA-256: ``model``, ``data``, ``anchor``.
        outputs: files made, with SHA-256.
        numbers: device and dtypes.
        timings: seconds by stage.
        metrics: final figures; None where a figure was not finite.
        versions: of Python and of the packages that compute.
        platform: machine and system.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    kind: str
    created: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]
    numbers: dict[str, Any]
    timings: dict[str, float]
    metrics: dict[str, Any]
    versions: dict[str, str]
    platform: dict[str, Any]


def versions() -> dict[str, str]:
    """Versions of anchortune, Python and the packages that compute; absent ones left out."""
    found = {"anchortune": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def platform_facts() -> dict[str, Any]:
    """System, processor, cores and, where torch is loaded, threads and the GPU's name."""
    import os

    facts: dict[str, Any] = {
        "system": platform.platform(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["threads"] = torch.get_num_threads()
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
    return facts


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def finite(value: Any) -> Any:
    """``value`` with numbers that are not finite replaced by None, for JSON has none."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value


def write_record(folder: str | Path, record: Record) -> Path:
    """Writes ``record.json`` into ``folder``; call it after every other file is in place."""
    path = Path(folder) / RECORD_FILE
    write_json(path, finite(record.model_dump(mode="json")))
    return path


def read_record(folder: str | Path) -> Record:
    """The record in ``folder``.

    Raises:
        DataError: there is none (the run is not complete), or it is of another format.
    """
    path = Path(folder) / RECORD_FILE
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{folder}: no {RECORD_FILE} in it, so no complete run"
            "; run it to its end, or name another."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable record ({error}).") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path}: record format {str(version)[:20]}, but this version reads {FORMAT_VERSION}"
            "; update anchortune."
        )
    try:
        return Record.model_validate(value)
    except ValidationError as error:
        raise DataError(f"{path}: not a record ({error.errors()[0]['loc']}).") from None
