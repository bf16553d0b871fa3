"""What the user named -> a checkpoint: folder, Hub id, ``.gguf``, ``package:``, LoRA adapter."""

from __future__ import annotations

import contextlib
import importlib
import re
from pathlib import Path
from typing import Any

from anchortune.checkpoints.adapter import AdapterCheckpoint
from anchortune.checkpoints.adapter_config import ADAPTER_CONFIG
from anchortune.checkpoints.checkpoint import Checkpoint, FolderCheckpoint, read_config
from anchortune.checkpoints.gguf_file import GgufCheckpoint
from anchortune.checkpoints.packaged import resolve
from anchortune.config_io import parse_yaml
from anchortune.errors import CheckpointError, ConfigError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_WANTED = ["*.safetensors", "*.json", "README.md"]
_UNWANTED = ["*/*", "consolidated*"]
_FRONT_CHARACTERS = 1 << 16


def open_checkpoint(
    name: str | Path, *, revision: str | None = None, token: str | bool | None = None
) -> Checkpoint:
    """The checkpoint that ``name`` means; only headers are read.

    A local path goes before a Hub id of the same spelling. From the Hub only safetensors and JSON
    files and the card are fetched, never code or pickle; offline mode and the cache are respected.

    Args:
        name: a folder, a ``.gguf`` file, ``org/name`` on the Hub, or ``package:NAME`` for the
            ``.gguf`` file in an installed Python package.
        revision: a branch, tag or commit, for a Hub id.
        token: the Hub's, where the repository needs one.

    Raises:
        CheckpointError: there is no such thing, or it cannot be read safely.
    """
    path = Path(resolve(str(name))).expanduser()
    if not path.exists() and _HUB_ID.fullmatch(str(name)) and path.suffix != ".gguf":
        folder = _snapshot(str(name), revision, token)
        return _open_folder(folder, str(name), folder.name)
    if revision is not None:
        raise CheckpointError(f"{name} is no Hub id, so it has no revision: leave revision out")
    if path.is_dir():
        return _open_folder(path, str(name), None)
    if path.suffix == ".gguf" and path.is_file():
        return GgufCheckpoint(label=str(name), path=path)
    if path.is_file():
        raise CheckpointError(f"{name} is a file: give the folder it is in, or a .gguf file")
    raise CheckpointError(
        f"{name} is no folder or .gguf file here, nor a Hub id (org/name): check the path"
    )


def network_errors() -> tuple[type[Exception], ...]:
    """What the Hub's client raises where the network fails: its HTTP library's errors, and OS's."""
    found: list[type[Exception]] = [OSError]
    for library in ("httpx2", "httpx"):  # huggingface_hub 2 is built on the one, 1 on the other
        with contextlib.suppress(ImportError):
            found.append(importlib.import_module(library).HTTPError)
    return tuple(found)


def _open_folder(folder: Path, label: str, revision: str | None) -> Checkpoint:
    shared: dict[str, Any] = {
        "label": label,
        "path": folder,
        "revision": revision,
        "licence": _licence(folder),
    }
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return AdapterCheckpoint(**shared)
    if (folder / "adapter_model.safetensors").is_file() and (folder / ADAPTER_CONFIG).is_file():
        raise CheckpointError(
            f"{label} is both a model ({'config.json'}) and an adapter ({ADAPTER_CONFIG}): "
            "give a folder that holds just one"
        )
    return FolderCheckpoint(config=read_config(folder), **shared)


def _snapshot(repo_id: str, revision: str | None, token: str | bool | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    failures: tuple[type[Exception], ...] = (HfHubHTTPError, ValueError, *network_errors())
    try:
        folder = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            allow_patterns=_WANTED,
            ignore_patterns=_UNWANTED,
        )
    except RevisionNotFoundError as error:
        raise CheckpointError(f"{repo_id} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} is neither a folder here nor a model on the Hub that this token may read"
            ": check the path, or log in (`hf auth login`)"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repo_id} is no folder here, and the Hub cannot be reached (offline?): "
            "give a local folder"
        ) from error
    except failures as error:
        raise CheckpointError(f"{repo_id} could not be fetched from the Hub: {error}") from error
    return Path(folder)


def front_matter(folder: Path) -> dict[str, Any]:
    """What the model card in a folder says of itself before its text; empty where there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return {}
    with card.open(encoding="utf-8", errors="replace") as stream:
        first, *lines = stream.read(_FRONT_CHARACTERS).splitlines() or [""]
    ends = [number for number, line in enumerate(lines) if line.startswith("---")]
    if first.strip() != "---" or not ends:
        return {}
    try:
        front = parse_yaml("\n".join(lines[: ends[0]]), str(card))
    except ConfigError:
        return {}
    return front if isinstance(front, dict) else {}


def _licence(folder: Path) -> str | None:
    """``license`` (or ``license_name``) from the front matter of the model card, if it says."""
    front = front_matter(folder)
    value = front.get("license")
    if value == "other":
        value = front.get("license_name") or value
    return value if isinstance(value, str) and value else None
