"""Answers of a model that runs here: batched, sorted by length, greedy or sampled.

In float32, greedy answers equal those of one prompt at a time, but for near-ties: where the two
likeliest tokens are as good as equal, the order in which a batch's sums are rounded may decide.
Every answer that passes such a place carries it in its notes, and ``compare_with_single`` shows of
any answer where it leaves the one generated alone and whether that is a near-tie.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anchortune.chat import ensure_chat_template, render_chat, with_system
from anchortune.config import ModelSection
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.decode import Continuation, Row, Sampling, decode
from anchortune.evaluation.engine import (
    OnAnswer,
    candidate_identity,
    item_seed,
    joined_system,
    numbers_of,
)
from anchortune.evaluation.items import Item
from anchortune.hardware import batch_rows, free_bytes

logger = logging.getLogger(__name__)

#: Llama's newer templates would else put today's date into every prompt.
_DATE = "26 Jul 2024"
#: A gap of logits that another order of summing may close: several times the largest difference
#: seen between batched and single logits (float32: 1e-4 at 135 M parameters).
_TIE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.3}


def render_prompt(tokenizer: Any, prompt: str, system: str | None = None) -> str:
    """The text that the model is to continue, by its chat template (see ``anchortune.chat``).

    A system prompt comes where ``with_system`` puts it.
    """
    ensure_chat_template(tokenizer)
    options = {"add_generation_prompt": True, "date_string": _DATE}
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages = with_system(tokenizer, messages, system)
    return render_chat(tokenizer, messages, **options)


def encode(tokenizer: Any, item: Item, system: str | None = None) -> list[int]:
    """The tokens of an item's prompt in the chat template, after ``system`` and its own system."""
    text = render_prompt(tokenizer, item.prompt, joined_system(system, item.system))
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


class TransformersEngine:
    """A model of transformers.

    The settings of the model's own ``generation_config`` are not used, but for its end tokens:
    repetition penalties and the like would measure something else in each model.

    Args:
        model: a causal language model, its adapters merged.
        tokenizer: its tokenizer.
        generation: greedy or sampled; the seed.
        batch_size: prompts at a time; None finds one from the memory that is free.
        system: a system prompt put before every prompt, and before an item's own.
        identity: which model it is; see ``candidate_identity``.
    """

    name = "transformers"

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        generation: GenerationSection | None = None,
        batch_size: int | None = None,
        *,
        system: str | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._generation = generation or GenerationSection()
        self._system = system
        self._identity = identity or {}
        self._ends = end_tokens(model, tokenizer)
        self._most = batch_size
        self._largest = 0
        self._warn_of_processors()

    def identity(self) -> dict[str, Any]:
        """Which model it is."""
        return dict(self._identity)

    def facts(self) -> dict[str, Any]:
        """Device, dtype and the largest batch so far."""
        return {
            "engine": self.name,
            "device": self.model.device.type,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "batch_size": self._largest,
        }

    def answer(self, items: Sequence[Item], *, max_new_tokens: int, on_answer: OnAnswer) -> None:
        """Answers every item, the longest prompts first, as large batches as memory holds.

        Raises:
            EvaluationError: a prompt that the model cannot read, or one for which there is not
                enough memory even alone.
        """
        rows = [self._row(i, item, max_new_tokens) for i, item in enumerate(items)]
        left = sorted(rows, key=lambda row: len(row.ids), reverse=True)
        near_ties = 0

        def done(index: int, found: Continuation) -> None:
            nonlocal near_ties
            finished.add(index)
            near_ties += bool(found.near_ties)
            on_answer(index, self._text(found), found.finish, len(found.tokens), _notes(found))

        training = self.model.training
        self.model.eval()
        try:
            while left:
                size = self._batch_size(len(left[0].ids), left[0].limit)
                batch, finished = left[:size], set[int]()
                self._largest = max(self._largest, len(batch))
                short = self._out_of_memory(batch, done)
                left = [row for row in left if row.index not in finished]
                if short:
                    self._halve(len(batch), items[batch[0].index])
        finally:
            self.model.train(training)
        if near_ties:
            logger.info(
                "%d of %d answers passed a near-tie (two tokens within %g): there alone may they "
                "differ from answers made one at a time", near_ties, len(items), self.tie,
            )  # fmt: skip

    @property
    def tie(self) -> float:
        """The gap of two logits below which they are a near-tie, by the model's dtype."""
        return _TIE.get(self.model.dtype, _TIE[torch.bfloat16])

    def encode(self, item: Item) -> list[int]:
        """The tokens of an item's prompt, in the chat template."""
        return encode(self.tokenizer, item, self._system)

    def _row(self, index: int, item: Item, max_new_tokens: int) -> Row:
        ids = self.encode(item)
        config = self.model.config.get_text_config()
        limit = getattr(config, "max_position_embeddings", None)
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - len(ids))
        if room < 1:
            raise EvaluationError(
                f"prompt {item.id} of set '{item.set}' has {len(ids)} tokens and the model reads "
                f"at most {limit}; leave it out."
            )
        return Row(index, ids, room, self._draws(item, room))

    def _draws(self, item: Item, count: int) -> torch.Tensor | None:
        """An item's random numbers, by the seed and the item alone: resuming changes none."""
        if self._generation.temperature == 0:
            return None
        seed = item_seed(self._generation.seed, item)
        return torch.rand(count, generator=torch.Generator().manual_seed(seed))

    def _batch_size(self, width: int, new_tokens: int) -> int:
        if self._most is not None:
            return self._most
        return batch_rows(self.model, width + new_tokens, free_bytes(self.model.device))

    def _out_of_memory(
        self, batch: Sequence[Row], done: Callable[[int, Continuation], None]
    ) -> bool:
        """Answers a batch; whether memory ran out before its end."""
        settings = self._generation
        sampling = Sampling(settings.temperature, settings.top_p, self.tie)
        try:
            decode(self.model, batch, ends=self._ends, sampling=sampling, on_row=done)
        except (MemoryError, RuntimeError) as error:  # CUDA's is a RuntimeError
            if not is_out_of_memory(error):
                raise
            return True
        return False

    def _halve(self, size: int, item: Item) -> None:
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        if size == 1:
            raise EvaluationError(
                f"there is not enough memory for prompt {item.id} of set '{item.set}' even alone; "
                "lower max_new_tokens, or leave the prompt out."
            )
        self._most = size // 2
        logger.info("out of memory with %d prompts at a time; going on with %d", size, self._most)

    def _text(self, found: Continuation) -> str:
        return str(self.tokenizer.decode(found.tokens, skip_special_tokens=True)).strip()

    def _warn_of_processors(self) -> None:
        config = self.model.generation_config
        neutral = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
        for key, nothing in neutral.items():
            if getattr(config, key, None) not in (None, nothing):
                logger.info("the model's own generation_config asks for %s; it is not used", key)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the CPU's allocator."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(
        sign in text for sign in ("out of memory", "can't allocate memory", "not enough memory")
    )


def _notes(found: Continuation) -> dict[str, Any]:
    if not found.near_ties:
        return {}
    gap = min(tie.gap for tie in found.near_ties)
    places = [tie.at for tie in found.near_ties]
    return {"near_tie": float(f"{gap:.3g}"), "near_tie_at": places}


@dataclass(frozen=True)
class Departure:
    """Where an answer leaves the one generated alone.

    Attributes:
        index: of the item.
        at: the first new token that differs, from 0.
        gap: of the two likeliest logits there, in the answer generated alone.
        near_tie: whether the gap is small enough to explain it.
    """

    index: int
    at: int
    gap: float
    near_tie: bool


def compare_with_single(
    engine: TransformersEngine, items: Sequence[Item], *, max_new_tokens: int
) -> list[Departure]:
    """Answers items in batches and one at a time, greedily, and lists where they differ.

    A difference at a near-tie is logged as one; any other is logged as an error.

    Args:
        engine: its model, tokenizer and batch size are used; its temperature is not.
        items: a sample; each is generated twice.
        max_new_tokens: the longest answer.
    """
    rows = [engine._row(i, item, max_new_tokens) for i, item in enumerate(items)]
    order = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    size = engine._batch_size(len(order[0].ids), max_new_tokens)
    found: list[Departure] = []
    together: dict[int, Continuation] = {}
    alone: dict[int, Continuation] = {}
    # A tie below infinity notes the gap of every token.
    every = Sampling(tie=float("inf"))
    ends = engine._ends
    for start in range(0, len(order), size):
        batch = order[start : start + size]
        decode(engine.model, batch, ends=ends, sampling=Sampling(), on_row=together.__setitem__)
    for row in rows:
        decode(engine.model, [row], ends=ends, sampling=every, on_row=alone.__setitem__)
    for row in rows:
        one, many = alone[row.index], together[row.index]
        if one.tokens == many.tokens and one.finish == many.finish:
            continue
        pairs = zip(one.tokens, many.tokens, strict=False)
        shorter = min(len(one.tokens), len(many.tokens))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)
        gap = one.near_ties[at].gap
        found.append(Departure(row.index, at, gap, gap < engine.tie))
        level, what = (
            (logging.INFO, "a near-tie") if gap < engine.tie else (logging.ERROR, "no near-tie")
        )
        logger.log(
            level, "prompt %s: batched and single answers part at token %d, %s (gap %.2g)",
            items[row.index].id, at, what, gap,
        )  # fmt: skip
    return found


def load_engine(
    candidate: CandidateSection, generation: GenerationSection, machine: EvalMachine
) -> TransformersEngine:
    """The engine of a candidate that runs here; its adapters are merged in float32, in order.

    Raises:
        CheckpointError: the model cannot be loaded, or an adapter does not fit.
    """
    from anchortune.adapter.merge import merge_adapter
    from anchortune.models.load import Numbers, cast, load_model, load_tokenizer

    section = ModelSection(
        path=str(candidate.path),
        revision=candidate.revision,
        trust_remote_code=candidate.trust_remote_code,
    )
    numbers = numbers_of(machine)
    tokenizer = load_tokenizer(section)
    wide = Numbers(numbers.device, numbers.compute, torch.float32)
    model = load_model(section, wide if candidate.adapter else numbers)
    for adapter in candidate.adapter:
        model = merge_adapter(model, adapter)
    return TransformersEngine(
        cast(model, numbers.weights),
        tokenizer,
        generation,
        machine.batch_size,
        system=candidate.system,
        identity=candidate_identity(candidate),
    )


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int | None = None,
    system: str | None = None,
    on_done: Callable[[int], None] | None = None,
) -> list[str]:
    """One greedy answer for each prompt, in the order given.

    Args:
        model: a causal language model of transformers.
        tokenizer: its tokenizer.
        prompts: the user's turns, without any template.
        max_new_tokens: the longest answer.
        batch_size: prompts at a time; None finds one.
        system: a system prompt for all of them.
        on_done: told the number of prompts done after each.
    """
    answers: dict[int, str] = {}

    def done(index: int, text: str, *_: Any) -> None:
        answers[index] = text
        if on_done is not None:
            on_done(len(answers))

    engine = TransformersEngine(model, tokenizer, batch_size=batch_size, system=system)
    items = [Item(set="prompts", prompt=prompt) for prompt in prompts]
    engine.answer(items, max_new_tokens=max_new_tokens, on_answer=done)
    return [answers[index] for index in range(len(prompts))]


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """Every token that ends an answer: the tokenizer's and those of the generation config."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    found = [token for token in (tokenizer.eos_token_id, *listed) if token is not None]
    return list(dict.fromkeys(found)) or [0]
