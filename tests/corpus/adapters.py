"""Adapters whose config lies or whose tensors do not belong, to build from and to mend."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Words, World, deep, put
from tests.corpus.tensors import build
from tests.corpus.writers import (
    LORA,
    MODULES,
    adapter,
    floats,
    header_of,
    lora_shapes,
    safetensors,
)

A, B = (f"base_model.model.{MODULES[0]}.lora_{part}.weight" for part in "AB")
HANGS = "a pattern that may take for ever"

CONFIGS: list[tuple[str, Any, str]] = [
    ("a rank that is a text", {"r": "2"}, "r is '2', which is no number above 0"),
    ("a rank of 0", {"r": 0}, "no number above 0"),
    ("a negative rank", {"r": -2}, "no number above 0"),
    ("a rank that is true", {"r": True}, "no number above 0"),
    ("a rank that is a list", {"r": [2]}, "no number above 0"),
    ("a rank of infinity", {"r": float("inf")}, "no number above 0"),
    ("another rank", {"r": 3}, "has rank 2, adapter_config.json says 3"),
    ("no rank, so 8", {"r": None}, "has rank 2, adapter_config.json says 8"),
    ("an alpha of NaN", {"lora_alpha": float("nan")}, "no number above 0"),
    ("an alpha that is a text", {"lora_alpha": "4"}, "no number above 0"),
    ("an alpha of 1e300", {"lora_alpha": 1e300}, "no number above 0"),
    ("an alpha that is an object", {"lora_alpha": {}}, "no number above 0"),
    ("ranks in a list", {"rank_pattern": ["q_proj"]}, "rank_pattern is no mapping"),
    ("ranks in a text", {"rank_pattern": "q_proj"}, "rank_pattern is no mapping"),
    ("a rank by pattern that is a text", {"rank_pattern": {"q_proj": "2"}}, "no number above 0"),
    ("a rank by pattern that is another", {"rank_pattern": {"q_proj": 4}}, "says 4"),
    ("an alpha by pattern of NaN", {"alpha_pattern": {"q_proj": float("nan")}}, "no number"),
    ("a pattern without its bracket", {"rank_pattern": {"(q": 2}}, "is no pattern"),
    ("a pattern that closes nothing", {"rank_pattern": {"q)|(v": 2}}, "is no pattern"),
    ("a pattern that never ends", {"rank_pattern": {"(a+)+$": 2}}, HANGS),
    ("a pattern of alternatives without end", {"alpha_pattern": {"(.|a)*b": 2}}, HANGS),
    ("a pattern of many repeats", {"rank_pattern": {".*" * 9 + "x": 2}}, HANGS),
    ("a pattern of a megabyte", {"rank_pattern": {"a" * 10**6: 2}}, HANGS),
    ("targets by a pattern that never ends", {"target_modules": "(.*)*q_proj"}, HANGS),
    ("targets that are a number", {"target_modules": 5}, "neither a text nor a list"),
    ("targets that are numbers", {"target_modules": [1, 2]}, "neither a text nor a list"),
    ("saved modules that are a text", {"modules_to_save": "lm_head"}, "no list of names"),
    ("saved modules that are numbers", {"modules_to_save": [1]}, "no list of names"),
    ("parameters that are an object", {"target_parameters": {"a": 1}}, "neither a text nor"),
    ("bare parameters", {"target_parameters": ["experts.up"]}, "bare parameters|no plain LoRA"),
    ("no kind", {"peft_type": None}, "names no peft_type"),
    ("a kind that is a number", {"peft_type": 5}, "names no peft_type"),
    ("another kind", {"peft_type": "IA3"}, "is IA3, not LORA"),
    ("DoRA", {"use_dora": True}, "DoRA|use_dora"),
    ("a start that moves the base", {"init_lora_weights": "pissa"}, "pissa"),
    ("an activated LoRA", {"alora_invocation_tokens": [1]}, "activated|alora_invocation_tokens"),
]
TEXTS: list[tuple[str, bytes | str, str]] = [
    ("a list", "[]", "no JSON object"),
    ("no JSON", "{", "cannot be read as JSON"),
    ("empty", "", "cannot be read as JSON"),
    ("lists in lists", deep(), "cannot be read as JSON"),
    ("latin-1", b'{"peft_type": "L\xd6RA"}', "cannot be read as JSON"),
    ("UTF-16", json.dumps(LORA).encode("utf-16"), "cannot be read as JSON"),
]


def _tensors(shapes: dict[str, list[int]]) -> Callable[[Path], Path]:
    return lambda folder: adapter(folder, shapes=shapes)


def _data(value: float) -> Callable[[Path], Path]:
    size = header_of(lora_shapes())[1]
    data = struct.pack("<f", value) + floats(size // 4 - 1, 1)
    return lambda folder: adapter(folder, data=data)


def _content(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = adapter(folder) / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))
        return folder

    return make


def _integers(folder: Path) -> Path:
    header, size = header_of(lora_shapes(), "I32", 4)
    adapter(folder)
    put(folder / "adapter_model.safetensors", safetensors(header, bytes(size)))
    return folder


def _pickled(folder: Path) -> Path:
    (adapter(folder) / "adapter_model.safetensors").unlink()
    put(folder / "adapter_model.bin", b"\x80\x04.")
    return folder


def _weightless(folder: Path) -> Path:
    (adapter(folder) / "adapter_model.safetensors").unlink()
    return folder


def _shapes(**changes: list[int]) -> dict[str, list[int]]:
    """The good shapes with those of the first module's A and B changed."""
    return lora_shapes() | {A: changes.get("a", [2, 8]), B: changes.get("b", [8, 2])}


def _renamed(old: str, new: str) -> dict[str, list[int]]:
    return {name.replace(old, new): shape for name, shape in lora_shapes().items()}


def _less(gone: str) -> dict[str, list[int]]:
    return {name: shape for name, shape in lora_shapes().items() if name != gone}


WEIGHTS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("an A without its B", _tensors(_less(B)), "no '.*lora_B|without its lora_B"),
    ("a B without its A", _tensors(_less(A)), "no '.*lora_A|without its lora_A"),
    ("an A and a B of other ranks", _tensors(_shapes(b=[8, 4])), "rank 2 and|does not fit"),
    ("an A of three dimensions", _tensors(_shapes(a=[2, 2, 4])), "no matrix|no plain LoRA"),
    ("no tensors", _tensors({}), "adapts no module|no lora_A"),
    (
        "two of one module",
        _tensors(
            lora_shapes()
            | {
                name.replace("lora_", "lora_").replace(".weight", ".other.weight"): shape
                for name, shape in lora_shapes().items()
            }
        ),
        "has two of|no plain LoRA",
    ),
    ("NaN", _data(float("nan")), "NaN or Inf"),
    ("infinity", _data(float("inf")), "NaN or Inf"),
    ("integers", _integers, "not a float|NaN or Inf"),
    ("pickled weights alone", _pickled, "pickle"),
    ("no weights", _weightless, "no adapter_model.safetensors"),
    ("cut short", _content(lambda whole: whole[:-5]), "whole safetensors file"),
    ("padded", _content(lambda whole: whole + b"\0"), "whole safetensors file"),
    ("of no bytes", _content(lambda _: b""), "whole safetensors file"),
]
OTHERS: list[tuple[str, Callable[[Path], Path], str]] = [
    ("of a wider model", _tensors(lora_shapes(side=16)), "trained on another model"),
    ("of other layers", _tensors(_renamed("layers.1", "layers.7")), "have no counterpart"),
    ("of other parts", _tensors(_renamed("q_proj", "c_attn")), "adapts no module"),
]


def _built(name: str, make: Callable[[Path], Path], says: str) -> Case:
    return Case("adapter", name, lambda f, w: build(make(f / "bad"), w, f), says)


def _projected(name: str, make: Callable[[Path], Path], says: str) -> Case:
    def words(folder: Path, world: World) -> Words:
        return [
            *("project", make(folder / "bad"), "--method", "safe-lora"),
            *("--anchor", world.anchor, "-o", folder / "out"),
        ]

    return Case("adapter to mend", name, words, says)


def _config(value: Any) -> Callable[[Path], Path]:
    return lambda folder: adapter(folder, LORA | value)


def _text(content: bytes | str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        put(adapter(folder) / "adapter_config.json", content)
        return folder

    return make


def cases() -> list[Case]:
    """All of them."""
    configs = [(name, _config(value), says) for name, value, says in CONFIGS]
    texts = [(f"its config: {name}", _text(content), says) for name, content, says in TEXTS]
    both = [*configs, *texts, *WEIGHTS]
    return [
        *(_built(*row) for row in [*both, *OTHERS]),
        *(_projected(*row) for row in both),
    ]
