"""GGUF files cut short, or whose lengths, counts and types lie, for ``anchor build``."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.corpus.case import Case, Words, World, put
from tests.corpus.tensors import build
from tests.corpus.writers import (
    ARCHITECTURE,
    ARRAY,
    GGUF_NAMES,
    HEADS,
    SIDE,
    STRING,
    U8,
    U32,
    gguf,
    gguf_tensor,
    listed,
    pair,
    text,
)

WHOLE = "is no whole GGUF file"
GOOD = gguf()
HUGE = 1 << 60


def _with(*more: bytes) -> bytes:
    return gguf([ARCHITECTURE, HEADS, *more])


def _heads(count: int) -> bytes:
    return gguf([ARCHITECTURE, pair("llama.attention.head_count", U32, struct.pack("<I", count))])


def _sized(width: int, layers: int) -> bytes:
    """The good file with the sizes of a model."""
    sizes = {"embedding_length": width, "block_count": layers, "feed_forward_length": 8}
    return _with(*(pair(f"llama.{k}", U32, struct.pack("<I", v)) for k, v in sizes.items()))


def _first(tensor: bytes) -> bytes:
    """The good file with another first tensor."""
    size = 4 * SIDE * SIDE
    rest = [gguf_tensor(n, [SIDE, SIDE], 0, i * size) for i, n in enumerate(GGUF_NAMES)][1:]
    return gguf(tensors=[tensor, *rest])


NAME = GGUF_NAMES[0]
FILES: list[tuple[str, bytes, str]] = [
    ("of no bytes", b"", WHOLE),
    ("of other magic", gguf(magic=b"GGML"), "does not begin with GGUF"),
    ("of version 1", gguf(version=1), "its version is 1"),
    ("of version 4", gguf(version=4), "its version is 4"),
    ("of version 2^32 - 1", gguf(version=(1 << 32) - 1), "its version is"),
    *((f"cut to {n}/12", GOOD[: len(GOOD) * n // 12], WHOLE) for n in range(1, 12)),
    *((f"cut to {n} bytes", GOOD[:n], WHOLE) for n in (3, 6, 12, 20, 24, 30, 60, 90)),
    ("more keys than it holds", gguf(keys=9), WHOLE),
    ("2^60 keys", gguf(keys=HUGE), "it claims"),
    ("more tensors than it holds", gguf(count=40), WHOLE),
    ("2^60 tensors", gguf(count=HUGE), "it claims"),
    ("a list of 2^60 bytes", _with(pair("a", ARRAY, listed(U8, HUGE, b"1"))), "its lists claim"),
    (
        "a list longer than the file",
        _with(pair("a", ARRAY, listed(U8, 10**6, b"1"))),
        "longer than",
    ),
    ("a list of 2^60 texts", _with(pair("a", ARRAY, listed(STRING, HUGE, b""))), "lists claim"),
    ("a list of texts without end", _with(pair("a", ARRAY, listed(STRING, 10**6, b""))), WHOLE),
    (
        "a list of lists",
        _with(pair("a", ARRAY, listed(ARRAY, 1, listed(U8, 1, b"1")))),
        "holds lists",
    ),
    ("a list of an unknown type", _with(pair("a", ARRAY, listed(77, 1, b"1"))), "unknown type 77"),
    ("a text of 2^63 bytes", _with(pair("a", STRING, text("a", 1 << 63))), "claims"),
    ("a text longer than the file", _with(pair("a", STRING, text("a", 9000))), "claims|longer"),
    ("a key of 2^40 bytes", _with(text("a", 1 << 40)), "claims"),
    ("a key that is no text", _with(text(b"\xff\xfe") + struct.pack("<I", U8) + b"1"), WHOLE),
    ("a value of an unknown type", _with(pair("a", 99, b"\0" * 8)), "unknown type 99"),
    ("a key twice", _with(HEADS), WHOLE),
    ("an alignment of 0", _with(pair("general.alignment", U32, struct.pack("<I", 0))), WHOLE),
    ("an alignment of 3", _with(pair("general.alignment", U32, struct.pack("<I", 3))), WHOLE),
    ("an alignment that is a text", _with(pair("general.alignment", STRING, text("32"))), WHOLE),
    ("no architecture", gguf([HEADS]), "architecture 'None'"),
    ("an unknown one", gguf([pair("general.architecture", STRING, text("x"))]), "architecture 'x'"),
    (
        "an architecture that is a number",
        gguf([pair("general.architecture", U32, b"\1\0\0\0")]),
        "architecture '1'",
    ),
    (
        "an architecture that is no text",
        gguf([pair("general.architecture", STRING, text(b"\xff"))]),
        "is no text",
    ),
    (
        "a licence that is no text",
        _with(pair("general.license", STRING, text(b"\xff"))),
        "is no text",
    ),
    ("no heads", gguf([ARCHITECTURE]), "how many heads"),
    ("0 heads", _heads(0), "how many heads"),
    ("3 heads", _heads(3), "do not divide"),
    ("4 billion heads", _heads((1 << 32) - 1), "do not divide"),
    (
        "a list of heads",
        gguf(
            [ARCHITECTURE, pair("llama.attention.head_count", ARRAY, listed(U32, 1, b"\2\0\0\0"))]
        ),
        "how many heads",
    ),
    ("5 dimensions", _first(gguf_tensor(NAME, [2] * 5, 0, 0)), "claims 5 dimensions"),
    ("no dimension", _first(gguf_tensor(NAME, [], 0, 0)), "no matrix|GGUF"),
    ("a dimension of 2^62", _first(gguf_tensor(NAME, [1 << 62, 4], 0, 0)), WHOLE),
    ("dimensions whose product wraps", _first(gguf_tensor(NAME, [1 << 32, 1 << 32], 0, 0)), WHOLE),
    ("no rows", _first(gguf_tensor(NAME, [8, 0], 0, 0)), WHOLE),
    ("no columns", _first(gguf_tensor(NAME, [0, 8], 0, 0)), WHOLE),
    ("a tensor of an unknown type", _first(gguf_tensor(NAME, [8, 8], 199, 0)), WHOLE),
    ("a row that is no whole block", _first(gguf_tensor(NAME, [8, 8], 8, 0)), WHOLE),
    ("a tensor beyond the end", _first(gguf_tensor(NAME, [8, 8], 0, 10**6)), WHOLE),
    ("an offset of 2^64 - 1", _first(gguf_tensor(NAME, [8, 8], 0, (1 << 64) - 1)), WHOLE),
    ("a tensor twice", _first(gguf_tensor(GGUF_NAMES[1], [8, 8], 0, 0)), WHOLE),
    (
        "a tensor whose name is no text",
        _first(gguf_tensor("x", [8, 8], 0, 0).replace(b"x", b"\xff", 1)),
        WHOLE,
    ),
    (
        "tensors that nobody asked for",
        gguf(tensors=[gguf_tensor("blk.0.x.weight", [8, 8], 0, 0)]),
        "matches none",
    ),
    ("NaN", gguf(data=struct.pack("<f", float("nan")) * (4 * SIDE * SIDE)), "NaN or Inf"),
]


def _case(name: str, content: bytes, says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        return build(put(folder / "bad.gguf", content), world, folder)

    return Case("gguf", name, make, says)


def _as_model(name: str, content: bytes, says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        put(folder / "bad.gguf", content)
        put(folder / "rows.jsonl", '{"prompt": "a", "completion": "b"}\n')
        config = put(
            folder / "c.yaml",
            f"model: {{path: {folder}/bad.gguf}}\ndata: {{path: {folder}/rows.jsonl}}\n"
            f"output: {folder}/out\nmachine: {{device: cpu}}\n",
        )
        return ["train", config, "--dry-run"]

    return Case("gguf to train", name, make, says)


def cases() -> list[Case]:
    """All of them; a few also as the model of a training, which transformers reads."""
    few = [row for row in FILES if row[0] in ("a list of 2^60 bytes", "2^60 keys", "cut to 5/12")]
    return [
        *(_case(*row) for row in FILES),
        *(_as_model(name, content, f"{says}|cannot be loaded") for name, content, says in few),
        _as_model("without its sizes", GOOD, "does not say its embedding_length"),
        _as_model("of more layers than it holds", _sized(8, 32), "says that it has 32 layers"),
        _as_model("of another width", _sized(4096, 2), "where the header says 4096"),
        _as_model("without embeddings", _sized(8, 2), "holds no embeddings"),
    ]
