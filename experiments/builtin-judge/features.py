"""Features of labelled exchanges, made once and kept: an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sources import Row
from torch import Tensor

from anchortune.config import ModelSection
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.judges.base import Exchange
from anchortune.evaluation.judges.builtin_features import Features, Form, Reader
from anchortune.evaluation.judges.weights import JudgeWeights
from anchortune.files import atomic_path

BLOCK = 250


class Cache:
    """The pooled states of exchanges, block by block in a folder.

    Args:
        folder: where blocks are kept.
        backbone: what reads: a folder, a ``.gguf`` file, ``package:NAME``.
        form: how exchanges are written.
        layers: which states are kept.
        dtype: of the backbone.
    """

    def __init__(
        self,
        folder: Path,
        backbone: str,
        form: Form,
        layers: Sequence[int],
        dtype: str,
    ) -> None:
        self._folder = folder
        machine = EvalMachine(device="auto", dtype=dtype)
        self.weights = JudgeWeights(ModelSection(path=backbone), machine, 32)
        self._form, self._layers = form, tuple(layers)
        self._key = [self.weights.identity["sha256"], asdict(form), list(layers), dtype]
        self._made: Reader | None = None

    @property
    def reader(self) -> Reader:
        """What reads, loaded when first needed."""
        if self._made is None:
            model, tokenizer = self.weights.load()
            self._made = Reader(model, tokenizer, self._form, self._layers)
        return self._made

    def of(self, rows: Sequence[Row]) -> Features:
        """Features of all rows, in order."""
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt + rows[i].answer))
        blocks = [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]
        found: list[Features] = []
        for number, block in enumerate(blocks, 1):
            found.append(self._block([rows[i] for i in block]))
            print(f"features: block {number} of {len(blocks)}", file=sys.stderr, flush=True)
        back = torch.empty(len(rows), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(rows))
        return Features(*(torch.cat(parts)[back].float() for parts in zip(*found, strict=True)))

    def path(self, rows: Sequence[Row]) -> Path:
        """Where the features of a block of rows are kept."""
        texts = [[row.prompt, row.answer] for row in rows]
        key = hashlib.sha256(json.dumps([self._key, texts]).encode()).hexdigest()[:24]
        return self._folder / f"{key}.safetensors"

    def _block(self, rows: Sequence[Row]) -> Features:
        path = self.path(rows)
        if not path.is_file():
            started = time.perf_counter()
            encoded = [self.reader.encode(Exchange(row.prompt, row.answer)) for row in rows]
            made: dict[int, tuple[Tensor, ...]] = {}

            def run(batch: list[int]) -> None:
                read = self.reader.read([encoded[i] for i in batch])
                made.update(zip(batch, zip(*read, strict=True), strict=True))

            self.weights.in_batches([row.ids for row in encoded], run, new_tokens=0)
            ordered = [made[i] for i in range(len(rows))]
            stacked = [torch.stack(parts).half() for parts in zip(*ordered, strict=True)]
            with atomic_path(path) as temporary:
                save_file(dict(zip(Features._fields, stacked, strict=True)), temporary)
            rate = len(rows) / (time.perf_counter() - started)
            print(f"{rate:.1f} answers/s", file=sys.stderr)
        return Features(**load_file(path))
