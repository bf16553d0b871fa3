"""What every kind of checkpoint offers: names and shapes at once, tensors one at a time."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchortune.checkpoints.index import folder_tensors, read_json
from anchortune.checkpoints.tensor_file import (
    RawTensor,
    TensorInfo,
    block_rows,
    read_blocks,
    read_tensor,
)
from anchortune.errors import CheckpointError

CONV1D_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer"})
"""Model types whose linear layers are ``Conv1D``, with weights stored (d_in, d_out)."""
_CONV1D_NAMES = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class StoredTensor:
    """Name, dtype (as the file calls it) and shape of one stored tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Checkpoint(ABC):
    """One side of a pair; subclasses say where tensors come from.

    Attributes:
        label: what the user named.
        path: the local folder or file it is read from.
        revision: the Hub's commit, for a Hub id.
        licence: what its model card or header says, if anything.
        config: its ``config.json`` (an equivalent for GGUF), empty where there is none.
        kind: ``safetensors``, ``gguf`` or ``lora``.
    """

    label: str
    path: Path
    revision: str | None = None
    licence: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    kind: str = "safetensors"
    digests: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    @abstractmethod
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name."""

    @abstractmethod
    def read(self, name: str) -> RawTensor:
        """One tensor; its digest is kept for `content_sha256`."""

    def blocks(self, name: str) -> Iterator[Tensor]:
        """The same a few rows at a time, `block_rows` of them, each good until the next.

        Its digest is kept once the last was taken. Here the tensor is read whole; a subclass that
        can do with less memory does.
        """
        value = self.read(name).value
        yield from torch.split(value, block_rows(tuple(value.shape)))

    @property
    def families(self) -> frozenset[str]:
        """The model types it may be called by; empty where its config does not say."""
        text = self.config.get("text_config")
        nested = text.get("model_type") if isinstance(text, dict) else None
        found = (self.config.get("model_type"), nested)
        return frozenset(str(name) for name in found if name)

    def is_conv1d(self, module: str) -> bool:
        """Whether ``module`` is a ``Conv1D``, stored (d_in, d_out), by its family and name."""
        return bool(self.families & CONV1D_FAMILIES) and module.endswith(_CONV1D_NAMES)

    def content_sha256(self) -> str:
        """The SHA-256 over the tensors read so far, whatever their order and their files."""
        lines = json.dumps(sorted(self.digests.items()))
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass
class FolderCheckpoint(Checkpoint):
    """A folder of safetensors weights, single or sharded."""

    def __post_init__(self) -> None:
        self._infos = folder_tensors(self.path)
        self._stored = {
            name: StoredTensor(name, info.dtype, info.shape) for name, info in self._infos.items()
        }

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name."""
        return self._stored

    def read(self, name: str) -> RawTensor:
        """One tensor in its stored dtype.

        Raises:
            CheckpointError: there is no such tensor, or it is no float.
        """
        raw = read_tensor(self._info(name))
        self.digests[name] = raw.digest
        return raw

    def blocks(self, name: str) -> Iterator[Tensor]:
        """One tensor in its stored dtype, a few rows in memory at a time.

        Raises:
            CheckpointError: there is no such tensor, or it is no float.
        """
        yield from read_blocks(
            self._info(name), lambda digest: self.digests.__setitem__(name, digest)
        )

    def _info(self, name: str) -> TensorInfo:
        if name not in self._infos:
            raise CheckpointError(
                f"{self.label} has no tensor {name!r}: give the checkpoint of the same model"
            )
        return self._infos[name]


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a folder, or an empty dict where it has none."""
    path = folder / "config.json"
    return read_json(path) if path.is_file() else {}
