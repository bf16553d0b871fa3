"""The anchor's file: one safetensors file, versioned, whose metadata names both parents.

Tensors are ``{module}.left``, ``{module}.sigma`` and ``{module}.right`` in float32; everything
else is one JSON object under the metadata key `KEY`. One key, because the safetensors library
writes several in random order, and the same anchor should be the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from anchortune._version import __version__
from anchortune.checkpoints.tensor_file import TensorInfo, read_header, read_tensor
from anchortune.errors import AnchorError, CheckpointError
from anchortune.files import parse_json
from anchortune.maths.factors import (
    Factors,
    direction_cosine,
    gram_error_bound,
    kept_energy_frac,
)

KEY = "anchortune_anchor"
FORMAT_VERSION = 1
HARMFUL_VERSION = 2
"""Of an anchor that says how it was made from harmful data; all others stay in version 1."""
_PARTS = ("left", "sigma", "right")
_ORTHONORMAL = 1e-3
_TOO_LARGE = 1e100
"""Beyond any norm of weights, and small enough to be squared."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Identity(_Frozen):
    """Which weights one parent was.

    Attributes:
        id: what the user named, a folder's name or a Hub id.
        kind: ``safetensors``, ``gguf``, ``lora`` or ``memory``.
        revision: the Hub's commit.
        sha256: over the tensors that were read, as stored; null for tensors from memory.
        licence: what its card says.
        adapter_base: for a LoRA adapter, the base model that it names.
    """

    id: str
    kind: Literal["safetensors", "gguf", "lora", "memory"]
    revision: str | None = None
    sha256: str | None = None
    licence: str | None = None
    adapter_base: str | None = None


class ModuleInfo(_Frozen):
    """What the anchor says of one module, besides its factors.

    Attributes:
        shape: as stored in the checkpoint; (d_in, d_out) where ``transposed``.
        transposed: a ``Conv1D`` weight, stored (d_in, d_out).
        aligned_dtype: the stored dtype on the aligned side.
        base_dtype: the stored dtype on the base side.
        norm: ``‖dW‖_F``.
        rank: how many singular triplets are kept.
        tail: an upper bound on the first singular value left out.
        kept_energy_frac: ``Σσ² / ‖dW‖_F²`` of those kept.
        gram_error_bound: truncation changes ``‖(I - C)X‖_F`` of ``gram`` by at most this times
            ``‖X‖_F``.
        direction_cosine: between the kept direction, renormalised, and the whole one.
    """

    shape: tuple[int, int]
    transposed: bool = False
    aligned_dtype: str
    base_dtype: str
    norm: float = Field(gt=0, lt=_TOO_LARGE)
    rank: int = Field(ge=1)
    tail: float = Field(ge=0, lt=_TOO_LARGE)
    kept_energy_frac: float = Field(gt=0, le=1)
    gram_error_bound: float = Field(ge=0, lt=_TOO_LARGE)
    direction_cosine: float = Field(gt=0, le=1)

    @classmethod
    def of(
        cls,
        factors: Factors,
        *,
        transposed: bool = False,
        aligned_dtype: str = "F32",
        base_dtype: str = "F32",
    ) -> ModuleInfo:
        """The description of ``factors``."""
        return cls(
            shape=factors.shape,
            transposed=transposed,
            aligned_dtype=aligned_dtype,
            base_dtype=base_dtype,
            norm=factors.norm,
            rank=factors.rank,
            tail=factors.tail,
            kept_energy_frac=kept_energy_frac(factors),
            gram_error_bound=gram_error_bound(factors),
            direction_cosine=direction_cosine(factors),
        )


class Settings(_Frozen):
    """How the anchor was asked for."""

    target_modules: list[str] | str
    rank: int | Literal["full"]
    energy: float | None = None


class HarmfulOrigin(_Frozen):
    """What a harmful anchor, ``W_harm - W_aligned``, was made from; names and hashes, no text.

    Attributes:
        method: ``tune``: a fine-tune on the pairs; ``gradient``: one pass, ``-∇L`` of the loss.
        data: what the file of harmful pairs is called.
        data_sha256: of its content.
        pairs: that were used.
        rows: in the file, those that ``where`` means.
        seed: of the sample of pairs, and of the training.
        settings: of the method, as plain values.
        under: what the aligned model lies on, where that is an adapter.
    """

    method: Literal["tune", "gradient"]
    data: str
    data_sha256: str
    pairs: int = Field(ge=1)
    rows: int = Field(ge=1)
    seed: int = Field(ge=0)
    settings: dict[str, Any]
    under: Identity | None = None


class AnchorMetadata(_Frozen):
    """Everything in the file that is not a tensor.

    A harmful anchor has ``harmful``; its ``aligned`` is then the harmful side of the difference
    and its ``base`` the aligned model, from which a training that uses it starts.
    """

    format_version: int = FORMAT_VERSION
    created_by: str = f"anchortune {__version__}"
    aligned: Identity
    base: Identity
    settings: Settings
    modules: dict[str, ModuleInfo]
    notes: list[str] = []
    harmful: HarmfulOrigin | None = None

    @model_validator(mode="after")
    def _version_tells(self) -> AnchorMetadata:
        if (self.format_version == HARMFUL_VERSION) != (self.harmful is not None):
            raise ValueError(
                f"harmful belongs to format version {HARMFUL_VERSION}, and to no other"
            )
        return self


def serialise(modules: Mapping[str, Factors], metadata: AnchorMetadata) -> bytes:
    """The bytes of an anchor file; the same anchor gives the same bytes."""
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    for name, factors in modules.items():
        for part in _PARTS:
            value: Tensor = getattr(factors, part)
            tensors[f"{name}.{part}"] = value.detach().float().cpu().contiguous()
    unsaid = {"harmful"} if metadata.harmful is None else None
    told = metadata.model_dump(mode="json", exclude=unsaid)
    text = json.dumps(told, sort_keys=True, allow_nan=False)
    data: bytes = save(tensors, {KEY: text})
    return data


def read_anchor(path: Path) -> tuple[dict[str, Factors], AnchorMetadata]:
    """The factors and metadata of an anchor file, all of it checked.

    Raises:
        AnchorError: no anchor, of another version, a broken header, tensors that are missing, too
            many, of wrong shape, NaN or Inf, or singular vectors that are not orthonormal.
    """
    try:
        tensors, texts = read_header(path)
    except CheckpointError as error:
        raise AnchorError(str(error)) from error
    if KEY not in texts:
        raise AnchorError(
            f"{path} is a safetensors file but no anchor: make one with `anchortune anchor build`"
        )
    metadata = _metadata(path, texts[KEY])
    expected = {f"{name}.{part}" for name in metadata.modules for part in _PARTS}
    if set(tensors) != expected:
        name = min(set(tensors) ^ expected)
        held = "is not described in" if name in tensors else "is missing from"
        raise AnchorError(f"{path}: tensor {name!r} {held} the anchor: build it again")
    modules = {name: _factors(path, name, info, tensors) for name, info in metadata.modules.items()}
    return modules, metadata


def _metadata(path: Path, text: str) -> AnchorMetadata:
    try:
        value = parse_json(text)
        version = value.get("format_version")
    except (ValueError, AttributeError) as error:
        raise AnchorError(
            f"{path}: the anchor's metadata is no JSON object: build it again"
        ) from error
    if type(version) is not int or version not in (FORMAT_VERSION, HARMFUL_VERSION):
        raise AnchorError(
            f"{path} is an anchor of format version {str(version)[:20]}, and this anchortune "
            f"({__version__}) reads versions {FORMAT_VERSION} and {HARMFUL_VERSION}: update "
            "anchortune or build it again"
        )
    try:
        metadata = AnchorMetadata.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise AnchorError(
            f"{path}: the anchor's metadata is broken at {where}: {first['msg']}"
        ) from error
    if not metadata.modules:
        raise AnchorError(f"{path} is an anchor of no modules: build it again")
    return metadata


def _factors(path: Path, name: str, info: ModuleInfo, tensors: dict[str, TensorInfo]) -> Factors:
    if info.rank > min(info.shape):
        raise AnchorError(
            f"{path}: {name} claims rank {info.rank} of a matrix {list(info.shape)}: broken file"
            ", so build it again"
        )
    shapes = {
        "left": (info.shape[0], info.rank),
        "sigma": (info.rank,),
        "right": (info.shape[1], info.rank),
    }
    values: dict[str, Tensor] = {}
    for part, shape in shapes.items():
        stored = tensors[f"{name}.{part}"]
        if stored.shape != shape or stored.dtype != "F32":
            raise AnchorError(
                f"{path}: {stored.name!r} is {stored.dtype} {list(stored.shape)}, "
                f"expected F32 {list(shape)}"
            )
        value = read_tensor(stored, hashed=False).value
        if not bool(torch.isfinite(value).all()):
            raise AnchorError(f"{path}: {stored.name!r} holds NaN or Inf: build the anchor again")
        values[part] = value
    factors = Factors(**values, norm=info.norm, tail=info.tail)
    check_factors(f"{path}: {name}", factors)
    return factors


def check_factors(label: str, factors: Factors) -> None:
    """Raises an AnchorError unless ``factors`` are singular triplets: orthonormal, descending."""
    for side in ("left", "right"):
        value: Tensor = getattr(factors, side)
        gram = value.T @ value
        off = float((gram - torch.eye(factors.rank, dtype=gram.dtype)).abs().max())
        if not off <= _ORTHONORMAL:  # where products overflow it is NaN
            raise AnchorError(
                f"{label}.{side} is not orthonormal (off by {off:.1e}): broken file"
                ", so build it again"
            )
    sigma = factors.sigma
    if bool((sigma <= 0).any()) or bool((sigma.diff() > 0).any()):
        raise AnchorError(
            f"{label}.sigma is not positive and descending: broken file, so build it again"
        )
    if float(sigma.double().square().sum()) > factors.norm * factors.norm * (1 + 1e-4):
        raise AnchorError(
            f"{label}.sigma holds more energy than the stated norm: broken file, so build it again"
        )
