"""What ``diagnose`` reads from weights: the update beside its anchor, and gradients on request."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.anchor.binding import match_name
from anchortune.anchor.inspect import oriented
from anchortune.config import DataSection, TrainConfig
from anchortune.defences.against import factors_of
from anchortune.errors import AnchorError, AnchortuneError, TrainingError
from anchortune.landscape.run import Run, read_run
from anchortune.maths.angles import chance_cosine, energy, share_inside
from anchortune.maths.factors import (
    Factors,
    gram_eigenvalues,
    kept_energy_frac,
    punishment_along,
    punishment_random,
)
from anchortune.maths.lie import lie
from anchortune.models.load import load_config, load_model, load_tokenizer, pick_numbers
from anchortune.report.diagnosis.facts import Gradients, Lie, Module
from anchortune.training.anchored import open_anchor
from anchortune.training.batches import tokenise
from anchortune.training.gradient import descent
from anchortune.training.refresh import cosine_of
from anchortune.training.template import Template

if TYPE_CHECKING:
    from anchortune.training.template import Encoded

_MAX_LENGTH = 2048
_RANK = 64
"""Triplets kept of a gradient; what is left out of one is small beside the figures' noise."""


def anchor_of(run: Run, given: Path | None, sha256: str | None) -> Anchor:
    """The anchor of a run: the file that is given, or the one that its config names.

    Args:
        run: that has been read.
        given: a file; None for the run's own.
        sha256: what the record says of the run's own; None where it says nothing.

    Raises:
        AnchorError: the run names none, it cannot be read, or it is another file by now.
    """
    if given is not None:
        return Anchor.load(given)
    penalty = getattr(run.config, "penalty", None)
    named = getattr(run.config, "anchor", None) or getattr(run.config, "harmful_anchor", None)
    if penalty is not None:
        anchor = open_anchor(penalty.anchor, penalty.revision, "penalty.revision")
    elif named is not None:
        anchor = open_anchor(named.path, named.revision, "anchor.revision")
    else:
        raise AnchorError("the run names no anchor (--anchor FILE gives one to hold it against)")
    if sha256 is not None and anchor.sha256 != sha256:
        raise AnchorError(
            "the anchor's file is another one now than when the run was made"
            ": name the one it was with --anchor"
        )
    return anchor


def lie_of(run: Run, anchor: Anchor, penalty: Mapping[str, Any] | None) -> Lie:
    """How the last place of a run lies to an anchor, module by module.

    Args:
        run: that has been read.
        anchor: to hold it against.
        penalty: the run's, for its operator and rank; None takes ``subspace`` at the whole rank.

    Raises:
        AnchortuneError: the update cannot be read, or the anchor is of other shapes.
    """
    place = run.places[-1]
    operator = str((penalty or {}).get("operator") or "subspace")
    rank = (penalty or {}).get("rank")
    modules: list[Module] = []
    uncovered: list[str] = []
    still: list[str] = []
    for name, update in run.updates(place, anchor):
        key = match_name(name, anchor.modules)
        if key is None:
            moved = update.norm() if hasattr(update, "norm") else 0.0
            (uncovered if float(moved) > 0 else still).append(name)
            continue
        factors = factors_of(anchor, key, rank)
        if factors.shape != tuple(update.shape):
            ours, theirs = (f"{a} × {b}" for a, b in (tuple(update.shape), factors.shape))
            raise AnchorError(
                f"module {name} is {ours} in the run but {theirs} in the anchor"
                ": name the anchor of the run's model with --anchor"
            )
        found = lie(update, factors)
        if found.energy == 0.0:
            still.append(name)
            continue
        modules.append(
            Module(
                name=name,
                shape=factors.shape,
                rank=factors.rank,
                norm=factors.norm,
                kept=kept_energy_frac(factors),
                eigenvalue=float(gram_eigenvalues(factors).max()),
                cost_along=punishment_along(factors, operator),
                cost_random=punishment_random(factors, operator),
                energy=found.energy,
                along=found.along * float(factors.sigma.double().norm()),
                inside=found.inside / found.energy,
            )
        )
    harmful = anchor.metadata.harmful is not None
    return Lie(place.label, modules, uncovered, still, harmful)


def energy_of(folder: Path) -> float | None:
    """``Σ‖U‖²_F`` of a complete LoRA training's result; None where it cannot be read."""
    try:
        update, _ = read_update(read_run(folder).places[-1].folder)
        return math.fsum(part.norm() ** 2 for part in update.values())
    except AnchortuneError:
        return None


def gradients_of(
    run: Run,
    anchor: Anchor,
    rows: int,
    refusals: str | None,
) -> Gradients:
    """Where the run's training rows pull its start model, beside where the anchor lies.

    The direction is that of steepest descent of the mean loss over all answer tokens, at the start,
    before any training; see ``training.gradient``. Compared are the leading triplets.

    Args:
        run: of ``anchortune train``, that has been read.
        anchor: of its model.
        rows: a seeded sample of this many of each source.
        refusals: a file of safe answers whose direction is compared too; None takes the run's own,
            where it has some.

    Raises:
        AnchortuneError: the model or the rows cannot be read.
    """
    config = run.config
    if not isinstance(config, TrainConfig):
        raise TrainingError(
            "--gradients is of a run of anchortune train, and this is an align: leave it out"
        )
    if anchor.metadata.harmful is not None:
        raise TrainingError(
            "--gradients is held against aligned - base, and this is a harmful anchor: name the "
            "other with --anchor"
        )
    if run.edited:
        raise TrainingError(
            "lox moved the start weights, and the edited model is in no file: leave out --gradients"
        )
    numbers = pick_numbers(config.machine, config.lora)
    tokenizer = load_tokenizer(run.start)
    template = Template(tokenizer)
    limit = getattr(load_config(run.start).get_text_config(), "max_position_embeddings", None)
    longest = config.training.max_length_tokens or min(_MAX_LENGTH, limit or _MAX_LENGTH)

    def read(sections: Sequence[DataSection]) -> list[Encoded]:
        sampled = [
            one.model_copy(update={"max_rows": min(rows, one.max_rows or rows)}) for one in sections
        ]
        return tokenise(sampled, template, longest, config.seed).rows

    task = read(config.data)
    safe = [DataSection(path=refusals)] if refusals is not None else list(config.refusals)
    refused = read(safe) if safe else []
    if len(task) < 2:
        raise TrainingError("--gradients needs two rows or more, for the halves are compared")
    model = load_model(run.start, numbers)
    infos = anchor.metadata.modules

    def pull(of: Sequence[Encoded]) -> dict[str, Factors]:
        found = descent(model, tokenizer, numbers, list(infos), of, _RANK)
        return {name: oriented(factors, infos[name]) for name, factors in found.items()}

    now, even, odd = pull(task), pull(task[::2]), pull(task[1::2])
    held = {name: factors_of(anchor, name) for name in now}
    weights = {name: energy(factors) for name, factors in now.items()}
    total = math.fsum(weights.values())
    inside = math.fsum(
        weights[name] * share_inside(held[name].left, one.left, one.sigma)
        for name, one in now.items()
    )
    return Gradients(
        rows=len(task),
        with_anchor=cosine_of(now, held),
        inside=inside / total,
        chance=chance_cosine(sum(math.prod(one.shape) for one in now.values())),
        chance_inside=statistics.fmean(one.rank / one.shape[0] for one in held.values()),
        noise=cosine_of(even, odd),
        with_refusals=cosine_of(now, pull(refused)) if refused else None,
        refusals=len(refused),
    )
