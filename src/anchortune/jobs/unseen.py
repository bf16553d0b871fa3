"""That what is reported on neither steered a training nor was among its safe answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchortune.config import DataSection, ProbeSection
from anchortune.data.conversations import Conversation, load_source
from anchortune.data.prompts import check_disjoint, read_prompts

if TYPE_CHECKING:
    from anchortune.evaluation.plan import Asked


def check_unseen(
    probe: ProbeSection | None, refusals: Sequence[DataSection], asked: Sequence[Asked]
) -> None:
    """Refuses a probe, or refusals, that ask what an evaluation asks.

    The rows of a task are a mix's to keep apart: ``disjoint_from``.

    Args:
        probe: of the trainings; None without one.
        refusals: safe answers to train on, each source whole, whatever is sampled from it.
        asked: the sets of the evaluation.

    Raises:
        DataError: naming how many are shared, and with which set.
    """
    found = []
    if probe is not None:
        prompts = read_prompts(probe.prompts, probe.max_prompts).texts
        found.append((prompts, "prompts of the probe", "give probe.prompts others"))
    if refusals:
        requests = [
            turn["content"]
            for section in refusals
            for row in load_source(section.model_copy(update={"max_rows": None}), 0)[0]
            if isinstance(row, Conversation)
            for turn in row.messages
            if turn["role"] == "user"
        ]
        found.append((requests, "requests of refusals", "take them out of those rows"))
    for texts, what, mend in found:
        for one in asked:
            check_disjoint(texts, (item.goal for item in one.items), what, one.name, mend)
