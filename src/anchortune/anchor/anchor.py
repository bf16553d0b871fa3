"""The anchor: per module the low-rank factors of W_aligned - W_base, and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from anchortune.anchor.build import DEFAULT_TARGET_MODULES, Progress, build_anchor
from anchortune.anchor.format import (
    AnchorMetadata,
    Identity,
    ModuleInfo,
    Settings,
    check_factors,
    read_anchor,
    serialise,
)
from anchortune.anchor.penalty import DEFAULT_OPERATOR
from anchortune.errors import AnchorError
from anchortune.files import atomic_path
from anchortune.maths.factors import Factors
from anchortune.maths.operators import LayerWeights, Operator, Side

if TYPE_CHECKING:
    from torch import nn

    from anchortune.anchor.penalty import Penalty


class Anchor:
    """Which way safety lies in a model's weights, module by module.

    Attributes:
        modules: the factors of ``dW``, by the checkpoint's module name without ``.weight``, in
            the orientation that the checkpoint stores.
        metadata: both parents, the settings, and what truncation costs.
    """

    def __init__(
        self, modules: Mapping[str, Factors], metadata: AnchorMetadata | None = None
    ) -> None:
        """Takes factors as they are; without ``metadata`` they count as made in memory.

        Raises:
            AnchorError: no modules, factors that are no singular triplets, or metadata that
                describes other modules.
        """
        if not modules:
            raise AnchorError(
                "an anchor of no modules anchors nothing; give the factors of one or more"
            )
        self.modules: dict[str, Factors] = dict(modules)
        for name, factors in self.modules.items():
            check_factors(name, factors)
        self.metadata = metadata or _from_memory(self.modules)
        if set(self.metadata.modules) != set(self.modules):
            raise AnchorError(
                "the anchor's metadata describes other modules than it holds; build it again"
            )
        self._bytes_sha256: str | None = None

    @classmethod
    def from_checkpoints(
        cls,
        aligned: str | Path,
        base: str | Path,
        *,
        target_modules: list[str] | tuple[str, ...] | str = DEFAULT_TARGET_MODULES,
        rank: int | Literal["full"] | None = None,
        energy: float | None = None,
        aligned_revision: str | None = None,
        base_revision: str | None = None,
        token: str | bool | None = None,
        device: str = "auto",
        progress: Progress | None = None,
    ) -> Anchor:
        """The anchor of ``aligned - base``, streamed by name; no model is built.

        Args:
            aligned: the safe model: a folder, a Hub id, a ``.gguf`` file, or a LoRA adapter
                (folder or Hub id) on ``base``.
            base: the model it was aligned from: a folder, a Hub id or a ``.gguf`` file.
            target_modules: as in PEFT: a list of names, a regular expression, or ``all-linear``.
            rank: the most singular triplets to keep, or ``"full"``; None is ``DEFAULT_RANK``, or
                as many as ``energy`` asks for.
            energy: the share of ``‖dW‖²`` to keep, in (0, 1].
            aligned_revision: branch, tag or commit of a Hub id.
            base_revision: likewise.
            token: for private or gated repositories.
            device: where the arithmetic is done: ``cpu``, ``cuda``; ``auto`` takes CUDA where it
                is there.
            progress: called before each module.

        Raises:
            CheckpointError: one side cannot be read safely or lacks what was asked for.
            PairError: the sides do not belong together, or do not differ.
            AnchorError: ``rank`` or ``energy`` out of range, or a device that is not there.
        """
        modules, metadata = build_anchor(
            aligned,
            base,
            target_modules=target_modules,
            rank=rank,
            energy=energy,
            aligned_revision=aligned_revision,
            base_revision=base_revision,
            token=token,
            device=device,
            progress=progress,
        )
        return cls(modules, metadata)

    @classmethod
    def load(cls, path: str | Path) -> Anchor:
        """The anchor in a file that `save` wrote, every tensor checked.

        Raises:
            AnchorError: no anchor, another version, or broken.
        """
        data = Path(path)
        if not data.is_file():
            raise AnchorError(f"{path} is no file: make one with `anchortune anchor build`")
        modules, metadata = read_anchor(data)
        anchor = cls(modules, metadata)
        with data.open("rb") as stream:
            anchor._bytes_sha256 = _digest(stream.read())
        return anchor

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        data = serialise(self.modules, self.metadata)
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
        self._bytes_sha256 = _digest(data)

    @classmethod
    def from_pretrained(
        cls,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        endpoint: str | None = None,
    ) -> Anchor:
        """The anchor that somebody shared on the Hub (``org/name``), or in a folder.

        Raises:
            AnchorError: no such repository, revision or file, or no anchor in it.
        """
        from anchortune.anchor.hub import fetch

        return cls.load(fetch(repo_id, revision=revision, token=token, endpoint=endpoint))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        private: bool | None = None,
        endpoint: str | None = None,
    ) -> str:
        """Shares the anchor with a card naming both parents; returns the address of the commit.

        Raises:
            AnchorError: the Hub refused, or cannot be reached.
        """
        from anchortune.anchor.hub import push

        return push(self, repo_id, token=token, private=private, endpoint=endpoint)

    def bind(
        self,
        model: nn.Module,
        *,
        operator: Operator = DEFAULT_OPERATOR,
        side: Side = "off",
        scaled: bool = True,
        rank: int | None = None,
        layer_weights: LayerWeights = "none",
    ) -> Penalty:
        """The penalty of ``model``'s update against this anchor: see ``anchor.penalty.bind``.

        Args:
            model: a PEFT or fully trained model.
            operator: what the update is measured against.
            side: the part that is penalised, ``off`` or ``along``.
            scaled: penalise ``s·B·A`` (True) or ``B·A`` (False).
            rank: use the top singular triplets only.
            layer_weights: weigh each module's penalty by its ``‖dW‖`` (``norm``) or ``‖dW‖²``
                (``energy``), or all alike (``none``).
        """
        from anchortune.anchor.penalty import bind

        return bind(
            self,
            model,
            operator=operator,
            side=side,
            scaled=scaled,
            rank=rank,
            layer_weights=layer_weights,
        )

    @property
    def sha256(self) -> str:
        """The SHA-256 of the anchor's file, saved already or not."""
        if self._bytes_sha256 is None:
            self._bytes_sha256 = _digest(serialise(self.modules, self.metadata))
        return self._bytes_sha256

    def __len__(self) -> int:
        """How many modules it covers."""
        return len(self.modules)

    def __repr__(self) -> str:
        """One line: modules, ranks and parents."""
        ranks = [factors.rank for factors in self.modules.values()]
        span = str(max(ranks)) if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"
        parents = f"{self.metadata.aligned.id} - {self.metadata.base.id}"
        return f"Anchor({len(self)} modules, rank {span}, {parents})"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _from_memory(modules: Mapping[str, Factors]) -> AnchorMetadata:
    return AnchorMetadata(
        aligned=Identity(id="memory", kind="memory"),
        base=Identity(id="memory", kind="memory"),
        settings=Settings(target_modules=list(modules), rank="full"),
        modules={name: ModuleInfo.of(factors) for name, factors in modules.items()},
    )
