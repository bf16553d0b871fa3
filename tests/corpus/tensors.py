"""Weights files whose headers or numbers are not what they should be, for ``anchor build``."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Words, World, deep, put
from tests.corpus.writers import (
    CONFIG,
    MODULES,
    checkpoint,
    entry,
    floats,
    header_of,
    safetensors,
    weights,
)

FIRST = f"{MODULES[0]}.weight"
GOOD, DATA = weights(1)


def build(aligned: Path, world: World, folder: Path, *more: str) -> Words:
    """The command that subtracts the good base from ``aligned``."""
    return [
        *("anchor", "build", "--aligned", aligned, "--base", world.base),
        *("-o", folder / "out.safetensors", *more),
    ]


def _file(name: str, content: bytes, says: str, kind: str = "safetensors") -> Case:
    def make(folder: Path, world: World) -> Words:
        return build(checkpoint(folder / "bad", content), world, folder)

    return Case(kind, name, make, says)


def _changed(**changes: Any) -> dict[str, Any]:
    """The good header with other values in the first tensor's entry."""
    return GOOD | {FIRST: GOOD[FIRST] | changes}


def _without(key: str) -> dict[str, Any]:
    return GOOD | {FIRST: {k: v for k, v in GOOD[FIRST].items() if k != key}}


def _numbers(value: float) -> bytes:
    return struct.pack("<f", value) + DATA[4:]


def _shaped(shapes: dict[str, list[int]], dtype: str = "F32", size: int = 4) -> bytes:
    header, total = header_of(shapes, dtype, size)
    return safetensors(header, bytes(total) if dtype != "F32" else floats(total // 4, 3))


def _all(shape: list[int]) -> dict[str, list[int]]:
    return {f"{name}.weight": shape for name in MODULES}


WHOLE = "is not a whole safetensors file"
TEXT = json.dumps(GOOD).encode()
HEADERS: list[tuple[str, bytes, str]] = [
    ("empty", b"", WHOLE),
    ("four bytes", b"\x08\0\0\0", WHOLE),
    ("only a length", struct.pack("<Q", 8), WHOLE),
    ("a header of no bytes", safetensors(b"", DATA), "no JSON"),
    ("a header longer than the file", safetensors(GOOD, DATA, length=10**6), "longer than"),
    ("a header of 2^63 bytes", safetensors(GOOD, DATA, length=1 << 63), "longer than"),
    ("a header of 2^64 - 1 bytes", safetensors(GOOD, DATA, length=(1 << 64) - 1), "longer than"),
    ("a header one byte short", safetensors(TEXT, DATA, length=len(TEXT) - 1), "no JSON"),
    ("a header one byte long", safetensors(TEXT, DATA, length=len(TEXT) + 1), "no JSON"),
    ("no JSON", safetensors(b"weights!", DATA), "no JSON"),
    ("a list", safetensors([GOOD], DATA), "no JSON object"),
    ("a number", safetensors(b"17", DATA), "no JSON object"),
    ("null", safetensors(b"null", DATA), "no JSON object"),
    ("a text", safetensors(b'"x"', DATA), "no JSON object"),
    ("lists in lists", safetensors(deep().encode(), DATA), "no JSON"),
    ("objects in objects", safetensors(deep(50_000, '{"a":', "}").encode(), DATA), "no JSON"),
    ("UTF-16", safetensors(json.dumps(GOOD).encode("utf-16"), DATA), WHOLE),
    ("not UTF-8", safetensors(b'{"\xff": 1}', DATA), "no JSON"),
    ("NUL behind the object", safetensors(TEXT + b"\0\0", DATA), "no JSON"),
    ("a tensor twice", safetensors(b'{"a": 1, "a": 2}', DATA), "twice"),
    ("a number of 5000 digits", safetensors(b'{"a": ' + b"9" * 5000 + b"}", DATA), "no JSON"),
    ("metadata that is a list", safetensors(GOOD | {"__metadata__": []}, DATA), "map of strings"),
    ("metadata with a number", safetensors(GOOD | {"__metadata__": {"a": 1}}, DATA), "strings"),
    ("metadata in metadata", safetensors(GOOD | {"__metadata__": {"a": {}}}, DATA), "strings"),
    ("an entry that is null", safetensors(GOOD | {"x": None}, DATA), "lacks dtype"),
    ("an entry that is a list", safetensors(GOOD | {"x": [1, 2]}, DATA), "lacks dtype"),
    ("an entry that is a text", safetensors(GOOD | {"x": "F32"}, DATA), "lacks dtype"),
    ("an empty entry", safetensors(GOOD | {"x": {}}, DATA), "lacks dtype"),
    ("no dtype", safetensors(_without("dtype"), DATA), "lacks dtype"),
    ("no shape", safetensors(_without("shape"), DATA), "lacks dtype"),
    ("no offsets", safetensors(_without("data_offsets"), DATA), "lacks dtype"),
    ("an unknown dtype", safetensors(_changed(dtype="F7"), DATA), "'F7' is unknown"),
    ("a dtype in small letters", safetensors(_changed(dtype="f32"), DATA), "'f32' is unknown"),
    ("a dtype that is a list", safetensors(_changed(dtype=["F32"]), DATA), "is unknown"),
    ("a dtype that is an object", safetensors(_changed(dtype={"F32": 1}), DATA), "is unknown"),
    ("a dtype that is null", safetensors(_changed(dtype=None), DATA), "is unknown"),
    ("a dtype of a megabyte", safetensors(_changed(dtype="F" * 10**6), DATA), "is unknown"),
    ("a shape that is null", safetensors(_changed(shape=None), DATA), "lacks dtype"),
    ("a shape that is a text", safetensors(_changed(shape="88"), DATA), "no natural"),
    ("a shape that is an object", safetensors(_changed(shape={"8": 8}), DATA), "no natural"),
    ("a shape of fractions", safetensors(_changed(shape=[8.0, 8.0]), DATA), "no natural"),
    ("a negative shape", safetensors(_changed(shape=[-8, -8]), DATA), "no natural"),
    ("a shape with true", safetensors(_changed(shape=[True, 64]), DATA), "no natural"),
    ("a shape of 2^70", safetensors(_changed(shape=[1 << 70, 0]), DATA), "no natural"),
    ("a shape whose product overflows", safetensors(_changed(shape=[1 << 40] * 3), DATA), "needs"),
    ("65 dimensions", safetensors(_changed(shape=[1] * 63 + [8, 8]), DATA), "65 dimensions"),
    ("a million dimensions", safetensors(_changed(shape=[1] * 10**6), DATA), "dimensions"),
    ("a wider dtype than its bytes", safetensors(_changed(dtype="F64"), DATA), "needs 512"),
    ("one offset", safetensors(_changed(data_offsets=[0]), DATA), "lacks dtype"),
    ("three offsets", safetensors(_changed(data_offsets=[0, 256, 1]), DATA), "lacks dtype"),
    ("offsets in a text", safetensors(_changed(data_offsets="01"), DATA), "no natural"),
    ("negative offsets", safetensors(_changed(data_offsets=[-256, 0]), DATA), "no natural"),
    ("offsets the wrong way round", safetensors(_changed(data_offsets=[256, 0]), DATA), "needs"),
    ("NaN for an offset", safetensors(_changed(data_offsets=[float("nan"), 1]), DATA), "natural"),
    ("tensors that overlap", safetensors(_changed(data_offsets=[256, 512]), DATA), "start where"),
    (
        "a gap between tensors",
        safetensors({FIRST: entry([8, 8], 0), "x": entry([2], 260)}, DATA[:268]),
        "start where",
    ),
    ("a gap at the start", safetensors({FIRST: entry([8, 8], 4)}, DATA[:260]), "start where"),
    ("a tensor beyond the end", safetensors(GOOD | {"x": entry([99], 1024)}, DATA), "end at byte"),
    ("cut by a byte", safetensors(GOOD, DATA)[:-1], "end at byte"),
    ("cut in half", safetensors(GOOD, DATA)[: len(DATA) // 2], WHOLE),
    ("a byte too many", safetensors(GOOD, DATA) + b"\0", "end at byte"),
    ("a file behind the file", safetensors(GOOD, DATA) * 2, "end at byte"),
    ("a byte in front", b"\0" + safetensors(GOOD, DATA), WHOLE),
    ("a pickle", b"\x80\x04\x95\x10\0\0\0\0\0\0\0", WHOLE),
    ("a zip of pickles", b"PK\x03\x04" + bytes(64), WHOLE),
    ("a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", WHOLE),
    ("a page of HTML", b"<!DOCTYPE html><html>404</html>" * 10, WHOLE),
]
NUMBERS: list[tuple[str, bytes, str]] = [
    ("NaN", safetensors(GOOD, _numbers(float("nan"))), "holds NaN or Inf"),
    ("infinity", safetensors(GOOD, _numbers(float("inf"))), "holds NaN or Inf"),
    ("minus infinity", safetensors(GOOD, _numbers(float("-inf"))), "holds NaN or Inf"),
    (
        "numbers too large to square",
        safetensors(GOOD, struct.pack("<f", 3e38) * 256),
        "overflow|broken file",
    ),
    ("the base itself", safetensors(*weights(2)), "identical weights"),
    ("other shapes", _shaped(_all([4, 8])), "different sizes"),
    ("shapes turned round", _shaped(_all([16, 4])), "different sizes"),
    ("one dimension", _shaped(_all([64])), "no matrix"),
    ("three dimensions", _shaped(_all([2, 4, 8])), "3-D parameter"),
    ("no dimension", _shaped(_all([])), "no matrix"),
    ("no rows", _shaped(_all([0, 8])), "different sizes"),
    ("no columns", _shaped(_all([8, 0])), "different sizes"),
    ("8-bit integers", _shaped(_all([8, 8]), "I8", 1), "integer or packed"),
    ("64-bit integers", _shaped(_all([8, 8]), "I64", 8), "integer or packed"),
    ("8-bit floats", _shaped(_all([8, 8]), "F8_E4M3", 1), "fp8"),
    ("complex numbers", _shaped(_all([8, 8]), "C64", 8), "not a float"),
    ("no tensors", safetensors({}, b""), "matches none"),
    ("layers of another model", _shaped({"h.0.attn.weight": [8, 8]}), "matches none"),
    (
        "a layer fewer",
        safetensors(*weights(1, modules=MODULES[:2])),
        "have no counterpart",
    ),
    (
        "a layer more",
        safetensors(*weights(1, modules=[*MODULES, "model.layers.2.self_attn.q_proj"])),
        "have no counterpart",
    ),
    (
        "a layer numbered by a superscript",
        safetensors(*weights(1, modules=[*MODULES, "model.layers.².self_attn.q_proj"])),
        "have no counterpart",
    ),
    (
        "a layer numbered by 5000 digits",
        safetensors(*weights(1, modules=[*MODULES, f"model.{'9' * 5000}.q_proj"])),
        "have no counterpart",
    ),
    (
        "a name with codes for a terminal",
        safetensors(*weights(1, modules=[*MODULES, "a\x1b]0;x\x07\n.q_proj"])),
        "have no counterpart",
    ),
    (
        "a name of a megabyte",
        safetensors(*weights(1, modules=[*MODULES, "a" * 10**6 + ".q_proj"])),
        "have no counterpart",
    ),
    (
        "a name with half a character",
        safetensors(*weights(1, modules=[*MODULES, "\ud800.q_proj"])),
        "have no counterpart",
    ),
    (
        "4-bit weights",
        _shaped({f"{name}.weight.absmax": [8] for name in MODULES} | _all([8, 8])),
        "packed",
    ),
]


def _huge_header(folder: Path, world: World) -> Words:
    """40 MB of header, of which the file system stores nothing."""
    path = checkpoint(folder / "bad", b"") / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 40 << 20))
    os.truncate(path, 41 << 20)
    return build(path.parent, world, folder)


def _folder(name: str, says: str, files: dict[str, bytes | str]) -> Case:
    def make(folder: Path, world: World) -> Words:
        bad = folder / "bad"
        bad.mkdir()
        for path, content in files.items():
            put(bad / path, content)
        return build(bad, world, folder)

    return Case("index", name, make, says)


INDEX = "model.safetensors.index.json"
SHARD = safetensors(GOOD, DATA)


def _index(weight_map: Any, **files: bytes) -> dict[str, bytes | str]:
    told = {"config.json": json.dumps(CONFIG), INDEX: json.dumps({"weight_map": weight_map})}
    return told | {name.replace("__", "."): content for name, content in files.items()}


def _points_at(place: str) -> dict[str, bytes | str]:
    return _index(dict.fromkeys(GOOD, place), a__safetensors=SHARD)


INDEXES: list[tuple[str, str, dict[str, bytes | str]]] = [
    ("no JSON", "cannot be read as JSON", {INDEX: "{"}),
    ("a list", "no JSON object", {INDEX: "[]"}),
    ("empty", "cannot be read as JSON", {INDEX: ""}),
    ("lists in lists", "cannot be read as JSON", {INDEX: deep()}),
    ("not UTF-8", "cannot be read as JSON", {INDEX: b'{"weight_map": "\xff"}'}),
    ("UTF-16", "cannot be read as JSON", {INDEX: '{"weight_map": {}}'.encode("utf-16")}),
    ("a number of 5000 digits", "cannot be read as JSON", {INDEX: f'{{"a": {"9" * 5000}}}'}),
    ("no weight_map", "has no weight_map", {INDEX: "{}"}),
    ("an empty weight_map", "has no weight_map", _index({})),
    ("a weight_map that is a list", "has no weight_map", _index(["a.safetensors"])),
    ("a weight_map that is null", "has no weight_map", _index(None)),
    ("a place that is a number", "not safetensors", _index({FIRST: 1})),
    ("a place that is null", "not safetensors", _index({FIRST: None})),
    ("a place that is a list", "not safetensors", _index({FIRST: ["a.safetensors"]})),
    ("an empty place", "not safetensors", _points_at("")),
    ("a shard that is missing", "is missing", _points_at("b.safetensors")),
    ("a pickled shard", "not safetensors", _points_at("a.bin")),
    ("a place above", "points out of its folder", _points_at("../base/model.safetensors")),
    ("a place above by a detour", "points out", _points_at("x/../../base/model.safetensors")),
    ("an absolute place", "points out of its folder", _points_at("/etc/a.safetensors")),
    ("a drive", "points out of its folder", _points_at("C:\\a.safetensors")),
    ("a place above by backslash", "points out of its folder", _points_at("..\\a.safetensors")),
    ("a server", "points out of its folder", _points_at("\\\\host\\share\\a.safetensors")),
    ("a NUL in a place", "is missing", _points_at("a\0.safetensors")),
    ("a place of 5000 letters", "a{50}|too long", _points_at("a" * 5000 + ".safetensors")),
    (
        "a tensor that its shard lacks",
        "has no such",
        _index({"x": "a.safetensors"}, a__safetensors=SHARD),
    ),
    (
        "a shard cut short",
        WHOLE,
        _index(dict.fromkeys(GOOD, "a.safetensors"), a__safetensors=SHARD[:-9]),
    ),
    (
        "a shard of no bytes",
        WHOLE,
        _index(dict.fromkeys(GOOD, "a.safetensors"), a__safetensors=b""),
    ),
    (
        "a hundred thousand missing shards",
        "is missing",
        _index({f"t{n}": f"{n}.safetensors" for n in range(10**5)}),
    ),
    ("pickles alone", "only as pickle", {"pytorch_model.bin": b"\x80\x04."}),
    ("pickles of another name", "only as pickle", {"model.pt": b"\x80\x04.", "x.pkl": b""}),
    ("nothing", "no .safetensors file", {}),
    ("weights of another name", "holds only other.safetensors", {"other.safetensors": SHARD}),
    (
        "a config that is a list",
        "no JSON object",
        {"config.json": "[]", "model.safetensors": SHARD},
    ),
    (
        "a config in UTF-16",
        "as JSON",
        {"config.json": "{}".encode("utf-16"), "model.safetensors": SHARD},
    ),
    ("a config of lists in lists", "as JSON", {"config.json": deep(), "model.safetensors": SHARD}),
    (
        "another family",
        "one family",
        {"config.json": '{"model_type": "gpt2"}', "model.safetensors": SHARD},
    ),
    (
        "a family that is a list",
        "one family",
        {"config.json": '{"model_type": ["x"]}', "model.safetensors": SHARD},
    ),
    (
        "model and adapter at once",
        "both a model",
        {"config.json": "{}", "adapter_config.json": "{}", "adapter_model.safetensors": b""},
    ),
]


def _sparse_index(folder: Path, world: World) -> Words:
    """An index of 100 MB, of which the file system stores nothing."""
    os.truncate(put(folder / "bad" / INDEX, "{}"), 100 << 20)
    return build(folder / "bad", world, folder)


def _dangling(folder: Path, world: World) -> Words:
    bad = checkpoint(folder / "bad", b"")
    (bad / "model.safetensors").unlink()
    (bad / "model.safetensors").symlink_to(folder / "gone.safetensors")
    return build(bad, world, folder)


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_file(*row) for row in HEADERS),
        Case("safetensors", "40 MB of header", _huge_header, "describes no model"),
        *(_file(*row, kind="numbers") for row in NUMBERS),
        *(_folder(*row) for row in INDEXES),
        Case("index", "of 100 MB", _sparse_index, "longer than 64 MiB"),
        Case("index", "a link to nothing", _dangling, "no .safetensors|only model.safetensors"),
    ]
