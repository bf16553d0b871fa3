"""Looks at model, data and prompts, writes a config, and checks it as a dry run does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from anchortune.anchor.build import DEFAULT_RANK
from anchortune.config import JudgeSection, LoraSection, TrainConfig
from anchortune.config_io import parse_yaml, validate
from anchortune.errors import AnchortuneError, ConfigError
from anchortune.files import atomic_path, why_not_writable
from anchortune.setup import draft
from anchortune.setup.draft import BATCH, Fit, Seen
from anchortune.setup.measured import (
    Asked,
    Measured,
    find_sets,
    find_task,
    pick_judges,
    selection_frac,
)
from anchortune.setup.model import (
    ModelFacts,
    adapter_rank,
    check_pair,
    look_at_model,
    narrowest,
)
from anchortune.setup.rows import look_at_data
from anchortune.training.estimate import estimate
from anchortune.training.lora import add_lora

logger = logging.getLogger(__name__)

#: The share of the free memory that a training may be planned with.
_USED_FRAC = 0.8


@dataclass(frozen=True)
class Wish:
    """What the user asks a config for.

    Attributes:
        model: folder, ``.gguf`` file, Hub id, ``package:NAME`` or LoRA adapter.
        data: file or Hub dataset to train on.
        out: the config to write.
        base: what the model was aligned from; None takes what its adapter or card says.
        anchor: a made anchor, instead of a base.
        harm: files, Hub datasets or names of sets of harmful prompts; none takes a known one.
        benign: files or Hub datasets of harmless prompts.
        test: files or names of tasks with right answers.
        judges: who judges; none takes what is here.
        columns: standard field -> column of the data.
        train: write a config of ``anchortune train``, without an evaluation.
        force: write over a file that is there.
    """

    model: str
    data: str
    out: Path
    base: str | None = None
    anchor: str | None = None
    harm: Sequence[str] = ()
    benign: Sequence[str] = ()
    test: Sequence[str] = ()
    judges: Sequence[JudgeSection] = ()
    columns: dict[str, str] = field(default_factory=dict)
    train: bool = False
    force: bool = False


@dataclass(frozen=True)
class Written:
    """A config that was checked.

    Attributes:
        text: of the file.
        seen: what it was written from.
        notes: what could not be found or will not do, in sentences.
    """

    text: str
    seen: Seen
    notes: list[str]

    def lines(self, out: Path) -> list[str]:
        """For people: what was seen, what was not, and what comes next."""
        seen = self.seen
        report = seen.data.report
        found = [f"model   {seen.model.line()}", f"        {seen.model.chat_line()}"]
        if seen.model.base is not None and seen.modules:
            by = {"given": "as given", "adapter": "as the adapter says", "card": "as its card says"}
            told = f"{by[seen.model.base_from]}; {seen.modules} layers to anchor"
            found.append(f"base    {seen.model.base}, {told}")
        found.append(f"data    {report.line()}")
        length = f"the longest has {seen.data.longest} tokens"
        if not seen.data.all_counted:
            length = f"the longest of {seen.data.counted} has {seen.data.longest} tokens"
        found.append(f"        {length}; {seen.steps} steps in {seen.epochs} epochs")
        if seen.measured is not None:
            sets = (*seen.measured.harm, *seen.measured.benign, *seen.measured.tasks)
            found += [f"asks    {one.told}" for one in sets]
            names = [one["name"] if isinstance(one, dict) else one for one in seen.measured.judges]
            found.append(f"judges  {', '.join(names)}")
        found += [f"note    {note}" for note in self.notes]
        found.append(f"{out}: written and checked; next: {seen.next}")
        return found


def init(wish: Wish) -> Written:
    """Looks, writes ``wish.out``, and says what was seen; nothing is written that would not run.

    Raises:
        AnchortuneError: what was named cannot be used, or something is missing; naming the mend.
    """
    _refuse(wish)
    written = prepare(wish)
    with atomic_path(wish.out) as temporary:
        temporary.write_text(written.text, encoding="utf-8")
    return written


def _refuse(wish: Wish) -> None:
    """Refuses what needs no look.

    Raises:
        ConfigError: the file is there or cannot be written, or two options do not go together.
    """
    if wish.out.exists() and not wish.out.is_dir() and not wish.force:
        raise ConfigError(f"{wish.out} is there; name another with --out, or add --force.")
    why = why_not_writable(wish.out)
    if why is not None:
        raise ConfigError(f"{wish.out}: {why}.")
    if wish.anchor is not None and wish.base is not None and not wish.train:
        raise ConfigError(
            "--base is for building an anchor, and --anchor names a made one; drop it."
        )
    asked = next((n for n in ("harm", "benign", "test", "judges") if getattr(wish, n)), None)
    if wish.train and asked is not None:
        option = "judge" if asked == "judges" else asked
        raise ConfigError(
            f"--{option} is for an evaluation, and --train has none; drop one of them."
        )


def prepare(wish: Wish) -> Written:
    """The text of a config, checked in full, with what it was written from; writes nothing.

    Raises:
        AnchortuneError: as ``init``.
    """
    logger.info("looking at %s", wish.model)
    model = look_at_model(wish.model, wish.base)
    modules, held = 0, DEFAULT_RANK
    if wish.anchor is not None:
        targets, held = _in_anchor(model, wish.anchor)
        model = replace(model, targets=targets)
    elif wish.train or model.base is None:
        raise _no_anchor(wish, model)
    else:
        modules = check_pair(model)
        if model.section.adapter is not None:
            held = adapter_rank(model.section.adapter)
    narrow = narrowest(model)
    logger.info("looking at %s", wish.data)
    data = look_at_data(wish.data, wish.columns, model.template)
    judges, notes = pick_judges(wish.judges)
    measured = None
    if not wish.train:
        measured, more = _measured(wish, model, judges)
        notes += more
    seen = Seen(
        model,
        data,
        Fit(BATCH, False, 0, True),
        modules,
        wish.anchor,
        min(DEFAULT_RANK, narrow // 2) if held >= narrow else None,
        measured,
        "builtin" in judges,
        str(wish.out),
        f"runs/{wish.out.stem}",
    )
    seen = replace(seen, fit=_fit(seen))
    if not seen.fit.fits:
        notes.append(
            f"training takes about {seen.fit.memory_bytes / 2**30:.1f} GiB and "
            f"{model.free_bytes / 2**30:.1f} GiB are free: "
            + ("set lora.qlora" if model.device == "cuda" else "take a larger machine")
        )
    text = draft.config_text(seen)
    logger.info("checking it as anchortune %s --dry-run does", seen.command)
    _check(text, seen)
    return Written(text, seen, notes)


def _no_anchor(wish: Wish, model: ModelFacts) -> AnchortuneError:
    """What is missing: an anchor, or what one is made of."""
    if wish.train:
        base = model.base or "BASE"
        return ConfigError(
            "--train needs --anchor, the file that the penalty is measured against: anchortune "
            f"anchor build --aligned {wish.model} --base {base} --target-modules "
            f"{','.join(model.targets)} -o anchor.safetensors makes one; or leave out --train, for "
            "a job that builds it itself."
        )
    return ConfigError(
        f"{wish.model} does not say what it was aligned from, and the anchor is the difference: "
        "name that model with --base, or a made anchor with --anchor."
    )


def _in_anchor(model: ModelFacts, anchor: str) -> tuple[list[str], int]:
    """(the layers to adapt: those of the model that a made anchor covers; the rank it holds)."""
    from anchortune.anchor.anchor import Anchor

    ranks: dict[str, int] = {}
    for name, factors in Anchor.load(anchor).modules.items():
        leaf = name.rsplit(".", 1)[-1]
        ranks[leaf] = max(factors.rank, ranks.get(leaf, 0))
    there = [name for name in model.targets if name in ranks]
    there = there or [name for name in model.linear if name in ranks]
    if not there:
        raise ConfigError(
            f"{anchor} covers {', '.join(sorted(ranks))}, and {model.named} has none of these "
            "layers: give the anchor of this model."
        )
    return there, max(ranks[name] for name in there)


def _measured(wish: Wish, model: ModelFacts, judges: list[Any]) -> tuple[Measured, list[str]]:
    logger.info("looking at what can be measured")
    harm, benign, notes = find_sets(wish.harm, wish.benign)
    tasks: list[Asked] = []
    for name in wish.test:
        task, why = find_task(name, wish.columns, model.template.tokenizer)
        if task is None:
            raise ConfigError(f"--test {why}.")
        tasks.append(task)
    if not tasks:
        notes.append(
            "no task is named, so nothing tells whether it learnt: --test FILE of rows like the "
            "data's that are not trained on adds one"
        )
    share = selection_frac([*harm, *benign, *tasks])
    measured = Measured(harm, benign, tasks, judges, share)
    notes += draft.too_few(measured)
    return measured, notes


def _fit(seen: Seen) -> Fit:
    """The most rows at once with which a training fits into the memory."""
    model = seen.model
    free = int(model.free_bytes * _USED_FRAC)
    lora = LoraSection(target_modules=model.targets)
    adapted = add_lora(model.skeleton, lora, 0)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    lengths = [min(length, seen.max_length) for length in seen.data.lengths]
    found = Fit(BATCH, False, 0, False)
    for micro, checkpointing in ((8, False), (4, False), (2, False), (1, False), (1, True)):
        cost = estimate(
            adapted,
            trained,
            lengths,
            numbers=model.numbers,
            micro=micro,
            rows_seen=1.0,
            lora=lora,
            checkpointing=checkpointing,
            checkpoints=1,
            seed=0,
            timed=False,
        )
        found = Fit(micro, checkpointing, cost.memory_bytes, cost.memory_bytes <= free)
        if found.fits:
            return found
    return found


def _check(text: str, seen: Seen) -> None:
    """Holds the text against everything that a dry run looks at, but the time.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    tree = parse_yaml(text, seen.file)
    if seen.measured is None:
        from anchortune.training.plan import plan_stage

        plan_stage(validate(tree, TrainConfig, seen.file).model_copy(update={"screen": None}))
        return
    from anchortune.jobs.config import JobConfig
    from anchortune.jobs.plan import plan_job

    plan_job(validate(tree, JobConfig, seen.file))
