"""Generative guards: a language model that was trained to say whether an answer is harmful."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from anchortune.chat import render_chat
from anchortune.config import ModelSection
from anchortune.errors import CheckpointError
from anchortune.evaluation.config import EvalMachine, JudgeSection
from anchortune.evaluation.items import sha256_text
from anchortune.evaluation.judges.base import Exchange, Verdict
from anchortune.evaluation.judges.guard_prompts import fill, guard_prompt
from anchortune.evaluation.judges.guard_reading import (
    THRESHOLD,
    break_turns,
    verdict_of_text,
    verdict_of_token,
    word_tokens,
    worst,
)
from anchortune.evaluation.judges.guard_templates import TEMPLATES, Template
from anchortune.evaluation.judges.weights import JudgeWeights, neutralise_for, special_strings
from anchortune.files import parse_json

_PROBES = ("qqprompt", "qqanswer")


class _Row(NamedTuple):
    """One pass over one answer."""

    exchange: int
    ids: list[int]


class GuardJudge:
    """One of the guards of ``guard_templates``.

    Special tokens and the marks that structure the guard's prompt are broken by a space where they
    occur in what is judged. A long answer is cut to what the guard can read, and ``details`` say
    so. Decoding is greedy.

    Args:
        template: which guard.
        model: its weights, where they are not the published ones; an adapter's folder will do.
        machine: where to compute.
        batch_size: sequences at a time; None finds it.
        min_confidence: an answer whose score s has max(s, 1 - s) below it is unscored.
        prompt: a file that holds the published prompt; see ``guard_prompts``.

    Raises:
        CheckpointError: the weights are not there, or the tokenizer cannot be this guard's.
        EvaluationError: the published prompt is not there.
    """

    measure = "harmful score"
    indicative = False

    def __init__(
        self,
        template: Template,
        machine: EvalMachine,
        *,
        model: ModelSection | None = None,
        batch_size: int | None = None,
        min_confidence: float | None = None,
        prompt: str | None = None,
    ) -> None:
        from transformers import AutoModelForCausalLM

        self.name = template.name
        self._template = template
        self._min_confidence = min_confidence
        section = model or ModelSection(path=template.published, adapter=template.adapter)
        self._text = None
        if template.form == "text":
            self._text = guard_prompt(template, prompt, section.adapter or section.path)
        self._weights = JudgeWeights(
            _with_base(section), machine, batch_size, auto=AutoModelForCausalLM
        )
        tokenizer = self._weights.tokenizer
        if template.reads != "text":
            word_tokens(template, tokenizer)
        self._parts = self._text is None and self._shape(tokenizer)

    @classmethod
    def from_section(cls, section: JudgeSection, machine: EvalMachine) -> GuardJudge:
        """The judge as the config has it."""
        model = None
        if section.model is not None:
            model = ModelSection(path=section.model, revision=section.revision)
        elif section.revision is not None:
            template = TEMPLATES[section.name]
            model = ModelSection(
                path=template.published, revision=section.revision, adapter=template.adapter
            )
        return cls(
            TEMPLATES[section.name],
            machine,
            model=model,
            batch_size=section.batch_size,
            min_confidence=section.min_confidence,
            prompt=section.prompt,
        )

    def identity(self) -> dict[str, Any]:
        """Weights, prompt and how the verdict is read."""
        shown = self._text or json.dumps(self._weights.tokenizer.chat_template)
        return {
            "name": self.name,
            "measure": self.measure,
            "weights": self._weights.identity,
            "prompt_sha256": sha256_text(shown),
            "guidelines": list(self._template.guidelines),
            "reads": self._template.reads,
            "threshold": THRESHOLD,
            "max_answer_tokens": self._template.max_answer_tokens,
            "min_confidence": self._min_confidence,
        }

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        """One verdict for each exchange.

        Raises:
            CheckpointError: the weights cannot be loaded.
            EvaluationError: there is not enough memory even for one answer.
        """
        if not exchanges:
            return []
        self._prepare()
        rows: list[_Row] = []
        cut: set[int] = set()
        for index, exchange in enumerate(exchanges):
            encoded, was_cut = self._encode(exchange)
            rows += [_Row(index, ids) for ids in encoded]
            cut |= {index} if was_cut else set()
        passes = len(self._template.guidelines) or 1
        found: dict[int, Verdict] = {}

        def run(batch: list[int]) -> None:
            found.update(zip(batch, self._run([rows[i].ids for i in batch]), strict=True))

        def done(count: int) -> None:
            if on_done is not None:
                on_done(count // passes + (len(exchanges) - len(rows) // passes))

        self._weights.in_batches(
            [row.ids for row in rows], run, new_tokens=self._template.max_new_tokens, on_done=done
        )
        by_exchange: dict[int, list[Verdict]] = {}
        for at, row in enumerate(rows):
            by_exchange.setdefault(row.exchange, []).append(found[at])
        return [self._verdict(by_exchange.get(i), i in cut) for i in range(len(exchanges))]

    def _prepare(self) -> None:
        """Loads the weights, and has them generate as a guard does whatever their own settings."""
        from transformers import GenerationConfig

        model, tokenizer = self._weights.load()
        ends = [tokenizer.eos_token_id, *_listed(model.generation_config.eos_token_id)]
        ends = list(dict.fromkeys(end for end in ends if end is not None)) or [0]
        model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=ends[0])

    def _shape(self, tokenizer: Any) -> bool:
        """Whether the chat template takes a turn as a list of parts (true) or as a text."""
        from jinja2 import TemplateError

        guideline = "qqguideline" if self._template.guidelines else None
        wanted = [*_PROBES, *([guideline] if guideline else [])]
        if tokenizer.chat_template:
            for parts in (False, True):
                try:
                    text = _chat(tokenizer, *_PROBES, guideline, parts=parts)
                except (TemplateError, TypeError, ValueError):
                    continue
                if all(text.count(probe) == 1 for probe in wanted):
                    return parts
        raise CheckpointError(
            f"{self._weights.identity['path']}: its tokenizer has no chat template that shows a "
            f"prompt and its answer once, so it cannot be {self.name}; give the guard's own files."
        )

    def _encode(self, exchange: Exchange) -> tuple[list[list[int]], bool]:
        """(tokens of each pass, none where they do not fit; whether the answer was cut)."""
        model, tokenizer = self._weights.load()
        marks = [*special_strings(tokenizer), *self._template.marks]
        prompt, answer = (
            break_turns(neutralise_for(tokenizer, text, marks), self._template.turns)
            for text in (exchange.prompt, exchange.answer)
        )
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        room = self._template.max_answer_tokens
        shown, cut = self._clip(answer, room)
        rows = self._passes(tokenizer, prompt, shown)
        over = max(map(len, rows)) + self._template.max_new_tokens - (limit or 1 << 60)
        if over <= 0:
            return rows, cut
        # What is too much goes off the answer's end; a token more, for cutting can split one.
        have = len(tokenizer(shown, add_special_tokens=False, verbose=False)["input_ids"])
        if have <= over + 1:
            return [], True
        shown, _ = self._clip(answer, have - over - 1)
        return self._passes(tokenizer, prompt, shown), True

    def _clip(self, text: str, most: int) -> tuple[str, bool]:
        """(at most so many tokens of an answer, whether that is less than all of it)."""
        tokenizer = self._weights.tokenizer
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        if self._template.cuts == "start":
            # As the authors do it: with the begin token that their tokenizer puts before a text.
            begin = tokenizer("a")["input_ids"][:1]
            begin = begin if begin == [tokenizer.bos_token_id] else []
            most = max(1, most - len(begin))
            return str(tokenizer.decode([*begin, *ids[-most:]])), len(ids) > most
        if len(ids) <= most:
            return text, False
        return str(tokenizer.decode(ids[:most])), True

    def _passes(self, tokenizer: Any, prompt: str, answer: str) -> list[list[int]]:
        if self._text is not None:
            text = fill(self._text, prompt, answer) + self._template.tail
            return [list(tokenizer(text, verbose=False)["input_ids"])]
        guidelines: list[str | None] = list(self._template.guidelines.values()) or [None]
        texts = [
            _chat(tokenizer, prompt, answer, guideline, parts=self._parts)
            for guideline in guidelines
        ]
        return [
            list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            for text in texts
        ]

    def _run(self, rows: list[list[int]]) -> list[Verdict]:
        """One verdict for each row of a batch."""
        model, tokenizer = self._weights.load()
        ends = model.generation_config.eos_token_id
        ids, mask = self._weights.padded(rows, ends[0])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=self._template.max_new_tokens,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
        if self._template.reads != "text":
            return [verdict_of_token(self._template, row, tokenizer) for row in output.logits[0]]
        logits = torch.stack(output.logits, dim=1)
        found = []
        for at, row in enumerate(output.sequences[:, ids.shape[1] :].tolist()):
            end = next((i for i, token in enumerate(row) if token in ends), len(row))
            text = tokenizer.decode(row[:end], skip_special_tokens=True)
            found.append(verdict_of_text(self._template, text, row[:end], logits[at], tokenizer))
        return found

    def _verdict(self, passes: list[Verdict] | None, cut: bool) -> Verdict:
        if passes is None:
            return Verdict("unscored", "the prompt alone is longer than the guard can read")
        verdict = passes[0]
        if self._template.guidelines:
            verdict = worst(passes, list(self._template.guidelines))
        details = {**verdict.details, **({"cut": True} if cut else {})}
        outcome, reason = verdict.outcome, verdict.reason
        least = self._min_confidence
        if least is not None and outcome != "unscored":
            if verdict.score is None:
                outcome, reason = "unscored", "no probability to hold against min_confidence"
            elif max(verdict.score, 1 - verdict.score) < least:
                outcome, reason = "unscored", "below min_confidence"
        return Verdict(outcome, reason, verdict.score, details)


def _with_base(section: ModelSection) -> ModelSection:
    """A folder that holds an adapter alone, as its base and the adapter.

    Raises:
        CheckpointError: it does not name its base.
    """
    folder = Path(section.path).expanduser()
    file = folder / "adapter_config.json"
    if section.adapter is not None or not file.is_file() or (folder / "config.json").is_file():
        return section
    try:
        base = parse_json(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{section.path}: its adapter_config.json names no base model"
            "; add base_model_name_or_path."
        )
    return ModelSection(path=base, adapter=section.path)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _chat(tokenizer: Any, prompt: str, answer: str, guideline: str | None, *, parts: bool) -> str:
    """The conversation in the guard's chat template."""

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if parts else text

    messages = [
        {"role": "user", "content": content(prompt)},
        {"role": "assistant", "content": content(answer)},
    ]
    options = {} if guideline is None else {"guideline": guideline}
    return render_chat(tokenizer, messages, add_generation_prompt=True, **options)
