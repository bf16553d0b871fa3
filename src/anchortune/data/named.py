"""Names of data in place of paths: ``data:REL/PATH`` lies under the folder ``ANCHORTUNE_DATA``.

A config or a record that says ``data:asft/train/a.json`` means the same file on every machine; see
``experiments/sources.yaml`` for the files that the experiments name.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from anchortune.errors import DataError

PREFIX = "data:"
VARIABLE = "ANCHORTUNE_DATA"
_FETCH = "`python experiments/fetch.py` gets the files that the experiments name"


def is_named(path: str) -> bool:
    """Whether ``path`` is a name that goes by ``ANCHORTUNE_DATA``."""
    return path.startswith(PREFIX)


def local_path(path: str) -> Path:
    """Where ``path`` lies: a name under ``ANCHORTUNE_DATA``, anything else as it stands.

    The errors hold the name and never the folder, so that they may go into records.

    Raises:
        DataError: a name that is no path under the folder, or whose file is not there; or the
            variable is unset or names no folder.
    """
    if not is_named(path):
        return Path(path).expanduser()
    relative = path.removeprefix(PREFIX)
    parts = relative.replace("\\", "/").split("/")
    if not relative.strip() or ".." in parts or ":" in parts[0] or parts[0] in ("", "~"):
        raise DataError(
            f"{path}: expected {PREFIX}FOLDER/FILE, a path below {VARIABLE} without '..'."
        )
    root = os.environ.get(VARIABLE, "")
    if not root:
        raise DataError(
            f"{path}: the variable {VARIABLE}, the folder in which the data lies, is not set; "
            f"{_FETCH}."
        )
    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise DataError(f"{path}: {VARIABLE} names no folder; {_FETCH}.")
    found = folder / PurePosixPath(relative)
    if not found.exists():
        raise DataError(f"{path}: no such file under {VARIABLE}; {_FETCH}.")
    return found


def name_for_records(path: str) -> str:
    """What records call a source: its name, Hub id or relative path, but never an absolute one."""
    local = Path(path)
    return local.name if local.is_absolute() or path.startswith("~") else path


def stem(path: str) -> str:
    """A source's own name, without folders and suffix: what a set is called that has no other."""
    return Path(path.removeprefix(PREFIX)).stem
