"""The weights of a judge that runs here: found and hashed at once, loaded when first needed."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from anchortune.config import ModelSection
from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.engine import numbers_of
from anchortune.evaluation.generate import is_out_of_memory
from anchortune.hardware import batch_rows, free_bytes
from anchortune.models.load import identity, load_config, load_model, load_tokenizer

logger = logging.getLogger(__name__)


class JudgeWeights:
    """A judge's model and tokenizer.

    Args:
        section: which model, and the adapter merged into it.
        machine: device and dtype.
        batch_size: sequences at a time; None finds it from the memory that is free.
        auto: the class of transformers that loads it, see ``load_model``.

    Raises:
        CheckpointError: the weights are not there, or are pickled.
        EvaluationError: the machine has not that device, or no use for that dtype.
    """

    def __init__(
        self,
        section: ModelSection,
        machine: EvalMachine,
        batch_size: int | None,
        *,
        auto: Any = None,
    ) -> None:
        self._section = section
        self._most, self._auto = batch_size, auto
        self._tokenizer: Any = None
        self._model: Any = None
        self._numbers = numbers_of(machine)
        self.identity = identity(section)
        if not self.identity["files"]:
            raise CheckpointError(
                f"{section.path}: no safetensors in it; pickled weights are not read, save them "
                "again with save_pretrained."
            )

    def load(self) -> tuple[Any, Any]:
        """(model in eval mode, tokenizer), loaded once.

        Raises:
            CheckpointError: they cannot be loaded.
        """
        if self._model is None:
            section = self._section
            logger.info("loading the judge %s", section.path)
            self._model = load_model(section, self._numbers, auto=self._auto).eval()
        return self._model, self.tokenizer

    @property
    def tokenizer(self) -> Any:
        """The tokenizer, without the weights.

        Raises:
            CheckpointError: it cannot be loaded.
        """
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self._section)
        return self._tokenizer

    @property
    def config(self) -> Any:
        """The model's config, without the weights.

        Raises:
            CheckpointError: it cannot be read.
        """
        return load_config(self._section)

    def in_batches(
        self,
        rows: Sequence[Sequence[int]],
        run: Callable[[list[int]], None],
        *,
        new_tokens: int,
        on_done: Callable[[int], None] | None = None,
    ) -> None:
        """Runs all rows, the longest first; a batch that memory does not hold is halved.

        Args:
            rows: tokens of each.
            run: does the rows whose indices it is given.
            new_tokens: what is generated on top.
            on_done: told how many rows are done.

        Raises:
            EvaluationError: memory does not hold a single row.
        """
        model, _ = self.load()
        left = sorted(range(len(rows)), key=lambda i: len(rows[i]), reverse=True)
        most = self._most
        while left:
            size = most or batch_rows(
                model, len(rows[left[0]]) + new_tokens, free_bytes(model.device)
            )
            if not _fits(run, left[:size]):
                most = min(size, len(left)) // 2
                if most == 0:
                    raise EvaluationError(
                        f"the judge {self._section.path} has not enough memory for a sequence of "
                        f"{len(rows[left[0]])} tokens; use a smaller judge or another machine."
                    )
                logger.info("out of memory: the judge goes on with %d at a time", most)
                continue
            left = left[size:]
            if on_done is not None:
                on_done(len(rows) - len(left))

    def padded(self, rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
        """(ids, attention mask) of rows padded on the left, (rows, longest), on the device."""
        model, _ = self.load()
        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, width - len(row) :] = torch.tensor(row)
            mask[at, width - len(row) :] = 1
        return ids.to(model.device), mask.to(model.device)


def _fits(run: Callable[[list[int]], None], rows: list[int]) -> bool:
    """Whether a batch ran; False where memory ran out, and then what can be freed is."""
    try:
        run(rows)
        return True
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    gc.collect()  # outside the handler: the error's frames hold the batch
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return False


def neutralise(text: str, marks: Sequence[str]) -> str:
    """``text`` with every one of ``marks``, in any case of letters, broken by a space.

    So nothing that is judged can close the part of the prompt that it stands in, start a turn of
    its own, or become a special token.
    """
    if not marks:
        return text
    pattern = re.compile("|".join(map(re.escape, marks)), re.IGNORECASE)
    while pattern.search(text):  # a mark that stands in another comes to light when that is broken
        text = pattern.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


def neutralise_for(tokenizer: Any, text: str, marks: Sequence[str]) -> str:
    """``neutralise``, also of look-alikes that the tokenizer would turn into marks itself.

    Some tokenizers normalise a text first, and make ``＜|end|＞`` of wide letters into ``<|end|>``.
    """
    text = neutralise(text, marks)
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None or not marks:
        return text
    as_read = str(normalizer.normalize_str(text))
    clean = neutralise(as_read, marks)
    return text if clean == as_read else clean


def special_strings(tokenizer: Any) -> list[str]:
    """What the tokenizer would read as a special token if it stood in a text, longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in added if getattr(token, "special", False)}
    found |= set(tokenizer.all_special_tokens)
    return sorted((s for s in found if len(s.strip()) > 1 and not s.isalnum()), key=len)[::-1]
