"""Gets the data that the experiments name, from its public homes, each file checked by its SHA-256.

    ANCHORTUNE_DATA=FOLDER python experiments/fetch.py              # all of sources.yaml
    python experiments/fetch.py --into FOLDER --only asft xstest    # some sets
    python experiments/fetch.py --into FOLDER --check               # only tell what is missing

A config then names a file as ``data:PATH``, with ``ANCHORTUNE_DATA`` set to the folder. A file that
is there and right is left alone, a download that was cut short goes on where it stopped, and a file
has its name only when all of it has come and its hash is right. Needs Python and PyYAML alone.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

SOURCES = Path(__file__).with_name("sources.yaml")
VARIABLE = "ANCHORTUNE_DATA"
TIMEOUT_S = 60
_BLOCK = 1 << 16


class Problem(Exception):
    """What is wrong, as one sentence."""


@dataclass(frozen=True)
class Source:
    """One file.

    Attributes:
        set: the set it belongs to.
        url: where it is to be had.
        path: where it goes, relative to the folder of data.
        sha256: of its bytes, in hexadecimal.
        size_bytes: of it.
    """

    set: str
    url: str
    path: str
    sha256: str
    size_bytes: int


def read_sources(path: Path) -> list[Source]:
    """The files that a list like ``sources.yaml`` names.

    Raises:
        Problem: it cannot be read, misses a key, or names a path outside the folder.
    """
    try:
        tree: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = [
            Source(name, one["base"] + file["from"], file["to"], file["sha256"], file["bytes"])
            for name, one in tree.items()
            for file in one["files"]
        ]
    except (OSError, yaml.YAMLError, AttributeError, TypeError) as error:
        raise Problem(f"{path}: not a list of sources ({error}).") from None
    except KeyError as error:
        raise Problem(f"{path}: a source has no {error}.") from None
    for source in found:
        place = PurePosixPath(source.path)
        if place.is_absolute() or ".." in place.parts or ":" in source.path:
            raise Problem(f"{path}: {source.path} is no path below the folder of data.")
    return found


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            total.update(block)
    return total.hexdigest()


def is_right(source: Source, folder: Path) -> bool:
    """Whether the file is there with the right bytes."""
    path = folder / source.path
    if not path.is_file() or path.stat().st_size != source.size_bytes:
        return False
    return digest(path) == source.sha256


def fetch(source: Source, folder: Path, timeout_s: float = TIMEOUT_S) -> None:
    """Downloads one file and gives it its name once its hash is right.

    What has come of it stays as ``NAME.part``, for the next try to go on from.

    Raises:
        Problem: it cannot be reached, or it is not the file that was meant.
    """
    path = folder / source.path
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    held = part.stat().st_size if part.is_file() else 0
    if held > source.size_bytes:
        part.unlink()
        held = 0
    if held < source.size_bytes:
        _download(source, part, held, timeout_s)
    if part.stat().st_size < source.size_bytes:
        raise Problem(f"{source.path}: the download ended early; run this again to go on.")
    found = digest(part)
    if found != source.sha256 or part.stat().st_size != source.size_bytes:
        part.unlink()  # nothing to go on from
        raise Problem(
            f"{source.path}: what came from {source.url} has SHA-256 {found[:12]}… or another "
            f"size, and {source.sha256[:12]}… with {source.size_bytes} bytes is expected; the file "
            "there has changed."
        )
    part.replace(path)


def _download(source: Source, part: Path, held: int, timeout_s: float) -> None:
    """Appends to ``part`` what is missing, or starts anew where the server sends all of it."""
    headers = {"User-Agent": "anchortune-fetch", "Accept-Encoding": "identity"}
    if held:
        headers["Range"] = f"bytes={held}-"
    request = urllib.request.Request(source.url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            resumed = bool(held) and getattr(answer, "status", None) == 206
            left = source.size_bytes - (held if resumed else 0)
            with part.open("ab" if resumed else "wb") as stream:
                # One byte more than expected is enough to tell that it is another file.
                while left >= 0 and (block := answer.read(min(_BLOCK, left + 1))):
                    left -= len(block)
                    stream.write(block)
                stream.flush()
                os.fsync(stream.fileno())
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise Problem(f"{source.path}: cannot be had from {source.url} ({reason}).") from None


def run(given: argparse.Namespace) -> int:
    """Does what the command line asks for; the number of files that are missing at the end."""
    sources = read_sources(given.sources)
    names = list(dict.fromkeys(source.set for source in sources))
    unknown = [name for name in given.only or [] if name not in names]
    if unknown:
        raise Problem(f"there is no set '{unknown[0]}'; there are {', '.join(names)}.")
    root = given.into or os.environ.get(VARIABLE)
    if not root:
        raise Problem(f"say where the data goes: set {VARIABLE}, or give --into FOLDER.")
    folder = Path(root).expanduser()
    wanted = [source for source in sources if not given.only or source.set in given.only]
    missing = []
    for source in wanted:
        if is_right(source, folder):
            continue
        if given.check:
            missing.append(f"{source.path}: not there, or not the file that is meant")
            continue
        print(f"{source.path} ({source.size_bytes / 1e6:.1f} MB)", flush=True)
        try:
            fetch(source, folder)
        except Problem as problem:
            missing.append(str(problem))
        except OSError as error:
            missing.append(f"{source.path}: cannot be written ({error.strerror})")
    for line in missing:
        print(line, file=sys.stderr)
    print(f"{len(wanted) - len(missing)} of {len(wanted)} files are there", flush=True)
    return len(missing)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 where all files are there, 1 where some are missing, 2 for a mistake."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--into", help=f"the folder of data; else the variable {VARIABLE}")
    parser.add_argument("--only", nargs="+", metavar="SET", help="sets of the list; else all")
    parser.add_argument("--check", action="store_true", help="tell what is missing, fetch nothing")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="another list of files")
    try:
        return 1 if run(parser.parse_args(arguments)) else 0
    except Problem as problem:
        print(f"fetch: {problem}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
