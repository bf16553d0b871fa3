"""The defences of one run, checked before any work: what they need, start from, edit and add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from anchortune.anchor.binding import cover, match_name
from anchortune.config import AlignConfig, ModelSection, TrainConfig
from anchortune.data.conversations import BadRow, Conversation
from anchortune.defences.base import Anchors, Curriculum, Defence, Schedule
from anchortune.defences.registry import defences_of
from anchortune.errors import AnchorError, ConfigError, DataError, TrainingError
from anchortune.maths.lowrank import LowRank, Update, add_updates
from anchortune.models.load import identity
from anchortune.training import loop
from anchortune.training.anchored import (
    UNVERIFIED,
    anchor_facts,
    check_parent,
    materialise_adapter,
)
from anchortune.training.batches import Answers, TokenisedData, read_answers
from anchortune.training.defended import check_together, load_anchors, overrides, refuse_transposed
from anchortune.training.template import Encoded, Template

_NEEDS = {
    "anchor": "the anchor of aligned - base, a file or a Hub id",
    "harmful_anchor": "the anchor of harmful - aligned, a file or a Hub id",
    "refusals": "safe answers to train on, a source of rows or a list of them",
    "base": "the unaligned model, a folder, a file or a Hub id",
}


@dataclass
class Chain:
    """The defences of a run and what was read for them; without any it is plain fine-tuning.

    Attributes:
        defences: in the config's order; ``asft`` is the config's ``penalty`` and not among them.
        start: the model that training starts from.
        anchors: what the defences measure against.
        facts: what was read for them, with hashes, for the record.
        refusals: safe answers that the model's template takes.
        schedules: by defence, what its ``curriculum`` was told; ``terms`` is told the same.
        edit: what is added to the start weights before training.
        layers: the layers that are trained; None: all.
        system_prompt: what the model needs before every prompt at inference.
        given: the sequences of the rows that are trained on as they were read, before any defence
            put something before them: what must not be in eval_data or in a probe.
    """

    defences: list[Defence]
    start: ModelSection
    anchors: Anchors = field(default_factory=Anchors)
    facts: dict[str, Any] = field(default_factory=dict)
    refusals: list[Conversation] = field(default_factory=list)
    schedules: list[Schedule] = field(default_factory=list)
    edit: Update = field(default_factory=dict)
    layers: list[int] | None = None
    system_prompt: str | None = None
    given: list[Encoded] = field(default_factory=list)

    def having(self, hook: str) -> list[Defence]:
        """The defences with a hook of their own."""
        return [defence for defence in self.defences if overrides(defence, hook)]

    @property
    def mends(self) -> bool:
        """Whether the trained update is changed after training."""
        return bool(self.having("after"))

    def hashes(self) -> dict[str, Any]:
        """The content of everything that was read, for the run's identity."""
        found: dict[str, Any] = {}
        for key, fact in self.facts.items():
            many = fact if isinstance(fact, list) else [fact]
            found[key] = [
                {k: one.get(k) for k in ("sha256", "config_sha256", "adapter") if one.get(k)}
                for one in many
            ]
        return found

    def lines(self) -> list[str]:
        """For people: each defence with its settings, and what they change."""
        found = [f"defence {_described(defence)}" for defence in self.defences]
        if self.edit:
            norm = sum(part.norm() ** 2 for part in self.edit.values()) ** 0.5
            found.append(f"        edits {len(self.edit)} modules before training, norm {norm:.4g}")
        if self.layers is not None:
            found.append(f"        trains no layers but {_ranges(self.layers)}")
        return found


def _described(defence: Defence) -> str:
    told = [
        f"{key} {value}"
        for key, value in dict(defence).items()
        if key != "name" and value is not None and len(str(value)) < 40
    ]
    return f"{defence.label}: {', '.join(told)}" if told else defence.label


def _ranges(numbers: Sequence[int]) -> str:
    """``0-4, 9-11``."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in spans)


def plan_chain(config: TrainConfig | AlignConfig) -> Chain:
    """The config's defences with everything they need, read and held against the start model.

    Raises:
        ConfigError: a defence lacks what it needs, something is given that none reads, or two
            cannot go together.
        AnchorError: an anchor cannot be read, or was made from other models.
    """
    if isinstance(config, AlignConfig):
        return Chain([], config.model)
    defences = defences_of(config.defence)
    _check_needs(config, defences)
    check_together(defences, config.lora, penalised=config.penalty is not None)
    start = config.model
    for defence in defences:
        if defence.start_from() == "base":
            if config.base is None:
                raise ConfigError(
                    f"defence {defence.label} needs the key 'base': {_NEEDS['base']}."
                )
            start = config.base
    chain = Chain(defences, start)
    chain.anchors = load_anchors(
        config.anchor if _reads(defences, "anchor") else None,
        config.harmful_anchor if _reads(defences, "harmful_anchor") else None,
    )
    for key, anchor, wanted in (
        ("anchor", chain.anchors.aligned, "aligned"),
        ("harmful_anchor", chain.anchors.harmful, "base"),
    ):
        ref = getattr(config, key)
        if anchor is not None:
            if wanted == "aligned" and anchor.metadata.harmful is not None:
                raise AnchorError(
                    f"{ref.path} is a harmful anchor and no anchor of aligned - base; give it as "
                    "harmful_anchor, and the other as anchor."
                )
            chain.facts[key] = anchor_facts(anchor, ref.path, ref.revision)
            chain.facts[key]["start"] = check_parent(
                anchor, config.model, (wanted,), ref.path, f"{key}.allow_other_start",
                ref.allow_other_start,
            )  # fmt: skip
    if start is not config.model:
        chain.facts["base"] = identity(start)
    return chain


def _reads(defences: Sequence[Defence], key: str) -> bool:
    return any(key in defence.needed() for defence in defences)


def _check_needs(config: TrainConfig, defences: Sequence[Defence]) -> None:
    for defence in defences:
        for key in sorted(defence.needed()):
            if not getattr(config, key):
                raise ConfigError(f"defence {defence.label} needs the key '{key}': {_NEEDS[key]}.")
    for name in _NEEDS:
        value = getattr(config, name)
        if not value or _reads(defences, name):
            continue
        folded = config.penalty is not None and getattr(value, "path", "") == config.penalty.anchor
        if not folded:
            names = ", ".join(defence.label for defence in defences) or "none is given"
            raise ConfigError(
                f"the key '{name}' is given and no defence reads it ({names}); take it out, or "
                "name a defence that does."
            )


def plan_edit(chain: Chain, skeleton: Any) -> None:
    """Makes the chain's edit of the start weights, and finds the layers to train.

    Args:
        chain: gets ``edit`` and ``layers``.
        skeleton: the model without an adapter; the weights may be on the meta device.

    Raises:
        AnchorError: an edited module is not in the model, or of another shape.
        TrainingError: no layer is left to train, or weights are stored the other way round.
    """
    names = {type(module).__name__ for module in skeleton.modules()}
    refuse_transposed(chain.defences, "Conv1D" in names, chain.start.path)
    for defence in chain.having("before"):
        chain.edit = add_updates(chain.edit, defence.before(chain.anchors) or {})
    chain.edit = {name: part for name, _, part in edited(skeleton, chain.edit)}
    count = 0
    for defence in chain.having("trained_layers"):
        count = int(skeleton.config.get_text_config().num_hidden_layers)
        found = defence.trained_layers(count)
        if found is not None:
            kept = set(range(count) if chain.layers is None else chain.layers) & set(found)
            chain.layers = sorted(kept)
    if chain.layers == []:
        names_of = ", ".join(defence.label for defence in chain.having("trained_layers"))
        raise TrainingError(
            f"no layer is left to train ({names_of} freeze all {count}); take one of them out."
        )


def edited(model: Any, edit: Update) -> list[tuple[str, Any, LowRank]]:
    """(the model's name of it, the module, what is added to its weight) for each of an edit.

    An anchor may name modules with other leading components than the model does; in an adapter on
    the model they have the model's names.

    Raises:
        AnchorError: the model has no such module, or one of another shape.
    """
    modules = {
        name: module
        for name, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2
    }
    found = []
    for name, part in edit.items():
        key = match_name(name, modules)
        if key is None:
            raise AnchorError(
                f"the edit is of module {name!r}, which the model has not"
                "; give the anchor of this one."
            )
        if tuple(modules[key].weight.shape) != part.shape:
            rows, columns = modules[key].weight.shape
            raise AnchorError(
                f"the edit of {name!r} is {part.shape[0]} × {part.shape[1]} and the model's weight "
                f"{rows} × {columns}: they are not of one family"
                "; give the anchor of this model."
            )
        found.append((key, modules[key], part))
    return found


def check_chain_fit(chain: Chain, skeleton: Any) -> list[str]:
    """Notes on the anchors of the chain, held against what will be trained.

    Args:
        chain: with its anchors.
        skeleton: the model as it will be trained; the weights may be on the meta device.

    Raises:
        AnchorError: an adapted module is not in an anchor, or of another shape.
    """
    notes: list[str] = []
    for key, anchor in (
        ("anchor", chain.anchors.aligned),
        ("harmful_anchor", chain.anchors.harmful),
    ):
        if anchor is None:
            continue
        materialise_adapter(skeleton)
        notes += cover(skeleton, anchor.modules).notes
        if chain.facts[key]["start"] == UNVERIFIED:
            notes.append(f"the parents of {key} could not be compared with the model")
    return notes


def mix(
    chain: Chain, config: TrainConfig, answers: Answers, template: Template, max_length: int
) -> TokenisedData:
    """The user's rows after every defence's ``curriculum``, as token sequences.

    Args:
        chain: gets ``refusals``, ``schedules``, ``system_prompt`` and ``given``.
        config: of the run.
        answers: the user's rows.
        template: the chat template.
        max_length: longer sequences are cut, in tokens.

    Raises:
        DataError: refusals cannot be read, or a row that a defence made cannot be used.
        TrainingError: a defence cannot be honoured in a run of this length.
    """
    tokenizer = template.tokenizer
    read = [answers]
    if _reads(chain.defences, "refusals"):
        safe = read_answers(config.refusals, template, max_length, config.seed)
        read.append(safe)
        chain.refusals = safe.rows
        chain.facts["refusals"] = [report.summary() for report in safe.reports]
    for defence in chain.having("system_prompt"):
        chain.system_prompt = defence.system_prompt(tokenizer)
    curriculum = Curriculum(list(answers.rows))
    chain.schedules = []
    for defence in chain.defences:
        rows = len(curriculum.rows)
        steps = (
            loop.total_steps(config, rows) if curriculum.order is None else len(curriculum.order)
        )
        chain.schedules.append(Schedule(steps, config.training.batch_size, config.seed))
        curriculum = defence.curriculum(curriculum, chain.refusals, chain.schedules[-1], tokenizer)
    kept = {row.place for row in curriculum.rows}
    chain.given = [
        sequence
        for one in read
        for row, found in zip(one.rows, one.encoded, strict=True)
        for sequence in (found if row.place in kept else [])
    ]
    return _encoded(curriculum, answers, template, max_length)


def _encoded(
    curriculum: Curriculum, answers: Answers, template: Template, max_length: int
) -> TokenisedData:
    known = {id(row): found for row, found in zip(answers.rows, answers.encoded, strict=True)}
    rows: list[Encoded] = []
    places: list[list[int]] = []  # of the sequences of each conversation
    for row in curriculum.rows:
        found = known.get(id(row))
        if found is None:
            try:
                found = template.encode(row.messages, max_length)
            except BadRow as problem:
                names = ", ".join(curriculum.added) or "a defence"
                raise DataError(
                    f"{row.place}: the row cannot be used as {names} made it ({problem}); raise "
                    "training.max_length_tokens, or leave the row out."
                ) from None
        places.append(list(range(len(rows), len(rows) + len(found))))
        rows.extend(found)
    order = curriculum.order
    if order is not None:
        _check_order(order, len(places))
        order = [[place for index in batch for place in places[index]] for batch in order]
    return TokenisedData(
        rows,
        answers.reports,
        sum(row.truncated for row in rows),
        max_length,
        order,
        dict(curriculum.added),
    )


def _check_order(order: Sequence[Sequence[int]], rows: int) -> None:
    for step, batch in enumerate(order):
        if not batch or not all(0 <= index < rows for index in batch):
            raise TrainingError(
                f"the order of the steps names no row, or one that is not there, at step {step}; "
                "take the defence that laid it down out of the chain."
            )
