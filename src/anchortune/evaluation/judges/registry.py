"""From a judge's section in the config to the judge; a model under test never judges itself."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from anchortune.checkpoints.packaged import resolve
from anchortune.errors import ConfigError, EvaluationError
from anchortune.evaluation.config import EvalMachine, JudgeSection
from anchortune.evaluation.judges.base import Judge

logger = logging.getLogger(__name__)

_OPTIONS = ("model", "revision", "prompt", "server", "file", "min_confidence", "batch_size")
_RUNS_HERE = frozenset({"model", "revision", "min_confidence", "batch_size"})
#: What a judge can be told; every other judge runs weights on this machine.
_TAKES: dict[str, frozenset[str]] = {
    "refusal": frozenset(),
    "file": frozenset({"file"}),
    "rubric": frozenset({"server"}),
}


class _Model(NamedTuple):
    """What is known of a model: weights here (a path, a revision, a hash), or a server's."""

    path: str | None
    revision: str | None
    sha256: str | None
    adapters: tuple[str, ...]
    server: tuple[str, str] | None


def make_judge(
    section: JudgeSection, machine: EvalMachine, candidates: Sequence[Mapping[str, Any]] = ()
) -> Judge:
    """The judge that ``section`` names, checked; its weights are loaded when it first judges.

    Args:
        section: which judge, and its settings.
        machine: where it computes.
        candidates: what the models under test are: ``path``, ``revision``, ``sha256`` and
            ``adapters`` (or ``adapter``) of one that runs here, at the top or under ``model``;
            ``server`` or ``url`` (its address) and ``model`` of one behind a server.

    Raises:
        ConfigError: the section gives what the judge does not take, or lacks what it needs.
        EvaluationError: the judge is one of the candidates.
        CheckpointError: its weights are not there.
        DataError: its file cannot be read.
    """
    check_judge(section, candidates)
    judge = _build(section, machine)
    own = _weights(judge)
    for candidate in map(_model, candidates):
        same = (own.sha256, own.adapters) == (candidate.sha256, candidate.adapters)
        if own.sha256 is not None and same:
            raise _own_judge(section, f"the weights of {candidate.path}")
    for warning in kinship(judge, candidates):
        logger.warning("%s", warning)
    return judge


def check_judge(section: JudgeSection, candidates: Sequence[Mapping[str, Any]] = ()) -> None:
    """Checks all that can be told of a judge without its weights.

    Raises:
        ConfigError: the section gives what the judge does not take, or lacks what it needs.
        EvaluationError: by its name it is one of the candidates.
    """
    takes = _TAKES.get(section.name, _RUNS_HERE)
    if _reads_a_prompt(section.name):
        takes |= {"prompt"}
    for option in _OPTIONS:
        if getattr(section, option) is not None and option not in takes:
            raise ConfigError(f"the judge {section.name} takes no {option}; leave it out.")
    for needed in ("file", "server"):
        if needed in takes and getattr(section, needed) is None:
            raise ConfigError(f"the judge {section.name} needs {needed}.")
    server = section.server
    path = section.model or _published(section.name)
    for candidate in map(_model, candidates):
        if server is not None and candidate.server == (_endpoint(server.url), server.model):
            raise _own_judge(section, f"{server.model} at {server.url}")
        if path is None or candidate.path is None or candidate.adapters:
            continue
        if (_place(path), section.revision) == (_place(candidate.path), candidate.revision):
            raise _own_judge(section, path)


def kinship(judge: Judge, candidates: Sequence[Mapping[str, Any]]) -> list[str]:
    """What ties a judge to the candidates, in sentences: allowed, but a reader has to know."""
    found = []
    own = _weights(judge)
    kin = [model for model in map(_model, candidates) if model.sha256 == own.sha256]
    if own.sha256 is not None and any(model.adapters != own.adapters for model in kin):
        found.append(
            f"the judge {judge.name} reads with {own.path}, from which a model under test is made"
        )
    served = _model(judge.identity().get("engine") or {}).server
    names = {model.server[1] for model in map(_model, candidates) if model.server is not None}
    if served is not None and served[1] in names:
        found.append(
            f"the judge {judge.name} asks {served[1]}, and a model under test elsewhere has that "
            "name"
        )
    return found


def _build(section: JudgeSection, machine: EvalMachine) -> Judge:
    if section.name == "refusal":
        from anchortune.evaluation.judges.refusal import RefusalJudge

        return RefusalJudge()
    if section.name == "file":
        from anchortune.evaluation.judges.file import FileJudge

        return FileJudge(str(section.file))
    if section.name == "builtin":
        from anchortune.evaluation.judges.builtin import BuiltinJudge

        return BuiltinJudge.from_section(section, machine)
    if section.name == "beaver-dam":
        from anchortune.evaluation.judges.beaver_dam import BeaverDamJudge

        return BeaverDamJudge.from_section(section, machine)
    if section.name == "rubric":
        from anchortune.evaluation.judges.rubric import RubricJudge

        return RubricJudge.from_section(section)
    from anchortune.evaluation.judges.guard import GuardJudge

    return GuardJudge.from_section(section, machine)


def _published(name: str) -> str | None:
    """Where the whole of a judge's weights is published; None where that is no one place."""
    if name in ("refusal", "file", "rubric", "builtin"):
        return None
    if name == "beaver-dam":
        from anchortune.evaluation.judges.beaver_dam import PUBLISHED

        return PUBLISHED
    from anchortune.evaluation.judges.guard_templates import TEMPLATES

    return TEMPLATES[name].published if TEMPLATES[name].adapter is None else None


def _reads_a_prompt(name: str) -> bool:
    """Whether a judge is shown a published prompt that the user may have to bring."""
    from anchortune.evaluation.judges.guard_templates import TEMPLATES

    return name in TEMPLATES and TEMPLATES[name].form == "text"


def _model(identity: Mapping[str, Any]) -> _Model:
    """What an identity says, its facts at the top or under ``model``."""
    facts: dict[str, Any] = dict(identity)
    if isinstance(facts.get("model"), Mapping):
        facts |= facts.pop("model")
    url, name = facts.get("url") or facts.get("server"), facts.get("model")
    return _Model(
        facts.get("path"),
        facts.get("revision"),
        facts.get("sha256"),
        _adapters(facts),
        (_endpoint(str(url)), str(name)) if url and name else None,
    )


def _adapters(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a model's adapters from others: their hashes, in order."""
    listed = facts.get("adapters") or ([facts["adapter"]] if facts.get("adapter") else [])
    return tuple(
        str(one.get("sha256") or one.get("path")) if isinstance(one, Mapping) else str(one)
        for one in listed
    )


def _weights(judge: Judge) -> _Model:
    """The weights that a judge reads with: ``weights`` in its identity."""
    return _model(judge.identity().get("weights") or {})


def _place(path: str) -> str:
    """A path as one may compare it: resolved where it is local, a Hub id in lower case."""
    local = Path(resolve(path)).expanduser()
    return str(local.resolve()) if local.exists() else path.lower()


def _endpoint(url: str) -> str:
    """A server's address as one may compare it."""
    parts = urlsplit(url.rstrip("/"))
    return f"{parts.netloc.lower()}{parts.path.removesuffix('/v1')}"


def _own_judge(section: JudgeSection, what: str) -> EvaluationError:
    return EvaluationError(
        f"the judge {section.name} is {what}, a model under test; a model does not judge itself: "
        "take another judge."
    )
