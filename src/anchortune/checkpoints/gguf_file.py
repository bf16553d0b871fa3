"""A ``.gguf`` file: named as Hugging Face names it, dequantised one tensor at a time."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from anchortune.checkpoints.checkpoint import Checkpoint, StoredTensor
from anchortune.checkpoints.gguf_header import check_header
from anchortune.checkpoints.tensor_file import RawTensor, tensor_digest
from anchortune.errors import CheckpointError
from anchortune.files import sha256_file

_FAMILIES = {
    "llama": ("llama", "mistral"),
    "qwen2": ("qwen2",),
    "qwen3": ("qwen3",),
    "gemma": ("gemma",),
    "gemma2": ("gemma2",),
    "gemma3": ("gemma3_text", "gemma3"),
    "phi3": ("phi3",),
}
"""Architectures whose layers map one to one, and the model types that they may be."""
_TOP = {"token_embd": "model.embed_tokens", "output": "lm_head"}
_BLOCK = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.")
_WHOLE = ("F32", "F16", "BF16", "F64")


def hf_name(name: str, architecture: str) -> str | None:
    """The Hugging Face name of a GGUF tensor, or None for one that is no linear layer."""
    if name.removesuffix(".weight") in _TOP:
        return _TOP[name.removesuffix(".weight")] + ".weight"
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _BLOCK:
        return None
    part = _BLOCK[match[2]]
    if architecture == "phi3" and match[2] == "ffn_up":
        part = "mlp.gate_up_proj"  # Phi-3's gate and up are one tensor, in that order
    return f"model.layers.{match[1]}.{part}.weight"


def unpermute(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """Rows of a Llama q or k in Hugging Face's order again (llama.cpp interleaves halves)."""
    half = weight.shape[0] // heads // 2
    halves = weight.reshape(heads, half, 2, -1).swapaxes(1, 2)
    rows: np.ndarray[Any, Any] = halves.reshape(weight.shape)
    return rows


class UnknownArchitecture(CheckpointError):
    """A GGUF file whose tensors have no names here, though Transformers may know its model."""


@dataclass
class GgufCheckpoint(Checkpoint):
    """A GGUF file as a checkpoint of float32 tensors."""

    kind: str = "gguf"

    def __post_init__(self) -> None:
        from gguf import GGUFReader

        _tell_version()
        check_header(self.path)
        try:
            self._reader = GGUFReader(self.path)
        except (ValueError, OSError, IndexError, KeyError, OverflowError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is no whole GGUF file ({error}): get it again"
            ) from error
        self._architecture = str(self._field("general.architecture"))
        if self._architecture not in _FAMILIES:
            raise UnknownArchitecture(
                f"{self.label} is a GGUF of architecture {self._architecture!r}, whose tensors "
                f"anchortune cannot name (it can: {', '.join(_FAMILIES)}): give the safetensors"
            )
        licence = self._field("general.license")
        self.licence = self.licence or (str(licence) if licence else None)
        self._raw = {}
        self._stored = {}
        for tensor in self._reader.tensors:
            name = hf_name(tensor.name, self._architecture)
            if name is None:
                continue
            shape = tuple(int(n) for n in reversed(tensor.shape.tolist()))
            if 0 in shape:
                raise CheckpointError(
                    f"{self.path} is no whole GGUF file ({name!r} is {list(shape)}): get it again"
                )
            self._raw[name] = tensor
            # The dtype is that of the values as given out; `quantisation` says how they are held.
            self._stored[name] = StoredTensor(name, "F32", shape)
        self.config = {"tie_word_embeddings": "lm_head.weight" not in self._stored}

    def _field(self, name: str) -> Any:
        field = self._reader.get_field(name)
        try:
            return None if field is None else field.contents()
        except ValueError as error:  # a text that is not UTF-8
            raise CheckpointError(f"{self.path}: {name} is no text: get it again") from error

    def check_model(self) -> None:
        """Checks that the file says how large its model is, and the same as its tensors.

        Transformers fills in what is not said from the sizes of a 7B model, whatever the file's.

        Raises:
            CheckpointError: a size is missing or another than that of the tensors.
        """
        width, layers, inner = (
            self._size(key) for key in ("embedding_length", "block_count", "feed_forward_length")
        )
        self._size("attention.head_count")
        found = {int(match[1]) for name in self._stored if (match := _LAYER.match(name))}
        if len(found) != layers or max(found, default=-1) != layers - 1:
            raise CheckpointError(
                f"{self.label} says that it has {layers} layers and holds {len(found)}: get it "
                "again"
            )
        sides = {"embed_tokens": (1, width), "q_proj": (1, width), "down_proj": (1, inner)}
        for name, tensor in self._stored.items():
            side = next((s for part, s in sides.items() if name.endswith(f"{part}.weight")), None)
            if side is not None and tensor.shape[side[0] : side[0] + 1] != (side[1],):
                raise CheckpointError(
                    f"{self.label}: {name!r} is {list(tensor.shape)}, where the header says "
                    f"{side[1]}: get it again"
                )
        if "model.embed_tokens.weight" not in self._stored:
            raise CheckpointError(
                f"{self.label} holds no embeddings, so it is no whole model: get it again"
            )

    def _size(self, key: str) -> int:
        value = self._field(f"{self._architecture}.{key}")
        if not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"{self.label} does not say its {key}, so it is no whole model: get it again"
            )
        return value

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every linear layer's and embedding's weight by its Hugging Face name."""
        return self._stored

    @property
    def families(self) -> frozenset[str]:
        """The model types that share its architecture."""
        return frozenset(_FAMILIES[self._architecture])

    def quantisation(self, name: str) -> str:
        """How a tensor is held: ``Q4_K``, ``F16`` and so on."""
        return str(self._raw[name].tensor_type.name)

    @property
    def is_quantised(self) -> bool:
        """Whether any of its weights is held in fewer than 16 bits."""
        return any(self.quantisation(name) not in _WHOLE for name in self._stored)

    def file_sha256(self) -> str:
        """The SHA-256 of the whole file, which a record of training from it holds."""
        return sha256_file(self.path)

    def read(self, name: str) -> RawTensor:
        """One tensor, dequantised to float32, its rows in Hugging Face's order.

        Raises:
            CheckpointError: there is no such tensor, or its quantisation is one that the gguf
                library cannot undo.
        """
        from gguf import dequantize

        if name not in self._raw:
            raise CheckpointError(
                f"{self.label} has no tensor {name!r}: give the checkpoint of the same model"
            )
        tensor = self._raw[name]
        kind = self.quantisation(name)
        try:
            value = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.label}: {name!r} is held as {kind}, which the gguf library cannot read"
                ": update gguf, or take another quantisation"
            ) from error
        shape = self._stored[name].shape
        value = np.asarray(value, dtype=np.float32).reshape(shape)
        if self._architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            value = unpermute(value, self._heads(name, shape))
        digest = tensor_digest(name, kind, shape, np.ascontiguousarray(tensor.data))
        self.digests[name] = digest
        return RawTensor(torch.from_numpy(np.array(value, copy=True)), digest)

    def _heads(self, name: str, shape: tuple[int, ...]) -> int:
        if not shape:
            raise CheckpointError(f"{self.label}: {name!r} has no rows: get it again")
        rows = shape[0]
        heads = self._field("llama.attention.head_count")
        if name.endswith("k_proj.weight"):
            heads = self._field("llama.attention.head_count_kv") or heads
        if not isinstance(heads, int) or heads < 1:
            raise CheckpointError(f"{self.label} does not say how many heads it has: get it again")
        if rows % (2 * heads):
            raise CheckpointError(
                f"{self.label} says that it has {heads} heads, which {rows} rows of {name!r} do "
                "not divide into: get it again"
            )
        return heads


def _tell_version() -> None:
    """Transformers before 5.17 finds gguf on Python 3.10 only where the module says its version."""
    import gguf

    if not hasattr(gguf, "__version__"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            gguf.__version__ = importlib.metadata.version("gguf")
