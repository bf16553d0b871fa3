"""The refusal direction of each layer: where harmful and harmless prompts lie apart in it.

For a layer it is the difference in means of the hidden states at the last token of the prompt, the
head of the answer included, between harmful and harmless prompts (Arditi et al., arXiv
2406.11717). What becomes of it is measured against the model before its training: how far it has
turned, how far the two groups lie apart, and how well it, and the old one, tell them from each
other.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anchortune.data.conversations import BadRow
from anchortune.data.overlap import normalised
from anchortune.data.prompts import Prompts, read_prompts
from anchortune.errors import DataError, TrainingError
from anchortune.maths.separation import Directions, cosines, difference_in_means, held_out_area
from anchortune.training.lora import bare_model
from anchortune.training.probe import begun, undisturbed
from anchortune.training.template import Template

if TYPE_CHECKING:
    from anchortune.config import AlignConfig, TrainConfig
    from anchortune.sections import ActivationsSection

DEFAULT_EVERY = 50
LEAST = 4
"""Prompts of a kind: two a half."""
_ROWS = 16


class DirectionReading(NamedTuple):
    """What one look at a model found, each by layer, from the first block to the last.

    Attributes:
        cosine: of the refusal direction with that of the model before its training.
        gap: the distance of the two means, over that before training.
        auc: how well the direction of one half of the prompts tells the other half's kinds apart:
            the area under the ROC curve, 0.5 by chance.
        auc_start: the same for the direction of the model before its training.
        agreement: the cosine of the two halves' directions: how well the prompts determine it.
    """

    cosine: list[float]
    gap: list[float]
    auc: list[float]
    auc_start: list[float]
    agreement: list[float]


class RefusalDirection:
    """Harmful and harmless prompts, ready to be put to a model.

    A look is a forward pass over all of them: without gradients, in evaluation mode, and without
    any effect on the model or on random numbers.

    Args:
        harmful: what a user would say; none of it trained on.
        harmless: likewise, as alike in length and form as can be: what tells the two apart beyond
            harm is in the direction too.
        tokenizer: of the model. Where it has no chat template, the plain one is put into it.
        every: optimizer steps between two looks.

    Attributes:
        every: see above.
        source: the prompts, as counts and hashes.
        start: the directions of the model before its training; None until ``begin``.

    Raises:
        DataError: there are fewer than four prompts of a kind, one is of both kinds, or the chat
            template refuses one.
        TrainingError: ``every`` is not positive.
    """

    def __init__(
        self,
        harmful: Sequence[str],
        harmless: Sequence[str],
        tokenizer: Any,
        *,
        every: int = DEFAULT_EVERY,
    ) -> None:
        if not every > 0:
            raise TrainingError(f"activations.every is above 0, not {every!r}; give such a one")
        self.every = every
        self.source: dict[str, Any] = {
            "harmful": Prompts(list(harmful)).summary(),
            "harmless": Prompts(list(harmless)).summary(),
        }
        template = tokenizer if isinstance(tokenizer, Template) else Template(tokenizer)
        self._heads = [
            _heads(template, texts, kind)
            for kind, texts in (("harmful", harmful), ("harmless", harmless))
        ]
        both = set(map(normalised, harmful)) & set(map(normalised, harmless))
        if both:
            raise DataError(
                f"{len(both)} of the harmful prompts of activations are among the harmless ones; "
                "take them out of one of the two."
            )
        self.start: Directions | None = None

    @classmethod
    def from_section(cls, section: ActivationsSection, tokenizer: Any) -> RefusalDirection:
        """What a config describes.

        Args:
            section: of the config.
            tokenizer: of the model.

        Raises:
            DataError: its prompts cannot be read or used.
        """
        kinds = [
            read_prompts(files, section.max_prompts)
            for files in (section.harmful, section.harmless)
        ]
        made = cls(kinds[0].texts, kinds[1].texts, tokenizer, every=section.every)
        made.source = {"harmful": kinds[0].summary(), "harmless": kinds[1].summary()}
        return made

    @property
    def counts(self) -> tuple[int, int]:
        """(harmful prompts, harmless prompts)."""
        return len(self._heads[0]), len(self._heads[1])

    @property
    def prompts_sha256(self) -> str:
        """What is asked, for checkpoints and identities."""
        return " ".join(self.source[kind]["prompts_sha256"] for kind in ("harmful", "harmless"))

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(head) for heads in self._heads for head in heads)

    def line(self) -> str:
        """For people: one line."""
        harmful, harmless = self.counts
        return f"{harmful} harmful and {harmless} harmless prompts every {self.every} steps"

    def trained_on(self, rows: Sequence[Sequence[int]]) -> int:
        """How many of the prompts are the beginning of a training sequence.

        Args:
            rows: token ids.
        """
        return begun([head for heads in self._heads for head in heads], rows)

    def states(self, model: Any) -> tuple[Tensor, Tensor]:
        """Hidden states at the last token of each prompt: (harmful, harmless).

        Each is (layers, prompts, d) in float32, after every block; after the last one as the model
        itself gives it, which for most is behind the final norm.

        Args:
            model: causal, from transformers, with or without a PEFT adapter.
        """
        device = model.get_input_embeddings().weight.device
        with undisturbed(model, device):
            harmful, harmless = (
                torch.cat(
                    [
                        _last_states(model, heads[at : at + _ROWS], device)
                        for at in range(0, len(heads), _ROWS)
                    ],
                    dim=1,
                )
                for heads in self._heads
            )
        return harmful, harmless

    def begin(self, model: Any) -> DirectionReading:
        """Takes the model's directions as those that later ones are held against.

        Args:
            model: before its training.
        """
        harmful, harmless = self.states(model)
        self.start = difference_in_means(harmful, harmless)
        return self._read(self.start, self.start, harmful, harmless)

    def measure(self, model: Any) -> DirectionReading:
        """How ``model`` stands now.

        Args:
            model: the one that ``begin`` was given, or a copy of its shapes.

        Raises:
            TrainingError: ``begin`` was not called.
        """
        if self.start is None:
            raise TrainingError(
                "there is no direction to hold this one against: call begin(model) before training"
            )
        harmful, harmless = self.states(model)
        now = difference_in_means(harmful, harmless)
        return self._read(now, self.start, harmful, harmless)

    @staticmethod
    def _read(
        now: Directions, start: Directions, harmful: Tensor, harmless: Tensor
    ) -> DirectionReading:
        return DirectionReading(
            cosine=cosines(now.whole, start.whole).tolist(),
            gap=(now.whole.norm(dim=-1) / start.whole.norm(dim=-1)).tolist(),
            auc=held_out_area(now, harmful, harmless).tolist(),
            auc_start=held_out_area(start, harmful, harmless).tolist(),
            agreement=cosines(now.halves[0], now.halves[1]).tolist(),
        )


def plan_activations(
    config: TrainConfig | AlignConfig, template: Template, rows: Sequence[Any], max_length: int
) -> RefusalDirection | None:
    """What a config's ``activations`` describes, held against the rows that are trained on.

    Args:
        config: of the stage.
        template: of the model.
        rows: what is trained on, tokenised.
        max_length: tokens that the model is trained to read.

    Returns:
        None without such a section.

    Raises:
        DataError: its prompts cannot be read, are too long, or are trained on.
    """
    section = getattr(config, "activations", None)
    if section is None:
        return None
    made = RefusalDirection.from_section(section, template)
    if made.longest > max_length:
        raise DataError(
            f"the longest prompt of activations is {made.longest} tokens, and at most {max_length} "
            "are read; take it out."
        )
    trained = made.trained_on([row.input_ids for row in rows])
    if trained:
        raise DataError(
            f"{trained} of the {sum(made.counts)} prompts of activations are trained on, so the "
            "direction would be measured on what was learnt by heart; give it others."
        )
    return made


def _heads(template: Template, texts: Sequence[str], kind: str) -> list[tuple[int, ...]]:
    """Each prompt's tokens, up to where the answer begins."""
    if isinstance(texts, str) or len(texts) < LEAST:
        raise DataError(f"activations needs a list of at least {LEAST} {kind} prompts.")
    found = []
    for number, text in enumerate(texts, start=1):
        try:
            said = template.render([{"role": "user", "content": text}], prompt=True)
        except BadRow as problem:
            raise DataError(f"{kind} prompt {number} of activations: {problem}.") from None
        found.append(tuple(template.tokenizer(said, add_special_tokens=False)["input_ids"]))
    return found


def _last_states(model: Any, heads: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    """(layers, prompts, d), float32, of the last token of each."""
    width = max(map(len, heads))
    ids = torch.zeros((len(heads), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, head in enumerate(heads):  # padded on the right, where no token looks
        ids[row, : len(head)] = torch.tensor(head)
        mask[row, : len(head)] = 1
    inner = bare_model(model)
    known = inspect.signature(type(inner).forward).parameters
    options: dict[str, Any] = {"output_hidden_states": True}
    if "use_cache" in known:
        options["use_cache"] = False
    if "logits_to_keep" in known:
        options["logits_to_keep"] = 1
    found = model(input_ids=ids.to(device), attention_mask=mask.to(device), **options)
    rows = torch.arange(len(heads), device=device)
    last = (mask.sum(1) - 1).to(device)
    # The first are the embeddings, where the last token of every prompt is the same.
    picked = [
        layer[rows.to(layer.device), last.to(layer.device)] for layer in found.hidden_states[1:]
    ]
    return torch.stack([layer.float().cpu() for layer in picked])
