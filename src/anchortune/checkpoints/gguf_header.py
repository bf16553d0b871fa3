"""The header of a GGUF file walked through before the gguf library reads it.

The library believes lengths: a list that claims more items than the file has bytes keeps it busy,
and its memory growing, without end. Here every length is held against the file first.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import BinaryIO

from anchortune.errors import CheckpointError

_MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
#: Bytes of a value by its type's number.
_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
#: The library makes an object of each item of a list; the largest vocabularies need a quarter.
_MOST_ITEMS = 4 << 20
_MOST_TENSORS = 1 << 18
_MOST_KEYS = 1 << 16
_MOST_DIMS = 4
_LONGEST_NAME = 1 << 16


def check_header(path: Path) -> None:
    """Raises a CheckpointError where a GGUF file's header claims what the file cannot hold."""
    try:
        found = path.stat()
        _walked(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is no whole GGUF file ({error}): get it again") from None


@functools.lru_cache(maxsize=16)
def _walked(path: Path, size: int, changed_ns: int) -> None:
    """Walks once through a file that does not change: a large vocabulary takes a second."""
    with path.open("rb") as stream:
        _Walk(stream, size).whole()


class _Walk:
    """One pass over a header; a ValueError says what is wrong."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream, self._size = stream, size
        self._order = "<"
        self._items = 0

    def whole(self) -> None:
        """From the magic to the last tensor's entry."""
        if self._stream.read(4) != _MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self._number("I")
        if version & 0xFFFF == 0:
            self._order = ">"
            version = int.from_bytes(struct.pack("<I", version), "big")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, and 2 and 3 are known")
        tensors, keys = self._number("Q"), self._number("Q")
        if tensors > _MOST_TENSORS or keys > _MOST_KEYS:
            raise ValueError(f"it claims {tensors} tensors and {keys} keys")
        for _ in range(keys):
            self._skip_string(_LONGEST_NAME)
            self._skip_value(self._number("I"))
        for _ in range(tensors):
            self._skip_string(_LONGEST_NAME)
            dims = self._number("I")
            if dims > _MOST_DIMS:
                raise ValueError(f"a tensor claims {dims} dimensions")
            self._skip(8 * dims + 4)  # the dimensions and the type
            if (offset := self._number("Q")) > self._size:
                raise ValueError(f"a tensor claims to lie at byte {offset}")

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._skip_string(self._size)
        elif kind == _ARRAY:
            inner, count = self._number("I"), self._number("Q")
            self._items += count
            if self._items > _MOST_ITEMS:
                raise ValueError(f"its lists claim {self._items} items")
            if inner == _ARRAY:
                raise ValueError("a list holds lists")
            if inner == _STRING:
                for _ in range(count):
                    self._skip_string(self._size)
            else:
                self._skip(count * self._width(inner))
        else:
            self._skip(self._width(kind))

    def _width(self, kind: int) -> int:
        if kind not in _BYTES:
            raise ValueError(f"a value is of the unknown type {kind}")
        return _BYTES[kind]

    def _skip_string(self, most: int) -> None:
        length = self._number("Q")
        if length > most:
            raise ValueError(f"a name or text claims {length} bytes")
        self._skip(length)

    def _skip(self, count: int) -> None:
        end = self._stream.tell() + count
        if end > self._size:
            raise ValueError("its header is longer than the file")
        self._stream.seek(end)

    def _number(self, code: str) -> int:
        data = self._stream.read(struct.calcsize(f"<{code}"))
        if len(data) != struct.calcsize(f"<{code}"):
            raise ValueError("its header is longer than the file")
        return int(struct.unpack(f"{self._order}{code}", data)[0])
