"""What must hold of the files of a run at any moment, however its process ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from anchortune.checkpoints.tensor_file import read_header
from anchortune.config_io import parse_yaml
from anchortune.files import is_temporary, sha256_file
from anchortune.lock import LOCK_FILE
from anchortune.run_folder import IDENTITY_FILE
from anchortune.training.folder import RunFolder


def _files(root: Path) -> Iterator[Path]:
    """Every file that a reader would take for whole."""
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(map(is_temporary, parts)) and "checkpoints" not in parts:
            yield path


def halves(root: Path) -> list[str]:
    """Files under ``root`` that are half-written and would be read as whole, each as one line."""
    found = []
    for path in _files(root):
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".jsonl":
                for line in path.read_bytes().split(b"\n")[:-1]:  # the last may be cut: known
                    json.loads(line)
            elif path.suffix == ".yaml":
                parse_yaml(path.read_text(encoding="utf-8"), str(path))
            elif path.suffix == ".safetensors":
                read_header(path)  # which holds the file's size against it
            elif path.suffix == ".html" and not path.read_text("utf-8").rstrip().endswith(
                "</html>"
            ):
                raise ValueError("cut short")
        except Exception as error:
            found.append(f"{path.relative_to(root)}: {error}")
    for record in root.rglob("record.json"):
        found += _missing(record.parent) if (record.parent / IDENTITY_FILE).is_file() else []
    for checkpoints in root.rglob("checkpoints"):
        folder = RunFolder(checkpoints.parent, {})
        last = folder.last_checkpoint()
        try:
            if last is not None:
                folder.check_checkpoint(last)
        except Exception as error:
            found.append(str(error))
    return found


def _missing(run: Path) -> list[str]:
    """What a complete run's record names and is not there, or is something else."""
    outputs = json.loads((run / "record.json").read_text(encoding="utf-8"))["outputs"]
    found = []
    for made in (outputs, outputs.get("on_base"), outputs.get("trained")):
        if not isinstance(made, dict) or "sha256" not in made:
            continue
        for name, sha256 in made["sha256"].items():
            file = run / made.get("path", "") / name
            if not file.is_file() or sha256_file(file) != sha256:
                found.append(f"{file} is not what the record says")
    return found


def leftovers(root: Path) -> list[str]:
    """What only a process at work needs, and none is at work.

    A dead one's lock in a sweep's ``locks/`` may stay: who comes next takes it over.
    """
    return [
        str(path.relative_to(root))
        for path in sorted(root.rglob("*"))
        if (is_temporary(path.name) or path.name.endswith(LOCK_FILE))
        and path.parent.parent.name != "locks"
    ]
