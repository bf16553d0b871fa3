"""The shape of what answers prompts, and its making: a model here, or one behind a server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from anchortune.errors import EvaluationError, TrainingError
from anchortune.evaluation.config import CandidateSection, EvalMachine, GenerationSection
from anchortune.evaluation.items import Finish, Item
from anchortune.files import sha256_file

if TYPE_CHECKING:
    from anchortune.models.load import Numbers

#: Told of each answer: index into the items, text, finish, new tokens (None: not known), notes.
OnAnswer = Callable[[int, str, Finish, int | None, dict[str, Any]], None]


class Engine(Protocol):
    """Answers prompts.

    Attributes:
        name: ``transformers`` or ``server``.
    """

    name: str

    def identity(self) -> dict[str, Any]:
        """Which model answers, with hashes where it lies here; as ``candidate_identity``."""
        ...

    def facts(self) -> dict[str, Any]:
        """How it was run, for the record: device, dtype; no part of the identity."""
        ...

    def answer(self, items: Sequence[Item], *, max_new_tokens: int, on_answer: OnAnswer) -> None:
        """Answers every item; ``on_answer`` is called as each is done, in any order.

        Raises:
            EvaluationError: an item that the model cannot read, or a server that fails; what was
                told to ``on_answer`` before stays good.
        """
        ...


def item_seed(seed: int, item: Item) -> int:
    """60 bits for a prompt's own random numbers: the same in whatever order prompts are asked."""
    name = f"{seed}\x00{item.set}\x00{item.id}"
    return int(hashlib.sha256(name.encode()).hexdigest()[:15], 16)


def joined_system(*parts: str | None) -> str | None:
    """System prompts one after the other; None where there is none."""
    return "\n\n".join(part for part in parts if part is not None) or None


def candidate_identity(candidate: CandidateSection) -> dict[str, Any]:
    """Which model a candidate is, without loading it.

    Raises:
        CheckpointError: its weights or an adapter are not there.
        EvaluationError: its file of answers is not there.
    """
    if candidate.server is not None:
        found: dict[str, Any] = {"server": candidate.server.url, "model": candidate.server.model}
    elif candidate.outputs is not None:
        try:
            file = Path(candidate.outputs).expanduser()
            found = {"outputs": candidate.outputs, "sha256": sha256_file(file)}
        except OSError as error:
            raise EvaluationError(
                f"{candidate.outputs}: cannot be read ({error.strerror})."
            ) from None
    else:
        from anchortune.config import ModelSection
        from anchortune.models.load import adapter_identity, identity

        section = ModelSection(
            path=str(candidate.path),
            revision=candidate.revision,
            trust_remote_code=candidate.trust_remote_code,
        )
        found = identity(section)
        if candidate.adapter:
            found["adapters"] = [adapter_identity(adapter) for adapter in candidate.adapter]
    if candidate.system is not None:
        found["system"] = candidate.system
    return found


def numbers_of(machine: EvalMachine) -> Numbers:
    """Device and dtype in which models are asked, and judges read.

    Raises:
        EvaluationError: the device is not there, or cannot compute in the dtype.
    """
    from anchortune.config import LoraSection, MachineSection
    from anchortune.models.load import pick_numbers

    section = MachineSection(device=machine.device, dtype=machine.dtype)
    try:
        return pick_numbers(section, LoraSection())  # held in the dtype of the pass
    except TrainingError as error:
        raise EvaluationError(str(error)) from None


def make_engine(
    candidate: CandidateSection, generation: GenerationSection, machine: EvalMachine
) -> Engine:
    """The engine of a candidate: its model loaded, its adapters merged, or its server reached.

    Raises:
        AnchortuneError: the model cannot be loaded, an adapter does not fit, the server does not
            answer or does not know the model, or the candidate is a file of answers.
    """
    if candidate.outputs is not None:
        raise EvaluationError(f"{candidate.outputs} holds answers already; read them there.")
    if candidate.server is not None:
        from anchortune.evaluation.server import ServerEngine

        engine = ServerEngine(candidate.server, generation, system=candidate.system)
        engine.probe()
        return engine
    from anchortune.evaluation.generate import load_engine

    return load_engine(candidate, generation, machine)
