"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


#: Hashes of large files in this process, by place and by what changes when a file is written.
_HASHED: dict[tuple[str, int, int, int, int], str] = {}
_LARGE_BYTES = 16 * 2**20


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal; of a large one that is unchanged, taken once.

    A change is seen by the file's inode, size and times of change, as the kernel counts them.
    """
    file = Path(path)
    with file.open("rb") as stream:
        stat = os.fstat(stream.fileno())
        if stat.st_size < _LARGE_BYTES:
            return _digest(stream)
        place = str(file.resolve())
        key = (place, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        if key not in _HASHED:
            _HASHED[key] = _digest(stream)
        return _HASHED[key]


def sha256_text(text: str) -> str:
    """The SHA-256 of a text in UTF-8, in hexadecimal; a lone surrogate counts as ``?``."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is no JSON (or not UTF-8), or its lists or objects lie in each other so deep
            that nothing wrote them but to break a reader.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("its lists and objects lie too deep in each other") from None


def why_not_writable(path: str | Path) -> str | None:
    """Why no file can be written at ``path``, its folders made where missing; None if one can."""
    final = Path(path)
    if final.is_dir():
        return "it is a folder; name a file"
    place = final.absolute().parent
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder"
    if not os.access(place, os.W_OK | os.X_OK):
        return f"{place} may not be written to"
    return None


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it on success and removed after an exception.

    The rename is atomic, so a reader sees the old file, the new file or none, never half of one.
    """
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=final.parent, prefix=f".{final.name}.", suffix=".part" + final.suffix
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(final)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place on success, else is removed."""
    final = Path(path)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part"))
    try:
        yield temporary
        temporary.chmod(0o755)
        if final.exists():
            retired = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.old."))
            final.replace(retired / final.name)
            temporary.replace(final)
            shutil.rmtree(retired)
        else:
            temporary.replace(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
