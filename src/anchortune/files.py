"""Files that are either whole or absent, and their hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: ``.NAME.RANDOM.part`` and the suffix of NAME, as below.
_TEMPORARY = re.compile(r"\..+\.part(?:\.[^.]*)?")
#: Errors of a disk, whatever was being done.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_FULL = "free some room there and run the same command again, which goes on"
_RIGHTS = "change its rights, or name another place"
_MENDS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EROFS: "name a place that may be written to",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.ENOENT: "put it there, or name another",
    errno.EMFILE: "let a process open more files (ulimit -n)",
    errno.EIO: "see whether the disk is whole, then run the same command again",
}
#: What torch says where it could not write: the second at the end, after the first.
_TORCH_WRITES = "PytorchStreamWriter|inline_container.*unexpected pos|iostream error"
#: A disk with less room than this is full, where a library does not say why it could not write.
_FULL_BYTES = 2**24


def _digest(stream: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _digest_told(stream: BinaryIO, name: str, size: int) -> str:
    """``_digest`` of a file that takes long enough for somebody to ask what is going on."""
    from anchortune.progress import Progress

    digest, done = hashlib.sha256(), 0
    with Progress(f"hashing {name}, MB", size >> 20) as tell:
        while block := stream.read(1 << 24):
            digest.update(block)
            done += len(block)
            tell(done >> 20)
    return digest.hexdigest()


#: Hashes of large files in this process, by place and by what changes when a file is written.
_HASHED: dict[tuple[str, int, int, int, int], str] = {}
_LARGE_BYTES = 16 * 2**20
#: Hashing one takes seconds.
_HUGE_BYTES = 2**31


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
            huge = stat.st_size >= _HUGE_BYTES
            told = _digest_told(stream, file.name, stat.st_size) if huge else _digest(stream)
            _HASHED[key] = told
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


def flocked(descriptor: int, *, wait: bool = True) -> bool:
    """Takes the kernel's lock on an open file or folder, which ends with the descriptor.

    Args:
        descriptor: of the file or folder.
        wait: for whoever holds it.

    Returns:
        False where somebody else holds it, or where the system or the disk has no such locks.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


def is_temporary(name: str) -> bool:
    """Whether a name in a folder is one that ``atomic_path`` or ``atomic_directory`` gives.

    Such a thing is still being written, or its writer was killed: it is never read.
    """
    return _TEMPORARY.fullmatch(name) is not None


def clear_killed(final: Path) -> None:
    """Takes away what killed writers of ``final`` left beside it.

    A living one holds the kernel's lock on what it writes. What may not be listed or deleted (a
    folder that is open to writers alone, another user's leavings) stays.
    """
    try:
        names = [entry.name for entry in os.scandir(final.parent)]
    except OSError:
        return
    for name in names:
        if not (name.startswith(f".{final.name}.") and is_temporary(name)):
            continue
        descriptor = _opened(final.parent / name)
        if descriptor is not None:
            if flocked(descriptor, wait=False):
                with contextlib.suppress(OSError):
                    _remove(final.parent / name)
            os.close(descriptor)


def _opened(path: Path) -> int | None:
    """A descriptor to lock; None where there is nothing any more, or nothing that can be locked."""
    if fcntl is None:
        return None
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _temporary(final: Path, make: Callable[[], Path]) -> Iterator[Path]:
    """What ``make`` makes beside ``final``, locked while it is written, and gone at the end."""
    with naming(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        clear_killed(final)
        while True:
            temporary = make()
            descriptor = _opened(temporary)
            if descriptor is not None:
                flocked(descriptor)
            if temporary.exists():
                break  # else another writer took it, not yet locked, for a killed one's
            if descriptor is not None:
                os.close(descriptor)
        try:
            yield temporary
        finally:
            _remove(temporary)
            if descriptor is not None:
                os.close(descriptor)


@contextlib.contextmanager
def naming(final: str | Path) -> Iterator[None]:
    """Errors of writing, as an ``OSError`` that names ``final``.

    Python does not say which file a disk was too full for, and the libraries that write tensors
    have errors of their own for it.

    Args:
        final: what is being written.

    Raises:
        OSError: something could not be written.
    """
    place = Path(final)
    try:
        yield
    except OSError as error:
        named = error.filename
        parts = Path(named).parts if isinstance(named, str | Path) else ()
        beside = any(part.startswith(f".{place.name}.") for part in parts)
        if error.errno is not None and (named is None or beside):
            error.filename, error.filename2 = str(final), None
        raise
    except Exception as error:
        number = _error_number(error, place)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(final)) from error


def explained(error: OSError) -> str:
    """An error of the system as one sentence: the place, what is wrong, the mend."""
    reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
    place = f"{error.filename}: " if error.filename is not None else ""
    mend = _MENDS.get(error.errno or 0)
    return f"{place}{reason}; {mend}." if mend else f"{place}{reason}"


def _error_number(error: Exception, final: Path) -> int | None:
    """The system's number of an error of safetensors or torch in writing; None of any other."""
    text = str(error)
    if type(error).__name__ == "SafetensorError":
        told = re.search(r"os error (\d+)|\bcode: (\d+)", text)
        return int(told[1] or told[2]) if told is not None else None
    if isinstance(error, RuntimeError) and re.search(_TORCH_WRITES, text):
        place = final if final.is_dir() else final.parent
        return errno.ENOSPC if shutil.disk_usage(place).free < _FULL_BYTES else errno.EIO
    return None


def _sync(file: Path) -> None:
    """Has the disk take what was written, before a rename says that it is there."""
    with file.open("rb+" if fcntl is None else "rb") as stream:
        os.fsync(stream.fileno())


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to it on success and removed after an exception.

    The rename is atomic, so a reader sees the old file, the new file or none, never half of one.
    What a killed writer left is taken away by the next one of the same name.

    Raises:
        OSError: naming ``path``: it cannot be written.
    """
    final = Path(path)

    def make() -> Path:
        descriptor, name = tempfile.mkstemp(
            dir=final.parent, prefix=f".{final.name}.", suffix=".part" + final.suffix
        )
        os.close(descriptor)
        return Path(name)

    with _temporary(final, make) as temporary:
        yield temporary
        _sync(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(final)


@contextlib.contextmanager
def beside(path: str | Path) -> Iterator[Path]:
    """A new folder beside ``path``, to be renamed to it, or for a moment's use; gone at the end.

    Raises:
        OSError: naming ``path``: it cannot be written.
    """
    final = Path(path)

    def make() -> Path:
        return Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}.", suffix=".part"))

    with _temporary(final, make) as temporary:
        yield temporary


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place on success, else is removed.

    Where a folder is there already, a kill in the instant between two renames leaves none.

    Raises:
        OSError: naming ``path``: it cannot be written.
    """
    final = Path(path)
    with beside(final) as temporary:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _sync(file)
        temporary.chmod(0o755)
        if final.exists():
            retired = final.with_name(f"{temporary.name.removesuffix('.part')}.old.part")
            final.replace(retired)
            temporary.replace(final)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            temporary.replace(final)


def discard(folder: Path) -> None:
    """Deletes a folder, which is gone at once: nobody sees a part of it, whenever this is cut.

    Of one that is a link, the link: what it leads to may be somebody's.
    """
    clear_killed(folder)
    going = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    folder.rename(going)
    _remove(going)


def write_text(path: str | Path, text: str) -> None:
    """Writes ``text`` in UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes ``value`` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
