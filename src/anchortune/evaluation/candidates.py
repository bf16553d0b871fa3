"""The models to compare: what each is, whether it can be asked, and the run that made it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anchortune.adapter.merge import check_fit
from anchortune.config import ModelSection
from anchortune.errors import AnchortuneError, CheckpointError, EvaluationError
from anchortune.evaluation.config import CandidateSection
from anchortune.evaluation.engine import candidate_identity
from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.outputs import read_answers
from anchortune.record import read_record

#: Columns of a run's log, and what the report calls them.
_CURVES = {
    "step": "step",
    "loss": "loss",
    "asft/penalty": "penalty",
    "asft/lam": "lam",
    "probe/fall": "probe_fall",
}


@dataclass(frozen=True)
class Run:
    """What the run that made a model left behind, for the report.

    Attributes:
        curve: a row for each logged step: step, loss, penalty, lam, probe_fall.
        anchor: facts of its anchor; None where it had none.
        data: files and datasets it was trained on.
        health: what went wrong in it, in sentences.
    """

    curve: list[dict[str, Any]]
    anchor: dict[str, Any] | None
    data: list[str]
    health: list[str]


@dataclass(frozen=True)
class Candidate:
    """A model that was looked at and can be asked.

    Attributes:
        name: under which it is compared.
        section: of the config.
        identity: what it is, with hashes.
        skeleton: its architecture on the meta device; None where it does not run here.
        tokenizer: its tokenizer; None where it does not run here.
        given: its answers where they were made elsewhere.
        run: the run that made it, if one is named.
    """

    name: str
    section: CandidateSection
    identity: dict[str, Any]
    skeleton: Any = None
    tokenizer: Any = None
    given: list[Answer] | None = None
    run: Run | None = None

    @property
    def runs_here(self) -> bool:
        """Whether its weights are loaded on this machine."""
        return self.section.path is not None

    def line(self) -> str:
        """For people: what it is."""
        section = self.section
        if section.server is not None:
            return f"{section.server.model} at {section.server.url}"
        if section.outputs is not None:
            return f"answers in {section.outputs}"
        adapters = self.identity.get("adapters") or []
        parts = [self.identity, *adapters]
        return " + ".join(f"{part['path']} (sha256 {part['sha256'][:12]})" for part in parts)


def look_at(name: str, section: CandidateSection) -> Candidate:
    """The candidate ``name``, everything about it read but its weights.

    Raises:
        CheckpointError: its weights, config, tokenizer or an adapter cannot be used.
        EvaluationError: its file of answers, or the run it names, cannot be used.
    """
    try:
        found = Candidate(name, section, candidate_identity(section), run=_run(section.run))
        if section.outputs is not None:
            answers = read_answers(section.outputs, model=name)
            return replace(found, given=_of_model(answers, name, section.outputs))
        if section.path is None:
            return found
        return _local(found)
    except EvaluationError as error:
        raise EvaluationError(f"models.{name}: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"models.{name}: {error}") from None


def _local(candidate: Candidate) -> Candidate:
    from anchortune.models.load import load_skeleton, load_tokenizer

    section = candidate.section
    model = ModelSection(
        path=str(section.path),
        revision=section.revision,
        trust_remote_code=section.trust_remote_code,
    )
    skeleton = load_skeleton(model)
    for adapter in section.adapter:
        check_fit(skeleton, adapter)
    return replace(candidate, skeleton=skeleton, tokenizer=load_tokenizer(model))


def _of_model(answers: Sequence[Answer], name: str, path: str) -> list[Answer]:
    """The answers under ``name``, or all where the file is about one model only."""
    models = list(dict.fromkeys(answer.model for answer in answers))
    if name in models:
        return [answer for answer in answers if answer.model == name]
    if len(models) > 1:
        raise EvaluationError(
            f"{path} holds answers of {', '.join(models)}; name the model as one of them."
        )
    return list(answers)


def answers_to(candidate: Candidate, items: Sequence[Item]) -> list[Answer]:
    """The answers made elsewhere to ``items``, found by set and prompt, or by the prompt alone.

    Of one prompt under several system prompts, the item's own counts.

    Raises:
        EvaluationError: a prompt has no answer in the file, or answers that contradict.
    """
    by_id = {(answer.item.set, answer.item.id): answer for answer in candidate.given or []}
    by_set: dict[tuple[str, str], Answer] = {}
    by_prompt: dict[str, list[Answer]] = {}
    for answer in candidate.given or []:
        by_set[answer.item.set, answer.item.prompt.strip()] = answer
        by_prompt.setdefault(answer.item.prompt.strip(), []).append(answer)
    found: list[Answer] = []
    missing: list[Item] = []
    for item in items:
        prompt = item.prompt.strip()
        others = by_prompt.get(prompt, [])
        exact = by_id.get((item.set, item.id)) or by_set.get((item.set, prompt))
        if exact is None and len({other.text for other in others}) > 1:
            raise EvaluationError(
                f"models.{candidate.name}: {candidate.section.outputs} answers prompt {item.id} "
                f"in several sets, and none of them is called '{item.set}'"
                "; give its rows the set's name."
            )
        if exact is not None:
            others = [exact]
        if others:
            found.append(replace(others[0], model=candidate.name, item=item))
        else:
            missing.append(item)
    if missing:
        raise EvaluationError(
            f"models.{candidate.name}: {candidate.section.outputs} has no answer to "
            f"{len(missing)} of {len(items)} prompts of '{items[0].set}', the first being "
            f"{missing[0].id}"
            "; add them, or ask for fewer."
        )
    return found


def measure_prompts(candidate: Candidate, items: Sequence[Item]) -> tuple[list[int], str]:
    """How many tokens each prompt has as the model will be given it, and the SHA-256 of them all.

    The hash tells of another tokenizer or chat template, which change answers as weights do.

    Raises:
        EvaluationError: one is longer than what the model reads.
    """
    from anchortune.evaluation.generate import encode

    config = candidate.skeleton.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    system = candidate.section.system
    lengths, total = [], hashlib.sha256()
    for item in items:
        ids = encode(candidate.tokenizer, item, system)
        lengths.append(len(ids))
        total.update(f"{ids}\n".encode())
    longest = max(range(len(items)), key=lambda i: lengths[i])
    if limit is not None and lengths[longest] >= limit:
        raise EvaluationError(
            f"models.{candidate.name}: prompt {items[longest].id} of '{items[longest].set}' has "
            f"{lengths[longest]} tokens and the model reads at most {limit}; leave it out."
        )
    return lengths, total.hexdigest()


def for_judges(candidate: Candidate) -> dict[str, Any]:
    """A candidate as ``make_judge`` wants it, to see that no model judges itself."""
    if candidate.section.server is not None:
        return {"url": candidate.section.server.url, "model": candidate.section.server.model}
    return {} if candidate.given is not None else candidate.identity


def _run(folder: str | None) -> Run | None:
    """The curve, the anchor and the data of a training run.

    Raises:
        EvaluationError: the folder is no complete run of ``anchortune train`` or ``align``.
    """
    if folder is None:
        return None
    path = Path(folder).expanduser()
    try:
        record = read_record(path)
    except AnchortuneError as error:
        raise EvaluationError(f"run: {error}") from None
    if record.kind not in {"train", "align"}:
        raise EvaluationError(f"run: {folder} holds a run of kind {record.kind}, not a training.")
    anchor = record.inputs.get("anchor")
    sources = record.config.get("data") or []
    return Run(
        _curve(path / "log.jsonl"),
        dict(anchor) if isinstance(anchor, Mapping) else None,
        [str(source["path"]) for source in sources if isinstance(source, Mapping)],
        [
            str(found.get("told"))
            for found in record.metrics.get("health") or []
            if isinstance(found, Mapping)
        ],
    )


def _curve(log: Path) -> list[dict[str, Any]]:
    rows = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row and "loss" in row:
            rows.append({name: row[key] for key, name in _CURVES.items() if key in row})
    return rows
