"""Safetensors files read by hand: headers validated in full, then one tensor at a time.

Tensors are read into memory of their own rather than mapped, so that a process holds what it is
working on and nothing else, and so that a file cut short is an error and not a bus fault. Large
ones can be had a few rows at a time, while these are in the processor's cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anchortune.errors import CheckpointError

_MAX_HEADER_BYTES = 32 << 20
"""Ten times what the largest models need; as Python objects some 700 MB at worst."""
_MAX_DIMS = 64
_MAX_SIZE = 1 << 63
_BLOCK_ELEMENTS = 1 << 19
DTYPE_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1},
    **{"BOOL": 1, "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8},
}
FLOAT_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: its file, the safetensors dtype, shape, and byte range."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class RawTensor:
    """One tensor as stored, with the digest of its name, dtype, shape and bytes."""

    value: Tensor
    digest: str


def tensor_digest(name: str, dtype: str, shape: tuple[int, ...], data: Any) -> str:
    """The SHA-256 of one tensor: its name, dtype and shape, then its bytes as stored."""
    digest = _begun_digest(name, dtype, shape)
    digest.update(data)
    return digest.hexdigest()


def _begun_digest(name: str, dtype: str, shape: tuple[int, ...]) -> hashlib._Hash:
    return hashlib.sha256(json.dumps([name, dtype, list(shape)]).encode())


def block_rows(shape: tuple[int, ...]) -> int:
    """How many rows of a tensor of this shape, whatever its dtype, are read at a time."""
    return max(1, _BLOCK_ELEMENTS // max(1, math.prod(shape[1:])))


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors of a safetensors file by name, and its string metadata.

    Raises:
        CheckpointError: the file is not there, not safetensors, cut short or padded, or its header
            gives a tensor an unknown dtype, a size that does not fit, or bytes of another's.
    """

    def broken(why: str) -> CheckpointError:
        return CheckpointError(f"{path} is not a whole safetensors file ({why}): get it again")

    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or 8 + length > size:
                raise broken("its header is longer than the file")
            if length > _MAX_HEADER_BYTES:
                raise broken(f"a header of {length} bytes describes no model")
            text = stream.read(length).decode("utf-8")  # json would guess UTF-16 and others
            header = json.loads(text, object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise broken(f"its header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise broken("its header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise broken("its metadata is no map of strings")
    start = 8 + length
    tensors = {name: _entry(name, value, path, start) for name, value in header.items()}
    position = start
    for info in sorted(tensors.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != position:
            raise broken(f"tensor {info.name!r} does not start where the one before it ends")
        position = info.end
    if position != size:
        raise broken(f"its tensors end at byte {position}, the file at {size}")
    return tensors, metadata


def _entry(name: str, value: Any, path: Path, start: int) -> TensorInfo:
    def broken(why: str) -> CheckpointError:
        return CheckpointError(
            f"{path} is not a whole safetensors file (tensor {name!r}: {why}): get it again"
        )

    try:
        dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise broken("its entry lacks dtype, shape or data_offsets") from error
    numbers = [*shape, begin, end]
    if not all(type(n) is int and 0 <= n < _MAX_SIZE for n in numbers):
        raise broken("its shape or offsets are no natural numbers of 63 bits")
    if len(shape) > _MAX_DIMS:
        raise broken(f"it has {len(shape)} dimensions")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise broken(f"its dtype {str(dtype)[:40]!r} is unknown")
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise broken(f"it has {end - begin} bytes where {dtype} {list(shape)} needs {expected}")
    return TensorInfo(name, path, dtype, shape, start + begin, start + end)


def read_tensor(info: TensorInfo, *, hashed: bool = True) -> RawTensor:
    """One floating-point tensor in its stored dtype, in memory of its own.

    Raises:
        CheckpointError: the dtype is not F64, F32, F16 or BF16, or the file has changed.
    """
    _refuse_other_dtypes(info)
    with info.file.open("rb") as stream:
        stream.seek(info.begin)
        data = np.fromfile(stream, dtype=np.uint8, count=info.end - info.begin)
    if data.size != info.end - info.begin:
        raise _cut_short(info)
    digest = tensor_digest(info.name, info.dtype, info.shape, data) if hashed else ""
    if not data.size:  # of which torch takes no view
        return RawTensor(torch.empty(info.shape, dtype=FLOAT_DTYPES[info.dtype]), digest)
    value = torch.from_numpy(data).view(FLOAT_DTYPES[info.dtype]).reshape(info.shape)
    return RawTensor(value, digest)


def read_blocks(info: TensorInfo, on_digest: Callable[[str], None]) -> Iterator[Tensor]:
    """One floating-point tensor, `block_rows` rows at a time.

    A block is hashed and given out while it is in cache; it lies in memory that the next block
    overwrites. ``on_digest`` gets the digest of the whole once the last block was taken.

    Raises:
        CheckpointError: as in `read_tensor`.
    """
    _refuse_other_dtypes(info)
    digest = _begun_digest(info.name, info.dtype, info.shape)
    row = math.prod(info.shape[1:]) * DTYPE_BYTES[info.dtype]
    rows, left = block_rows(info.shape), info.shape[0]
    memory = torch.empty(min(rows, left) * row, dtype=torch.uint8)
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.begin)
        while left > 0:
            rows = min(rows, left)
            block = memory[: rows * row]
            data, filled = block.numpy().data, 0
            while filled < len(data):
                got = stream.readinto(data[filled:])
                if not got:
                    raise _cut_short(info)
                filled += got
            digest.update(data)
            left -= rows
            yield block.view(FLOAT_DTYPES[info.dtype]).view(rows, *info.shape[1:])
    on_digest(digest.hexdigest())


def _refuse_other_dtypes(info: TensorInfo) -> None:
    if info.dtype not in FLOAT_DTYPES:
        raise CheckpointError(
            f"{info.file}: tensor {info.name!r} is {info.dtype}, not a float"
            ": give the checkpoint in 16 or 32 bits"
        )


def _cut_short(info: TensorInfo) -> CheckpointError:
    return CheckpointError(f"{info.file} was cut short while it was read: get it again")
