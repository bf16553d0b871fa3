"""Writers of our own for binary formats: they write what they are told, true or not."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from tests.corpus.case import put

SIDE = 8
MODULES = [f"model.layers.{n}.self_attn.{part}" for n in (0, 1) for part in ("q_proj", "v_proj")]
CONFIG = {"model_type": "llama", "num_attention_heads": 2, "tie_word_embeddings": False}


def floats(count: int, seed: int) -> bytes:
    """``count`` random float32 numbers."""
    source = random.Random(seed)
    return struct.pack(f"<{count}f", *(source.uniform(-1, 1) for _ in range(count)))


def entry(shape: list[int], begin: int, dtype: str = "F32", size: int = 4) -> dict[str, Any]:
    """A tensor's entry in a safetensors header."""
    count = 1
    for n in shape:
        count *= n
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size * count]}


def header_of(
    shapes: dict[str, list[int]], dtype: str = "F32", size: int = 4
) -> tuple[dict[str, Any], int]:
    """(an honest header for tensors one behind the other, the bytes that they take)."""
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        header[name] = entry(shape, at, dtype, size)
        at = header[name]["data_offsets"][1]
    return header, at


def safetensors(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    """A file of a header (an object, or the bytes that stand in its place) and data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def weights(seed: int, side: int = SIDE, modules: list[str] | None = None) -> tuple[Any, bytes]:
    """(header, data) of honest weights."""
    names = MODULES if modules is None else modules
    header, size = header_of({f"{name}.weight": [side, side] for name in names})
    return header, floats(size // 4, seed)


def checkpoint(folder: Path, content: bytes, config: Any = None) -> Path:
    """A model's folder with one weights file."""
    put(folder / "config.json", json.dumps(CONFIG if config is None else config))
    put(folder / "model.safetensors", content)
    return folder


LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "base",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}


def lora_shapes(rank: int = 2, side: int = SIDE) -> dict[str, list[int]]:
    """Names and shapes of an adapter's tensors."""
    found = {}
    for name in MODULES:
        found[f"base_model.model.{name}.lora_A.weight"] = [rank, side]
        found[f"base_model.model.{name}.lora_B.weight"] = [side, rank]
    return found


def adapter(
    folder: Path,
    config: Any = None,
    shapes: dict[str, list[int]] | None = None,
    data: bytes | None = None,
) -> Path:
    """An adapter's folder."""
    header, size = header_of(lora_shapes() if shapes is None else shapes)
    put(folder / "adapter_config.json", json.dumps(LORA if config is None else config))
    content = floats(size // 4, 7) if data is None else data
    put(folder / "adapter_model.safetensors", safetensors(header, content))
    return folder


# GGUF: kinds of values by their numbers.
U8, U32, STRING, ARRAY, U64 = 0, 4, 8, 9, 10
Pair = tuple[bytes, int, bytes]


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, its length perhaps a lie."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data) if length is None else length) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key with its value."""
    return text(key) + struct.pack("<I", kind) + value


def listed(kind: int, count: int, items: bytes) -> bytes:
    """A list's value, its count perhaps a lie."""
    return struct.pack("<IQ", kind, count) + items


def gguf_tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    """A tensor's entry."""
    return (
        text(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = pair("general.architecture", STRING, text("llama"))
HEADS = pair("llama.attention.head_count", U32, struct.pack("<I", 2))
GGUF_NAMES = [f"blk.{n}.attn_{part}.weight" for n in (0, 1) for part in ("q", "v")]


def gguf(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    keys: int | None = None,
    count: int | None = None,
) -> bytes:
    """A GGUF file; whatever is not given is honest."""
    size = 4 * SIDE * SIDE
    told = [ARCHITECTURE, HEADS] if pairs is None else pairs
    entries = (
        [gguf_tensor(n, [SIDE, SIDE], 0, i * size) for i, n in enumerate(GGUF_NAMES)]
        if tensors is None
        else tensors
    )
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(entries) if count is None else count,
        len(told) if keys is None else keys,
    )
    head += b"".join(told) + b"".join(entries)
    head += b"\0" * (-len(head) % 32)
    return head + (floats(len(GGUF_NAMES) * SIDE * SIDE, 5) if data is None else data)
