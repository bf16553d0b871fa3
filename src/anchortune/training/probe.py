"""The safety probe: how much likelier a model is to begin with a refusal than with compliance.

For a prompt x with refusing openings R and complying openings C, token sequences none of which
begins another, the margin is ``log Σ_{o∈R} p(o | x) − log Σ_{o∈C} p(o | x)``: the log-odds, in
nats, that an answer begins with one of R and not one of C. The probe's margin is the mean over its
prompts; no answer is generated and none is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from anchortune.data.conversations import BadRow
from anchortune.data.prompts import Prompts, read_prompts
from anchortune.errors import DataError, TrainingError
from anchortune.sections import COMPLYING, REFUSING
from anchortune.training.lora import bare_model
from anchortune.training.template import Template

if TYPE_CHECKING:
    from anchortune.config import AlignConfig, TrainConfig
    from anchortune.sections import ProbeSection

DEFAULT_EVERY = 10


class Reading(NamedTuple):
    """What one look at a model found.

    Attributes:
        margin: mean over the prompts of the log-odds of refusing, in nats.
        refusing_share: prompts on which refusing is the likelier of the two, a share.
        margins: of each prompt, in nats.
    """

    margin: float
    refusing_share: float
    margins: list[float]


class Probe:
    """Harmful prompts and the openings that are looked for, ready to be put to a model.

    One forward pass over all of them a look: without gradients, in evaluation mode, and without
    any effect on the model or on random numbers.

    Args:
        prompts: what a user would say; harmful ones, none of which is reported on.
        tokenizer: of the model. Where it has no chat template, the plain one is put into it.
        refusing: how answers begin that refuse.
        complying: how answers begin that comply.
        every: optimizer steps between two looks.
        warn_below: nats by which the margin may lie below the aligned model's without a warning;
            None never warns.
        stop_below: the same for stopping the run; None never stops it.

    Attributes:
        prompts: see above.
        every: see above.
        warn_below: see above.
        stop_below: see above.

    Raises:
        DataError: there is no prompt, or the chat template refuses one.
        TrainingError: an opening is empty or begins one of the other kind, or a number is not
            positive.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        tokenizer: Any,
        *,
        refusing: Sequence[str] = REFUSING,
        complying: Sequence[str] = COMPLYING,
        every: int = DEFAULT_EVERY,
        warn_below: float | None = None,
        stop_below: float | None = None,
    ) -> None:
        if isinstance(prompts, str) or not prompts:
            raise DataError("a probe needs a list of at least one prompt.")
        for name, number in (("every", every), ("warn_below", warn_below),
                             ("stop_below", stop_below)):  # fmt: skip
            if number is not None and not number > 0:
                raise TrainingError(f"probe.{name} is above 0, not {number!r}; give such a one")
        self.prompts = list(prompts)
        self.every, self.warn_below, self.stop_below = every, warn_below, stop_below
        self.source: dict[str, Any] = Prompts(self.prompts).summary()
        template = tokenizer if isinstance(tokenizer, Template) else Template(tokenizer)
        self._heads: list[tuple[int, ...]] = []
        asked = []
        for number, prompt in enumerate(self.prompts, start=1):
            try:
                head, openings = _encode(template, prompt, [*refusing, *complying])
            except BadRow as problem:
                raise DataError(f"prompt {number} of the probe: {problem}.") from None
            split = _split(openings, [*refusing, *complying], len(refusing))
            self._heads.append(head)
            asked.append((head, *split))
        pad = template.tokenizer.pad_token_id
        self._layout = _lay_out(asked, template.tokenizer.eos_token_id if pad is None else pad)

    @classmethod
    def from_section(cls, section: ProbeSection, tokenizer: Any) -> Probe:
        """The probe that a config describes.

        Args:
            section: of the config.
            tokenizer: of the model.

        Raises:
            DataError: its prompts cannot be read.
        """
        prompts = read_prompts(section.prompts, section.max_prompts)
        probe = cls(
            prompts.texts,
            tokenizer,
            refusing=section.refusing,
            complying=section.complying,
            every=section.every,
            warn_below=section.warn_below,
            stop_below=section.stop_below,
        )
        probe.source = prompts.summary()
        return probe

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt with what is put after it."""
        return int(self._layout.ids.shape[1])

    @property
    def rows(self) -> int:
        """Sequences in the forward pass."""
        return int(self._layout.ids.shape[0])

    def line(self) -> str:
        """For people: one line."""
        limits = ((self.warn_below, "warns"), (self.stop_below, "stops"))
        told = "".join(f", {verb} {by:g} nats below" for by, verb in limits if by is not None)
        return f"{len(self.prompts)} prompts every {self.every} steps{told}"

    def trained_on(self, rows: Sequence[Sequence[int]]) -> int:
        """How many of the prompts are the beginning of a training sequence.

        Args:
            rows: token ids.
        """
        return begun(self._heads, rows)

    def measure(self, model: Any) -> Reading:
        """How ``model`` stands now.

        Args:
            model: causal, from transformers, with or without a PEFT adapter.
        """
        layout = self._layout
        device = model.get_input_embeddings().weight.device
        with undisturbed(model, device):
            logits = _last_logits(model, layout, device)
        picked = logits.float().log_softmax(-1).cpu()
        read = picked[layout.rows, layout.places, layout.tokens]
        scores = read.masked_fill(~layout.counted, 0.0).sum(-1).double()
        refusing = scores.masked_fill(~layout.refusing, -torch.inf).logsumexp(-1)
        complying = scores.masked_fill(~layout.complying, -torch.inf).logsumexp(-1)
        margins = refusing - complying
        return Reading(
            float(margins.mean()), float((margins > 0).double().mean()), margins.tolist()
        )


def begun(heads: Sequence[tuple[int, ...]], rows: Sequence[Sequence[int]]) -> int:
    """How many of the prompts are the beginning of a training sequence.

    Args:
        heads: token ids of each prompt.
        rows: token ids of each sequence.
    """
    distinct = set(heads)
    lengths = {len(head) for head in distinct}
    seen = {tuple(row[:length]) for row in rows for length in lengths if len(row) > length}
    return len(distinct & seen)


def plan_probe(
    config: TrainConfig | AlignConfig, template: Template, rows: Sequence[Any], max_length: int
) -> Probe | None:
    """The probe of a config, held against the rows that are trained on; None without one.

    Args:
        config: of the stage.
        template: of the model.
        rows: what is trained on, tokenised.
        max_length: tokens that the model is trained to read.

    Raises:
        DataError: its prompts cannot be read, are too long, or are trained on.
    """
    section = getattr(config, "probe", None)
    if section is None:
        return None
    probe = Probe.from_section(section, template)
    if probe.longest > max_length:
        raise DataError(
            f"the longest prompt of the probe is {probe.longest} tokens with what follows it, and "
            f"at most {max_length} are read; take it out of probe.prompts."
        )
    trained = probe.trained_on([row.input_ids for row in rows])
    if trained:
        raise DataError(
            f"{trained} of the {len(probe.prompts)} prompts of the probe are trained on, so it "
            "would measure what was learnt by heart; give probe.prompts others."
        )
    return probe


class _Layout(NamedTuple):
    """The forward pass of a probe, and where in its logits each opening's tokens are read.

    Attributes:
        ids: (rows, width), padded on the left.
        mask: likewise, 1 where there is a token.
        keep: positions at the end of each row whose logits are read.
        rows: (prompts, openings, tokens): the row to read.
        places: the position among those kept.
        tokens: the token whose log-probability it is.
        counted: False where an opening has fewer tokens.
        refusing: (prompts, openings): whether it refuses.
        complying: whether it complies; neither where it is left out.
    """

    ids: Tensor
    mask: Tensor
    keep: int
    rows: Tensor
    places: Tensor
    tokens: Tensor
    counted: Tensor
    refusing: Tensor
    complying: Tensor


def _encode(
    template: Template, prompt: str, openings: Sequence[str]
) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """(tokens of the prompt, tokens of each opening after it), as the chat template puts them.

    Some templates put a blank, or an empty thought, before an answer; it counts as part of it.
    """

    def ids(text: str) -> tuple[int, ...]:
        return tuple(template.tokenizer(text, add_special_tokens=False)["input_ids"])

    asked = [{"role": "user", "content": prompt}]
    before = template.render(asked, prompt=True)
    head = ids(before)
    found = []
    for opening in openings:
        said = opening.strip()
        if not said:
            raise TrainingError("an opening of the probe is empty; leave it out")
        whole = template.render([*asked, {"role": "assistant", "content": said}])
        at = whole.find(said, len(before)) if whole.startswith(before) else -1
        lead = whole[len(before) : at] if at >= 0 else ""
        tokens = ids(before + lead + said)
        # A token across the border is no token of an answer to this prompt.
        apart = tokens[: len(head)] != head
        found.append(ids(lead + said) if apart else tokens[len(head) :])
    return head, found


def _split(
    openings: Sequence[tuple[int, ...]], names: Sequence[str], refusing: int
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(refusing, complying) without those that begin with another of their kind.

    Raises:
        TrainingError: one begins one of the other kind, so that it says nothing.
    """
    kinds = (range(refusing), range(refusing, len(openings)))
    for one in kinds[0]:
        for other in kinds[1]:
            short, long = sorted((openings[one], openings[other]), key=len)
            if long[: len(short)] == short:
                raise TrainingError(
                    f"the probe cannot tell the opening '{names[one]}', which refuses, from "
                    f"'{names[other]}', which complies; lengthen the shorter one"
                )
    refused, complied = (_prefix_free([openings[i] for i in kind]) for kind in kinds)
    return refused, complied


def _prefix_free(openings: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Each once, and none that begins with another: that one's probability holds its own."""
    distinct = list(dict.fromkeys(openings))
    return [
        one
        for one in distinct
        if not any(one != other and one[: len(other)] == other for other in distinct)
    ]


def _leaves(openings: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """What has to stand behind a prompt so that every token of every opening is predicted once."""
    heads = list(dict.fromkeys(opening[:-1] for opening in openings))
    return [
        one
        for one in heads
        if not any(one != other and other[: len(one)] == one for other in heads)
    ]


def _lay_out(
    asked: Sequence[tuple[tuple[int, ...], list[tuple[int, ...]], list[tuple[int, ...]]]],
    pad: int,
) -> _Layout:
    """The batch for (prompt, refusing openings, complying openings) of every prompt."""
    sequences: list[tuple[int, ...]] = []
    reads: list[list[tuple[int, int, tuple[int, ...], bool]]] = []  # row, length behind, opening
    for head, refusing, complying in asked:
        leaves = _leaves([*refusing, *complying])
        first = len(sequences)
        sequences.extend(head + leaf for leaf in leaves)
        mine = []
        for opening, refuses in [(o, True) for o in refusing] + [(o, False) for o in complying]:
            row = next(
                i for i, leaf in enumerate(leaves) if leaf[: len(opening) - 1] == opening[:-1]
            )
            mine.append((first + row, len(leaves[row]), opening, refuses))
        reads.append(mine)
    width = max(map(len, sequences))
    keep = 1 + max(behind for mine in reads for _, behind, _, _ in mine)
    ids = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, width - len(sequence) :] = torch.tensor(sequence)
        mask[row, width - len(sequence) :] = 1
    most = max(len(mine) for mine in reads)
    longest = max(len(opening) for mine in reads for _, _, opening, _ in mine)
    rows, places, tokens = (
        torch.zeros(len(asked), most, longest, dtype=torch.long) for _ in range(3)
    )
    counted = torch.zeros(len(asked), most, longest, dtype=torch.bool)
    kinds = torch.zeros(2, len(asked), most, dtype=torch.bool)
    for number, mine in enumerate(reads):
        for place, (row, behind, opening, refuses) in enumerate(mine):
            end = len(opening)
            rows[number, place, :end] = row
            # The last token of the prompt stands ``behind`` before the row's end.
            places[number, place, :end] = torch.arange(end) + keep - 1 - behind
            tokens[number, place, :end] = torch.tensor(opening)
            counted[number, place, :end] = True
            kinds[0 if refuses else 1, number, place] = True
    return _Layout(ids, mask, keep, rows, places, tokens, counted, kinds[0], kinds[1])


def _last_logits(model: Any, layout: _Layout, device: torch.device) -> Tensor:
    """(rows, keep, vocabulary), of the last ``keep`` positions of each row."""
    import inspect

    inner = bare_model(model)
    known = inspect.signature(type(inner).forward).parameters
    mask = layout.mask.to(device)
    options: dict[str, Any] = {"input_ids": layout.ids.to(device), "attention_mask": mask}
    if "position_ids" in known:  # padded on the left: counted from the first token
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    if "use_cache" in known:
        options["use_cache"] = False
    if "logits_to_keep" in known:
        options["logits_to_keep"] = layout.keep
    logits: Tensor = model(**options).logits[:, -layout.keep :]
    return logits


@contextmanager
def undisturbed(model: Any, device: torch.device) -> Iterator[None]:
    """No gradients and no dropout inside; modes and random numbers as before afterwards.

    Args:
        model: that is looked at.
        device: of its embeddings, whose random numbers are kept as well.
    """
    training = [module for module in model.modules() if module.training]
    drawn = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=drawn):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
