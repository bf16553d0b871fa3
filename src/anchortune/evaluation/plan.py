"""An evaluation checked in full before any work: models, sets, judges, cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anchortune.config_io import validate
from anchortune.errors import EvaluationError
from anchortune.evaluation.candidates import (
    Candidate,
    answers_to,
    for_judges,
    look_at,
    measure_prompts,
)
from anchortune.evaluation.config import AskSection, EvalConfig, JudgeSection
from anchortune.evaluation.engine import make_engine, numbers_of
from anchortune.evaluation.folder import EvalFolder, identity
from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.judges.base import Judge
from anchortune.evaluation.judges.registry import kinship, make_judge
from anchortune.evaluation.outputs import read_answers
from anchortune.evaluation.prompt_sets import load_prompts
from anchortune.evaluation.tasks.base import LoadedTask, TaskKind
from anchortune.evaluation.tasks.load import load_task
from anchortune.files import sha256_file
from anchortune.run_folder import State

if TYPE_CHECKING:
    from anchortune.evaluation.estimate import Estimate

#: The judge that matches phrases; its rate stands beside every other, so it is always asked.
REFUSAL: Literal["refusal"] = "refusal"
#: Names under which other things than judges stand in ``verdicts.jsonl``.
COHERENCE, MATCH = "coherence", "match"


@dataclass(frozen=True)
class Asked:
    """A set that every model is asked.

    Attributes:
        name: unique within the evaluation.
        kind: malicious prompts, benign ones, or what a task's rate is.
        items: what is asked.
        max_new_tokens: the longest answer.
        identity: where the prompts come from, with hashes.
        task: how answers are read, of a task.
    """

    name: str
    kind: Literal["harm", "benign"] | TaskKind
    items: list[Item]
    max_new_tokens: int
    identity: dict[str, Any]
    task: LoadedTask | None = None

    @property
    def share(self) -> str:
        """For people: of how many rows the items are, where that is not all of them."""
        rows, part = self.identity.get("rows", 0), self.identity.get("part", "all")
        if rows <= len(self.items):
            return ""
        return f" of {rows} rows" + ("" if part == "all" else f" (the {part} part)")


@dataclass
class EvalPlan:
    """An evaluation that has been checked and can be run, once.

    Attributes:
        config: resolved.
        candidates: by name, the reference first.
        asked: every set.
        judges: who judges the prompt sets; the last is asked about refusals alone where the
            config does not name it.
        judge_facts: their identities, in the same order.
        given: by model and set, the answers made elsewhere.
        folder: of the evaluation.
        state: what the folder held.
        timings: seconds spent so far, by stage.
        estimate: what it will take; None where it was not asked for.
        notes: what the user should know.
        kin: judges whose weights a model under test is made from, a sentence each.
    """

    config: EvalConfig
    candidates: dict[str, Candidate]
    asked: list[Asked]
    judges: list[Judge]
    judge_facts: list[dict[str, Any]]
    given: dict[tuple[str, str], list[Answer]]
    folder: EvalFolder
    state: State
    timings: dict[str, float]
    estimate: Estimate | None = None
    notes: list[str] = field(default_factory=list)
    kin: list[str] = field(default_factory=list)

    @property
    def reference(self) -> str:
        """The model the others are compared with."""
        return next(iter(self.candidates))

    @property
    def generates(self) -> bool:
        """Whether any model is still to be asked; else all answers were made elsewhere."""
        return any(candidate.given is None for candidate in self.candidates.values())

    @property
    def prompts(self) -> int:
        """What one model is asked."""
        return sum(len(asked.items) for asked in self.asked)

    @property
    def answers(self) -> int:
        """Rows of ``outputs.jsonl`` at the end."""
        return len(self.candidates) * self.prompts

    @property
    def verdicts(self) -> int:
        """Rows of ``verdicts.jsonl`` at the end."""
        rows, models = 0, len(self.candidates)
        for asked in self.asked:
            if asked.task is None:
                judges = 2 if asked.kind == "benign" else len(self.judge_facts) + 1
                rows += len(asked.items) * judges * models
            else:  # nobody wins against themselves
                rows += len(asked.items) * (models - asked.task.needs_reference)
        return rows

    @property
    def arms(self) -> dict[str, list[str]]:
        """Arm -> its models."""
        found: dict[str, list[str]] = {}
        for name, candidate in self.candidates.items():
            if candidate.section.arm is not None:
                found.setdefault(candidate.section.arm, []).append(name)
        return found

    def inputs(self) -> dict[str, Any]:
        """What the evaluation is made from, with hashes."""
        return {
            "models": _models(self),
            "sets": {asked.name: asked.identity for asked in self.asked},
            "judges": self.judge_facts,
        }

    def lines(self) -> list[str]:
        """For people: what would be done."""
        first = self.reference
        return [
            *(
                f"model   {name}: {found.line()}{' (reference)' if name == first else ''}"
                for name, found in self.candidates.items()
            ),
            *(
                f"asks    {asked.name}: {len(asked.items)} {_KINDS[asked.kind]}{asked.share}"
                + (f", at most {asked.max_new_tokens} new tokens" if self.generates else "")
                for asked in self.asked
            ),
            *(f"judge   {facts['name']}: {facts.get('measure', '')}" for facts in self.judge_facts),
            f"total   {self.answers} answers of {len(self.candidates)} models, {self.verdicts} "
            f"verdicts; {_PARTS[self.config.part]}",
            *(self.estimate.lines() if self.estimate is not None else []),
            f"output  {self.folder.path} ({self.state.value})",
            *(f"note    {note}" for note in self.notes),
        ]

    def summary(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "kind": "eval",
            "config": self.config.model_dump(mode="json"),
            "inputs": self.inputs(),
            "answers": self.answers,
            "verdicts": self.verdicts,
            "estimate": None if self.estimate is None else asdict(self.estimate),
            "output": {"path": str(self.folder.path), "state": self.state.value},
            "notes": self.notes,
        }


_PARTS = {
    "report": "the report part of every set",
    "selection": "the selection part of every set",
    "all": "whole sets",
}
_KINDS = {
    "harm": "malicious prompts",
    "benign": "benign prompts",
    "accuracy": "items (accuracy)",
    "over_refusal": "prompts (over-refusal)",
    "win_rate": "items (win rate)",
}


def plan_eval(config: EvalConfig, *, timed: bool = False) -> EvalPlan:
    """Everything that can be checked without asking anybody anything, checked.

    Args:
        config: of the evaluation.
        timed: estimate time and memory as well, which takes some seconds.

    Raises:
        AnchortuneError: of the kind of the first thing that cannot be used.
    """
    return _plan(config, None, timed)


def plan_outputs(
    path: str | Path,
    judges: Sequence[JudgeSection],
    output: str,
    settings: Mapping[str, Any] | None = None,
) -> EvalPlan:
    """The plan to judge a file of answers, its own prompts being the sets.

    Models and sets are those that the file's columns ``model`` and ``set`` name; the model that
    comes first in it is the reference. Rows with a ``target`` answer a task and are left out.

    Args:
        path: of the file; see ``anchortune.evaluation.outputs.read_answers``.
        judges: who judges.
        output: the folder.
        settings: other keys of the config: ``keep``, ``machine``, ``seed``, ``bootstrap``.

    Raises:
        AnchortuneError: the file, a judge or a setting cannot be used.
    """
    every = read_answers(path)
    given = [answer for answer in every if answer.item.target is None]
    if not given:
        raise EvaluationError(f"{path}: all its rows have a target; name the task in a config.")
    sets = list(dict.fromkeys(answer.item.set for answer in given))
    tree = {
        "models": {answer.model: {"outputs": str(path)} for answer in given},
        "harm": [{"path": str(path), "label": name} for name in sets],
        "judges": [section.model_dump() for section in judges],
        "part": "all",
        "output": output,
    }
    useless = [key for key in settings or {} if key in tree or key in {"tasks", "generation"}]
    if useless:
        raise EvaluationError(f"{useless[0]} cannot be set for a file of answers; leave it out.")
    config = validate(tree | dict(settings or {}), EvalConfig, str(path))
    source = {"path": str(path), "sha256": sha256_file(Path(path).expanduser())}
    asked = []
    for name in sets:
        items = {answer.item.id: answer.item for answer in given if answer.item.set == name}
        facts = source | {"name": name, "n": len(items)}
        longest = config.generation.max_new_tokens
        asked.append(Asked(name, "harm", list(items.values()), longest, facts))
    plan = _plan(config, asked, timed=False)
    if len(given) < len(every):
        plan.notes.append(
            f"{len(every) - len(given)} answers to tasks (with a target) are left out"
        )
    return plan


def _plan(config: EvalConfig, asked: list[Asked] | None, timed: bool) -> EvalPlan:
    started = time.perf_counter()
    notes: list[str] = []
    candidates = {name: look_at(name, section) for name, section in config.models.items()}
    asked = load_sets(config) if asked is None else asked
    _unique([one.name for one in asked], "sets", "give one of them a label")
    judges = _judges(config, candidates)
    given: dict[tuple[str, str], list[Answer]] = {}
    lengths: dict[str, list[list[int]]] = {}
    tokens: dict[str, dict[str, str]] = {}
    for name, candidate in candidates.items():
        for one in asked:
            if candidate.given is not None:
                given[name, one.name] = answers_to(candidate, one.items)
            elif candidate.runs_here:
                found, digest = measure_prompts(candidate, one.items)
                lengths.setdefault(name, []).append(found)
                tokens.setdefault(name, {})[one.name] = digest
    plan = EvalPlan(
        config, candidates, asked, judges, [_facts(judge) for judge in judges], given,
        EvalFolder(config.output, {}), State.NEW, {}, notes=notes,
    )  # fmt: skip
    sets = {one.name: one.identity for one in asked}
    decides = identity(config, _models(plan), sets, plan.judge_facts, tokens)
    plan.folder = EvalFolder(config.output, decides)
    plan.state = plan.folder.state()
    plan.kin = [line for judge in judges for line in kinship(judge, _tested(candidates))]
    if plan.state is not State.COMPLETE:
        if lengths:  # else no model runs here
            numbers_of(config.machine)
        for candidate in candidates.values():
            if candidate.section.server is not None:  # is it there, and does it know the model?
                make_engine(candidate.section, config.generation, config.machine)
        for one in asked:
            if one.task is not None:
                one.task.check(_tested(candidates))
    if timed:
        from anchortune.evaluation.estimate import estimate

        plan.estimate = estimate(candidates, asked, lengths, config.machine)
    if config.part != "report" and plan.generates:
        notes.append("a setting chosen on these prompts is not to be reported on them")
    plan.timings["plan_s"] = time.perf_counter() - started
    return plan


def _models(plan: EvalPlan) -> dict[str, dict[str, Any]]:
    return {name: found.identity for name, found in plan.candidates.items()}


def load_sets(config: AskSection) -> list[Asked]:
    """Every set that the config names, loaded.

    Raises:
        AnchortuneError: a set cannot be read or used.
    """
    how: dict[str, Any] = {
        "part": config.part,
        "selection_frac": config.selection_frac,
        "seed": config.seed,
    }
    found = []
    for section in config.harm:
        prompts = load_prompts(section, **how)
        found.append(
            Asked(
                prompts.name,
                "benign" if prompts.benign else "harm",
                prompts.items,
                prompts.max_new_tokens or config.generation.max_new_tokens,
                prompts.identity(),
            )
        )
    for wanted in config.tasks:
        task = load_task(wanted, **how)
        found.append(
            Asked(task.name, task.kind, task.items, task.max_new_tokens, task.identity(), task)
        )
    for one in found:
        if not one.items:
            raise EvaluationError(
                f"{one.name}: nothing to ask; an empty set has no rate, so leave it out."
            )
    return found


def _judges(config: EvalConfig, candidates: Mapping[str, Candidate]) -> list[Judge]:
    """Those that are named, and the one that counts refusals."""
    names: list[str] = [section.name for section in config.judges]
    _unique(names, "judges", "name each once")
    tested = _tested(candidates)
    judges = [make_judge(section, config.machine, tested) for section in config.judges]
    if config.harm and all(judge.name != REFUSAL for judge in judges):
        judges.append(make_judge(JudgeSection(name=REFUSAL), config.machine))
    return judges


def _tested(candidates: Mapping[str, Candidate]) -> list[dict[str, Any]]:
    return [for_judges(candidate) for candidate in candidates.values()]


def _facts(judge: Judge) -> dict[str, Any]:
    """A judge's identity, and what its figures are called."""
    return judge.identity() | {"measure": judge.measure, "indicative": judge.indicative}


def _unique(names: Sequence[str], what: str, mend: str) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise EvaluationError(f"two {what} are called '{twice[0]}'; {mend}.")
