"""The work folder of sweeps: what runs share is made once, by whoever comes first.

<work>/  models/  anchors/  mixes/  train/  runs/  locks/     each by its digest
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from anchortune.config import ModelSection
from anchortune.config_mix import MixSection
from anchortune.errors import JobError
from anchortune.files import atomic_directory, discard
from anchortune.jobs.folder import digest_of
from anchortune.lock import holder_of, is_alive, locked

logger = logging.getLogger(__name__)
_WAIT_S = 0.5
#: Characters of a digest in names of folders and files.
SHORT = 12


class Store:
    """A work folder; several processes and machines may use it at the same time.

    Args:
        path: the folder; made where missing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()

    def place(self, kind: str, digest: str) -> Path:
        """Where a thing of a kind lies, or would."""
        return self.path / kind / digest[:SHORT]

    def _lock(self, kind: str, digest: str) -> Path:
        return self.path / "locks" / f"{kind}-{digest[:SHORT]}"

    @contextlib.contextmanager
    def claimed(self, kind: str, digest: str) -> Iterator[bool]:
        """Holds a thing while it is made; False where somebody else who lives holds it."""
        folder = self._lock(kind, digest)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
            except JobError:
                yield False
                return
            yield True

    @contextlib.contextmanager
    def held(self, kind: str, digest: str) -> Iterator[None]:
        """Holds a thing, waiting for whoever holds it."""
        while True:
            with self.claimed(kind, digest) as mine:
                if mine:
                    yield
                    return
            time.sleep(_WAIT_S)

    def is_held(self, kind: str, digest: str) -> bool:
        """Whether somebody who lives holds it."""
        folder = self._lock(kind, digest)
        try:
            holder = holder_of(folder)
        except JobError:
            return False
        return holder is not None and is_alive(holder, folder)

    def made(self, kind: str, digest: str, suffix: str, make: Callable[[Path], None]) -> Path:
        """The place of a thing, which ``make`` writes where it is missing, whole or not at all."""
        path = self.place(kind, digest)
        path = path.with_name(path.name + suffix)
        if path.exists():
            return path
        with self.held(kind, digest):
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                make(path)
        return path


def runnable(store: Store, section: ModelSection) -> ModelSection:
    """The same model as a folder that loads fast: GGUF unpacked, its adapter merged in float32.

    A folder or Hub id without an adapter is taken as it is.
    """
    from anchortune.jobs.making import weights_of
    from anchortune.models.load import locate

    if section.adapter is None and locate(section).gguf is None:
        return section

    def make(path: Path) -> None:
        import torch

        from anchortune.models.load import Numbers, load_model, load_tokenizer

        logger.info("preparing %s%s", section.path, " with its adapter" if section.adapter else "")
        numbers = Numbers(torch.device("cpu"), torch.float32, torch.float32)
        model = load_model(section, numbers)
        with atomic_directory(path) as temporary:
            model.save_pretrained(temporary)
            load_tokenizer(section).save_pretrained(temporary)

    path = store.made("models", digest_of(weights_of(section)), "", make)
    return ModelSection(path=str(path), trust_remote_code=section.trust_remote_code)


def built_anchor(
    store: Store, model: ModelSection, base: ModelSection, targets: list[str] | str, asked: Any
) -> Path:
    """The anchor of ``model`` minus ``base``.

    Args:
        store: where it lies.
        model: the aligned one.
        base: what it was aligned from.
        targets: the layers.
        asked: the ``anchor`` section, for rank and energy; None takes the library's default.
    """
    from anchortune.jobs.making import weights_of

    rank = asked.rank if asked is not None else None
    energy = asked.energy if asked is not None else None

    def make(path: Path) -> None:
        from anchortune.anchor.anchor import Anchor

        logger.info("building the anchor of %s", model.path)
        aligned = model.adapter or model.path
        anchor = Anchor.from_checkpoints(
            aligned,
            base.path,
            target_modules=targets,
            rank=rank,
            energy=energy,
            aligned_revision=None if model.adapter is not None else model.revision,
            base_revision=base.revision,
        )
        anchor.save(path)

    digest = digest_of([weights_of(model), weights_of(base), targets, rank, energy])
    return store.made("anchors", digest, ".safetensors", make)


def made_mix(store: Store, section: MixSection, seed: int, digest: str) -> Path:
    """The rows of a mix at a seed, by the digest of its settings and sources."""
    from anchortune.data.mix import make_mix

    def make(path: Path) -> None:
        facts = make_mix(section, seed, path)
        logger.info("mix: %s", "; ".join(facts.lines()))

    return store.made("mixes", digest, ".jsonl", make)


def cleared(path: Path) -> None:
    """Takes away what an older version of a run left in its folder."""
    if path.exists():
        logger.info("%s holds what another version made; it is made again", path)
        discard(path)
