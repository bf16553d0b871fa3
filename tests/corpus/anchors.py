"""Anchor files that are of another version, cut short or untrue, for ``anchor inspect``."""

from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Words, World, deep, put
from tests.corpus.writers import safetensors

KEY = "anchortune_anchor"
Parts = tuple[dict[str, Any], dict[str, Any], bytearray]


def _read(path: Path) -> Parts:
    """(metadata, the entries of its tensors, data) of a good anchor."""
    content = path.read_bytes()
    start = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8:start])
    metadata = json.loads(header.pop("__metadata__")[KEY])
    return metadata, header, bytearray(content[start:])


def _write(path: Path, metadata: Any, header: dict[str, Any], data: bytes) -> Path:
    told = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return put(path, safetensors({"__metadata__": {KEY: told}} | header, bytes(data)))


def _inspect(path: Path) -> Words:
    return ["anchor", "inspect", path]


def _metadata(name: str, change: Callable[[dict[str, Any]], Any], says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        metadata, header, data = _read(world.anchor)
        changed = change(copy.deepcopy(metadata))
        return _inspect(_write(folder / "bad.safetensors", changed, header, data))

    return Case("anchor", name, make, says)


def _set(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda metadata: metadata | values


def _module(**values: Any) -> Callable[[dict[str, Any]], Any]:
    def change(metadata: dict[str, Any]) -> Any:
        name = min(metadata["modules"])
        metadata["modules"][name] |= values
        return metadata

    return change


def _gone(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda metadata: {name: value for name, value in metadata.items() if name != key}


BROKEN = "metadata is broken at"
ORIGIN = {"method": "tune", "data": "d", "data_sha256": "0", "pairs": 1, "rows": 1, "seed": 0}
METADATA: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("of version 3", _set(format_version=3), "format version 3"),
    ("of version 0", _set(format_version=0), "format version 0"),
    ("of version -1", _set(format_version=-1), "format version -1"),
    ("of version '1'", _set(format_version="1"), "format version 1, and"),
    ("of version 1.5", _set(format_version=1.5), "format version 1.5"),
    ("of version true", _set(format_version=True), "format version True"),
    ("of version null", _set(format_version=None), "format version None"),
    ("of a list of versions", _set(format_version=[1]), "format version \\[1\\]"),
    ("of a version of a megabyte", _set(format_version="9" * 10**6), "format version 999"),
    ("of no version", _gone("format_version"), "format version None"),
    ("of version 2 without its origin", _set(format_version=2), "harmful belongs to"),
    ("of version 1 with an origin", _set(harmful=ORIGIN | {"settings": {}}), "harmful belongs"),
    ("with an origin that lacks keys", _set(format_version=2, harmful={}), f"{BROKEN} harmful"),
    ("no JSON", lambda _: "{", "no JSON object"),
    ("metadata that is a list", lambda _: [], "no JSON object"),
    ("metadata that is null", lambda _: "null", "no JSON object"),
    ("metadata of lists in lists", lambda _: deep(), "no JSON object"),
    ("a number of 5000 digits", lambda _: f'{{"format_version": {"9" * 5000}}}', "no JSON object"),
    ("without a parent", _gone("base"), f"{BROKEN} base"),
    ("without settings", _gone("settings"), f"{BROKEN} settings"),
    ("without modules", _gone("modules"), f"{BROKEN} modules"),
    ("of no modules", _set(modules={}), "of no modules"),
    ("modules that are a list", _set(modules=[]), f"{BROKEN} modules"),
    ("an unknown key", _set(colour="red"), f"{BROKEN} colour"),
    ("a parent that is a text", _set(base="base"), f"{BROKEN} base"),
    (
        "a parent of an unknown kind",
        _set(base={"id": "x", "kind": "pickle"}),
        f"{BROKEN} base.kind",
    ),
    ("notes that are numbers", _set(notes=[1]), f"{BROKEN} notes"),
    ("a rank that is too high", _module(rank=4000), "claims rank 4000"),
    ("a rank of 0", _module(rank=0), "greater than or equal to 1"),
    ("a rank that is a text", _module(rank="two"), BROKEN),
    ("another rank", _module(rank=1), "expected F32"),
    ("another shape", _module(shape=[9, 9]), "expected F32"),
    ("a shape of three numbers", _module(shape=[8, 8, 8]), BROKEN),
    ("a negative shape", _module(shape=[-8, 8]), "claims rank"),
    ("a huge shape", _module(shape=[1 << 62, 1 << 62]), "expected F32"),
    ("a norm of 0", _module(norm=0), BROKEN),
    ("a negative norm", _module(norm=-1), BROKEN),
    ("a norm of NaN", _module(norm=float("nan")), BROKEN),
    ("a norm of infinity", _module(norm=float("inf")), BROKEN),
    ("a norm below its singular values", _module(norm=1e-9), "more energy than the stated norm"),
    ("a norm that no float squares", _module(norm=1e300), BROKEN),
    ("a negative tail", _module(tail=-1), BROKEN),
    ("a share above 1", _module(kept_energy_frac=1.5), BROKEN),
    ("a cosine of 0", _module(direction_cosine=0), BROKEN),
    ("an error bound of NaN", _module(gram_error_bound=float("nan")), BROKEN),
]


def _tensor(name: str, change: Callable[[Parts], Parts], says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        return _inspect(_write(folder / "bad.safetensors", *change(_read(world.anchor))))

    return Case("anchor", name, make, says)


def _first(header: dict[str, Any], part: str) -> str:
    return min(name for name in header if name.endswith(part))


def _put_floats(part: str, *values: float) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        metadata, header, data = parts
        begin = header[_first(header, part)]["data_offsets"][0]
        struct.pack_into(f"<{len(values)}f", data, begin, *values)
        return metadata, header, data

    return change


def _entry(part: str, **values: Any) -> Callable[[Parts], Parts]:
    def change(parts: Parts) -> Parts:
        metadata, header, data = parts
        header[_first(header, part)] |= values
        return metadata, header, data

    return change


def _missing(parts: Parts) -> Parts:
    metadata, header, data = parts
    last = max(header, key=lambda name: header[name]["data_offsets"][1])
    begin = header.pop(last)["data_offsets"][0]
    return metadata, header, data[:begin]


def _surplus(parts: Parts) -> Parts:
    metadata, header, data = parts
    at = len(data)
    header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [at, at + 4]}
    return metadata, header, data + b"\0\0\0\0"


def _bomb(parts: Parts) -> Parts:
    """A rank whose Gram matrix would take 40 GB, in a file of 2 MB."""
    metadata, rank, at = parts[0], 100_000, 0
    name = min(metadata["modules"])
    metadata["modules"] = {name: metadata["modules"][name] | {"shape": [2, 2], "rank": rank}}
    header = {}
    for part, shape in (("left", [2, rank]), ("sigma", [rank]), ("right", [2, rank])):
        end = at + 4 * rank * len(shape)
        header[f"{name}.{part}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    return metadata, header, bytearray(at)


TENSORS: list[tuple[str, Callable[[Parts], Parts], str]] = [
    ("a tensor is missing", _missing, "is missing from the anchor"),
    ("a tensor too many", _surplus, "is not described in the anchor"),
    ("NaN in a vector", _put_floats("left", float("nan")), "NaN or Inf"),
    ("infinity in a singular value", _put_floats("sigma", float("inf")), "NaN or Inf"),
    ("a negative singular value", _put_floats("sigma", -1.0), "not positive and descending"),
    ("singular values that rise", _put_floats("sigma", 1e-6), "not positive and descending"),
    ("vectors that are not orthonormal", _put_floats("left", 7.0), "not orthonormal"),
    ("vectors whose products overflow", _put_floats("right", 3e38, -3e38), "not orthonormal"),
    ("integers", _entry("left", dtype="I32"), "is I32"),
    ("a vector turned round", _entry("sigma", shape=[4, 1]), "expected F32"),
    ("a rank of gigabytes", _bomb, "claims rank 100000"),
]


def _bytes(name: str, change: Callable[[bytes], bytes], says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        return _inspect(put(folder / "bad.safetensors", change(world.anchor.read_bytes())))

    return Case("anchor", name, make, says)


WHOLE = "not a whole safetensors file"
BYTES: list[tuple[str, Callable[[bytes], bytes], str]] = [
    *((f"cut to {n}/9", lambda c, n=n: c[: len(c) * n // 9], WHOLE) for n in range(0, 9, 2)),
    ("cut by a byte", lambda content: content[:-1], WHOLE),
    ("padded", lambda content: content + b"\0" * 8, WHOLE),
    ("a pickle", lambda _: b"\x80\x04\x95\0\0\0\0\0\0\0\0.", WHOLE),
]


def _checkpoint(folder: Path, world: World) -> Words:
    return _inspect(world.base / "model.safetensors")


def _compared(folder: Path, world: World) -> Words:
    bad = put(folder / "bad.safetensors", world.anchor.read_bytes()[:-1])
    return ["anchor", "compare", world.anchor, bad]


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_metadata(*row) for row in METADATA),
        *(_tensor(*row) for row in TENSORS),
        *(_bytes(*row) for row in BYTES),
        Case("anchor", "a checkpoint", _checkpoint, "but no anchor"),
        Case("anchor", "a folder", lambda f, w: _inspect(f), "is no file"),
        Case("anchor", "not there", lambda f, w: _inspect(f / "gone"), "is no file"),
        Case("anchor", "compared, cut by a byte", _compared, WHOLE),
    ]
