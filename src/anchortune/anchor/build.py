"""Two checkpoints -> factors of every module's dW, streamed by name."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from anchortune.anchor.format import AnchorMetadata, Identity, ModuleInfo, Settings
from anchortune.checkpoints.adapter import AdapterCheckpoint
from anchortune.checkpoints.checkpoint import Checkpoint
from anchortune.checkpoints.names import Targets
from anchortune.checkpoints.pairs import (
    SAME_FRAC,
    Delta,
    ModulePair,
    Pairing,
    pair_checkpoints,
)
from anchortune.checkpoints.source import open_checkpoint
from anchortune.errors import AnchorError, PairError
from anchortune.maths.factors import (
    EXACT_MIN_DIM,
    Factors,
    Rank,
    factorise_dense,
    factorise_product,
)

DEFAULT_RANK = 32
"""How many singular triplets are kept where neither rank nor energy is given."""
DEFAULT_TARGET_MODULES = ("q_proj", "v_proj")
"""The modules that the paper adapts."""

AT_ONCE = 4
"""The most modules that are worked on at the same time."""
_AT_ONCE_BYTES = 768 << 20
"""What they may take together; one module is worked on whatever it takes."""

Progress = Callable[[int, int, str], None]
"""Called with (modules done, modules in all, module) before each module."""


def build_anchor(
    aligned: str | Path,
    base: str | Path,
    *,
    target_modules: Targets = DEFAULT_TARGET_MODULES,
    rank: int | Literal["full"] | None = None,
    energy: float | None = None,
    aligned_revision: str | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> tuple[dict[str, Factors], AnchorMetadata]:
    """The factors of ``aligned - base`` and what they were made from; see ``Anchor``.

    Raises:
        CheckpointError: one side cannot be read safely or lacks what was asked for.
        PairError: the sides do not belong together, or do not differ.
        AnchorError: ``rank`` or ``energy`` out of range, or a device that is not there.
    """
    limit = _limit(rank, energy)
    place = pick_place(device)
    pairing = pair_checkpoints(
        open_checkpoint(aligned, revision=aligned_revision, token=token),
        open_checkpoint(base, revision=base_revision, token=token),
        target_modules,
    )
    modules = _factorise(pairing, limit, energy, place, progress)
    infos = {
        pair.name: ModuleInfo.of(
            modules[pair.name],
            transposed=pair.transposed,
            aligned_dtype=pair.aligned_dtype,
            base_dtype=pair.base_dtype,
        )
        for pair in pairing.modules
    }
    metadata = AnchorMetadata(
        aligned=identity(pairing.aligned),
        base=identity(pairing.base),
        settings=Settings(
            target_modules=target_modules
            if isinstance(target_modules, str)
            else list(target_modules),
            rank=limit,
            energy=energy,
        ),
        modules=infos,
        notes=pairing.notes,
    )
    return modules, metadata


def _limit(rank: int | Literal["full"] | None, energy: float | None) -> int | Literal["full"]:
    if energy is not None and not 0.0 < energy <= 1.0:
        raise AnchorError(f"energy {energy} is no share: give one above 0, at most 1")
    if rank is None:
        return DEFAULT_RANK if energy is None else "full"
    if rank != "full" and rank < 1:
        raise AnchorError(f"rank {rank} is below 1: give a number of triplets, or 'full'")
    return rank


def identity(checkpoint: Checkpoint) -> Identity:
    """Who a checkpoint is: a local folder goes by its last name, for paths are nobody's affair."""
    local = checkpoint.revision is None
    declared = checkpoint.declared_base if isinstance(checkpoint, AdapterCheckpoint) else None
    if declared and Path(declared).is_absolute():
        declared = Path(declared).name
    return Identity.model_validate(
        {
            "id": checkpoint.path.resolve().name if local else checkpoint.label,
            "kind": checkpoint.kind,
            "revision": checkpoint.revision,
            "sha256": checkpoint.content_sha256(),
            "licence": checkpoint.licence,
            "adapter_base": declared,
        }
    )


def pick_place(device: str) -> torch.device:
    """Where differences are factorised: ``cpu``, ``cuda``, or what there is (``auto``).

    Raises:
        AnchorError: another device, or one that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d+)?", device) is None:
        raise AnchorError(
            f"device {device!r} is not one that anchors are built on: auto, cpu, cuda"
            "; choose one of them"
        )
    place = torch.device(device)
    if place.type == "cuda" and not torch.cuda.is_available():
        raise AnchorError(f"device {device!r} is not there: torch finds no CUDA; say cpu or auto")
    if place.type == "cuda" and (place.index or 0) >= (count := torch.cuda.device_count()):
        raise AnchorError(
            f"device {device!r} is not there: torch numbers {count} of them from 0"
            ", so choose one of them"
        )
    return place


def _factorise(
    pairing: Pairing,
    rank: Rank,
    energy: float | None,
    place: torch.device,
    progress: Progress | None,
) -> dict[str, Factors]:
    modules: dict[str, Factors] = {}
    same: list[str] = []
    total = len(pairing.modules)
    scratch = _Scratch(place)

    def work(pair: ModulePair) -> Factors | None:
        try:
            factors = factorise(pairing.delta(pair, scratch.empty), rank, energy)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise PairError(
                f"the difference in {pair.name!r} is no weights' (its squares overflow, or the "
                "SVD fails): one of the checkpoints is broken"
                ": get them again"
            ) from error
        _return_freed_memory()
        return factors

    workers = at_once(pairing, rank)
    largest = max(min(pair.shape) for pair in pairing.modules)
    with (
        threads(1 if largest <= EXACT_MIN_DIM else torch.get_num_threads() // workers),
        _full_precision(),
        ThreadPoolExecutor(workers, "anchor") as pool,
    ):
        results = [pool.submit(work, pair) for pair in pairing.modules]
        try:
            for done, (pair, result) in enumerate(zip(pairing.modules, results, strict=True)):
                if progress is not None:
                    progress(done, total, pair.name)
                factors = result.result()
                if factors is None:
                    same.append(pair.name)
                else:
                    modules[pair.name] = factors
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    labels = f"{pairing.aligned.label} and {pairing.base.label}"
    if same and not modules:
        raise PairError(
            f"{labels} hold identical weights in all {total} chosen modules: "
            "an anchor needs the model before and after alignment"
        )
    if same:
        raise PairError(
            f"{labels} hold identical weights in {len(same)} of {total} chosen modules "
            f"({', '.join(same[:4])}{', …' if len(same) > 4 else ''}): "
            "leave them out of target_modules"
        )
    return modules


def at_once(pairing: Pairing, rank: Rank) -> int:
    """How many modules are worked on at the same time.

    One is read and hashed while another is computed, each on few threads: so no core waits, where
    a product that is spread over all cores, beside a thread that reads, has them wait for it. No
    more than torch's threads, by which a user, or a sweep of many processes, limits a process.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    fit = _AT_ONCE_BYTES // max(1, *(_bytes_at_work(pair, rank) for pair in pairing.modules))
    return max(1, min(AT_ONCE, cores, torch.get_num_threads(), len(pairing.modules), fit))


def _bytes_at_work(pair: ModulePair, rank: Rank) -> int:
    """What a module takes while it is worked on: its difference, and copies for an exact SVD."""
    size = (8 if pair.base_dtype == "F64" else 4) * math.prod(pair.shape)
    small = min(pair.shape) <= EXACT_MIN_DIM  # in float64
    return size * (7 if small else 4 if rank == "full" else 1)


def factorise(delta: Delta, rank: Rank, energy: float | None) -> Factors | None:
    """The factors of one difference, or None where there is no difference."""
    if delta.product is not None:
        product = delta.product
        factors = factorise_product(product.left, product.right, product.scale, rank, energy)
        return factors if factors.norm > SAME_FRAC * delta.size else None
    if delta.dense is None or delta.norm is None or delta.norm <= SAME_FRAC * delta.size:
        return None
    found = factorise_dense(delta.dense, rank, energy, norm=delta.norm)
    return replace(found, left=found.left.cpu(), sigma=found.sigma.cpu(), right=found.right.cpu())


def factorise_matrix(dense: Tensor, rank: Rank, energy: float | None = None) -> Factors:
    """``factorise_dense`` on as many threads as pay."""
    small = min(dense.shape) <= EXACT_MIN_DIM
    with threads(1 if small else torch.get_num_threads()):
        return factorise_dense(dense, rank, energy)


class _Scratch(threading.local):
    """Memory for one difference in each thread, lent again and again.

    Fresh memory costs more than the subtraction: the system clears each page of it.
    """

    def __init__(self, place: torch.device) -> None:
        self._place = place
        self._held: dict[torch.dtype, Tensor] = {}

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        size = math.prod(shape)
        held = self._held.get(dtype)
        if held is None or held.numel() < size:
            self._held.pop(dtype, None)
            del held
            held = self._held[dtype] = torch.empty(size, dtype=dtype, device=self._place)
        return held[:size].view(shape)


def _return_freed_memory() -> None:
    """Gives freed pages back to the system, which glibc's allocator keeps between its chunks.

    Measured on all 210 linear layers of a 135M model: 1.5 GB at the peak without, 0.3 GB with.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """``count`` threads for an operation, at least one; as many as before afterwards.

    For small SVDs one: more gain nothing, and on busy cores they spin on each other. Measured on 2
    cores that another process kept busy: 576 × 576 in 6.8 s with two threads, 0.07 s with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _full_precision() -> Iterator[None]:
    """Products in float32 as they are, not in TF32, whose error no bound would know of."""
    # The new name where torch has it: once that was set, torch refuses to read the old one.
    products = torch.backends.cuda.matmul
    new = hasattr(products, "fp32_precision")
    name, exact = ("fp32_precision", "ieee") if new else ("allow_tf32", False)
    before = getattr(products, name)
    setattr(products, name, exact)
    try:
        yield
    finally:
        setattr(products, name, before)
