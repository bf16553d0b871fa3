"""Two checkpoints -> dW of one module after another, matched by name, never a model."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anchortune.checkpoints.adapter import AdapterCheckpoint, LowRank
from anchortune.checkpoints.checkpoint import Checkpoint
from anchortune.checkpoints.gguf_file import GgufCheckpoint
from anchortune.checkpoints.names import (
    Targets,
    pair_names,
    parse_targets,
    refuse_fused_mismatch,
    refuse_packed,
    select,
)
from anchortune.checkpoints.tensor_file import block_rows
from anchortune.errors import CheckpointError, PairError
from anchortune.files import parse_json
from anchortune.maths.factors import frobenius_norm

logger = logging.getLogger(__name__)

Empty = Callable[..., Tensor]
"""Makes a tensor as `torch.empty` does, from a shape and ``dtype=``."""
SAME_FRAC = 1e-8
"""Below this share of ``‖W‖_F`` a difference is none: the weights are the same."""

_NORM_OF = 64


@dataclass(frozen=True)
class ModulePair:
    """One module: its name, its tensors on both sides, and its stored shape and dtypes."""

    name: str
    aligned: str
    base: str
    shape: tuple[int, int]
    aligned_dtype: str
    base_dtype: str
    transposed: bool


@dataclass(frozen=True)
class Delta:
    """``dW`` of one module: dense (d_out, d_in), or an exact low-rank product.

    Attributes:
        pair: which module.
        size: ``‖W_base‖_F``, to judge by whether ``dW`` is anything.
        dense: ``dW`` in float32 or float64.
        norm: ``‖dW‖_F`` of a dense one.
        product: ``dW`` as s·B·A.
    """

    pair: ModulePair
    size: float
    dense: Tensor | None = None
    norm: float | None = None
    product: LowRank | None = None


@dataclass
class Pairing:
    """Two checkpoints that fit, and the modules to subtract."""

    aligned: Checkpoint
    base: Checkpoint
    modules: list[ModulePair]
    notes: list[str] = field(default_factory=list)

    def deltas(self) -> Iterator[Delta]:
        """``dW = aligned - base`` of each module in turn; see `delta`."""
        for pair in self.modules:
            yield self.delta(pair)

    def delta(self, pair: ModulePair, empty: Empty = torch.empty) -> Delta:
        """``dW = aligned - base`` of one module.

        The subtraction is in float32, or in float64 where both sides are. Both tensors are read a
        few rows at a time, and hashed, subtracted and measured while those are in cache, so that
        ``dW`` itself is all that is held. The base's tensors are read (and hashed) under an
        adapter too, so that the anchor says which weights it was made for.

        Args:
            pair: which module.
            empty: makes the memory for ``dW`` (called as `torch.empty` is), or lends it; where it
                lies the arithmetic is done.

        Raises:
            PairError: NaN or Inf in a tensor (named).
        """
        if isinstance(self.aligned, AdapterCheckpoint):
            blocks = self.base.blocks(f"{pair.base}.weight")
            size = math.hypot(*(frobenius_norm(block) for block in blocks))
            if not math.isfinite(size):
                other = self.base.read(f"{pair.base}.weight").value
                _refuse_not_finite(other, self.base, pair.base)
            product = self.aligned.delta(pair.aligned, pair.transposed)
            _refuse_not_finite(product.left, self.aligned, f"{pair.aligned} (LoRA)")
            _refuse_not_finite(product.right, self.aligned, f"{pair.aligned} (LoRA)")
            return Delta(pair, size, product=product)
        dtypes = {pair.aligned_dtype, pair.base_dtype}
        dense = empty(pair.shape, dtype=torch.float64 if dtypes == {"F64"} else torch.float32)
        size, norm = self._subtract(pair, dense)
        if not (math.isfinite(size) and math.isfinite(norm)):
            other = self.base.read(f"{pair.base}.weight").value
            _refuse_not_finite(other, self.base, pair.base)
            mine = self.aligned.read(f"{pair.aligned}.weight").value
            _refuse_not_finite(mine, self.aligned, pair.aligned)
            _refuse_not_finite(dense, self.aligned, f"{pair.aligned} minus base")
            # Finite, only too large to be squared in float32.
            size, norm = frobenius_norm(other), frobenius_norm(dense)
        return Delta(pair, size, dense=dense, norm=norm)

    def _subtract(self, pair: ModulePair, into: Tensor) -> tuple[float, float]:
        """Fills ``into`` with ``dW``; gives ``‖W_base‖_F`` and ``‖dW‖_F``."""
        squares = torch.zeros(2, dtype=torch.float64, device=into.device)
        count = block_rows(pair.shape)
        memory = torch.empty_like(into[:count])  # fresh memory for each block costs three times it
        blocks = zip(
            torch.split(into, count),
            self.aligned.blocks(f"{pair.aligned}.weight"),
            self.base.blocks(f"{pair.base}.weight"),
            strict=True,
        )
        for rows, mine, theirs in blocks:
            other = memory[: len(rows)].copy_(theirs.to(into.device))
            rows.copy_(mine.to(into.device)).sub_(other)
            squares[0] += torch.linalg.vector_norm(other, dim=1).double().square().sum()
            squares[1] += _square(rows)  # the exact one: a bound is made of it
        size, norm = squares.sqrt().tolist()
        return size, norm


def _square(rows: Tensor) -> Tensor:
    """``‖rows‖²_F`` in float64 from norms of a few numbers each, which float32 gets right.

    A float32 sum of thousands is off by up to 2e-5 of it, which ``tail`` would not know of.
    """
    flat = rows.flatten()
    few = len(flat) - len(flat) % _NORM_OF
    parts: Tensor = torch.linalg.vector_norm(flat[:few].view(-1, _NORM_OF), dim=1)
    return torch.cat([parts, flat[few:]]).double().square().sum()


def _refuse_not_finite(tensor: Tensor, checkpoint: Checkpoint, name: str) -> None:
    if not bool(torch.isfinite(tensor).all()):
        raise PairError(
            f"{checkpoint.label}: {name!r} holds NaN or Inf: the checkpoint is broken"
            ", so get it again"
        )


def pair_checkpoints(aligned: Checkpoint, base: Checkpoint, targets: Targets) -> Pairing:
    """The modules of both checkpoints that ``targets`` mean, from names and headers alone.

    Raises:
        CheckpointError: a target that matches nothing or cannot be anchored.
        PairError: different families, shapes or names, or two quantised files.
    """
    targets = parse_targets(targets)
    if isinstance(base, AdapterCheckpoint):
        raise PairError(
            f"{base.label} is a LoRA adapter, and the base must be whole weights: "
            "merge it into its own base first"
        )
    if isinstance(aligned, AdapterCheckpoint):
        return _pair_adapter(aligned, base, targets)
    _refuse_families(aligned, base)
    notes = _check_quantised(aligned, base)
    chosen = select(aligned, targets)
    refuse_fused_mismatch(aligned, base, chosen)
    mapping = pair_names(chosen, select(base, targets), (aligned.label, base.label))
    modules = []
    for mine, theirs in mapping.items():
        here, there = aligned.tensors[f"{mine}.weight"], base.tensors[f"{theirs}.weight"]
        if here.shape != there.shape:
            raise PairError(
                f"{mine!r} is {_times(here.shape)} in {aligned.label} but {_times(there.shape)} in "
                f"{base.label}: they are of different sizes"
                ", so give two of one size"
            )
        shape = (here.shape[0], here.shape[1])
        transposed = aligned.is_conv1d(mine)
        modules.append(ModulePair(mine, mine, theirs, shape, here.dtype, there.dtype, transposed))
    return Pairing(aligned, base, modules, notes)


def _pair_adapter(aligned: AdapterCheckpoint, base: Checkpoint, targets: Targets) -> Pairing:
    chosen = aligned.select(targets)
    refuse_packed(base, chosen)
    endings = [name for name in base.tensors if name.endswith(".weight")]
    present = {name.removesuffix(".weight") for name in endings}
    wanted = [name for name in chosen if name in present]
    if len(wanted) == len(chosen):
        mapping = {name: name for name in chosen}
    else:
        mapping = pair_names(chosen, _alike(chosen, present), (aligned.label, base.label))
    modules = []
    for mine, theirs in mapping.items():
        there = base.tensors[f"{theirs}.weight"]
        transposed = aligned.is_transposed(mine, there.shape)
        aligned.scale(mine)  # refuses a rank that the config does not agree with
        shape = (there.shape[0], there.shape[1])
        dtype = aligned.tensors[aligned.modules()[mine][0]].dtype
        modules.append(ModulePair(theirs, mine, theirs, shape, dtype, there.dtype, transposed))
    notes = aligned.note_unanchored(chosen)
    declared = aligned.declared_base
    if (
        declared
        and declared.rstrip("/").rsplit("/", 1)[-1] != base.path.name
        and (declared != base.label)
    ):
        notes.append(f"adapter {aligned.label} names {declared} as its base, not {base.label}")
        logger.info(notes[-1])
    return Pairing(aligned, base, modules, notes)


def _alike(chosen: list[str], present: set[str]) -> list[str]:
    """The base's modules that end as a chosen one does, or that a chosen one ends as."""
    return sorted(
        name
        for name in present
        if any(name == c or name.endswith("." + c) or c.endswith("." + name) for c in chosen)
    )


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def _refuse_families(aligned: Checkpoint, base: Checkpoint) -> None:
    mine, theirs = aligned.families, base.families
    if mine and theirs and not mine & theirs:
        raise PairError(
            f"{aligned.label} is a {'/'.join(sorted(mine))} but {base.label} is a "
            f"{'/'.join(sorted(theirs))}: an anchor needs two checkpoints of one family"
        )


def _check_quantised(aligned: Checkpoint, base: Checkpoint) -> list[str]:
    """Refuses two quantised files; states what one against a folder presupposes."""
    quantised = [
        side for side in (aligned, base) if isinstance(side, GgufCheckpoint) and side.is_quantised
    ]
    if not quantised:
        return []
    if len(quantised) == 2:
        raise PairError(
            f"{aligned.label} and {base.label} are both quantised: the difference would be their "
            "rounding noise, so give the unquantised checkpoint of at least the aligned side"
        )
    file = quantised[0]
    folder = base if file is aligned else aligned
    if isinstance(file, GgufCheckpoint) and _trained_from(folder, file):
        return []
    note = (
        f"{file.label} is quantised and {folder.label} is not: this anchor is right only if the "
        "latter was trained from that very file, else the file's rounding is part of the direction"
    )
    logger.warning(note)
    return [note]


def _trained_from(folder: Checkpoint, file: GgufCheckpoint) -> bool:
    """Whether a ``record.json`` in the folder, or beside it, says it was trained from ``file``."""
    for path in (folder.path / "record.json", folder.path.parent / "record.json"):
        if path.is_file():
            try:
                record = parse_json(path.read_text("utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
            # The run's record lists the hash of every weights file that it started from.
            return file.file_sha256() in json.dumps(record)
    return False
