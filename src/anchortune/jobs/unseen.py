"""That what is reported on neither steered a training nor was among its safe answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from anchortune.config import DataSection, ProbeSection
from anchortune.config_mix import CUE
from anchortune.data.conversations import Conversation, load_source
from anchortune.data.prompts import check_disjoint, read_prompts
from anchortune.evaluation.config import AskSection


def check_unseen(
    probe: ProbeSection | None,
    refusals: Sequence[DataSection],
    seeds: Iterable[int],
    evaluate: AskSection,
) -> None:
    """Refuses a probe, or refusals, that ask what an evaluation asks.

    The rows of a task are a mix's to keep apart: ``disjoint_from``.

    Args:
        probe: of the trainings; None without one.
        refusals: safe answers to train on.
        seeds: of the trainings; each draws its sample where a source has ``max_rows``.
        evaluate: what is asked, and which part of it.

    Raises:
        AnchortuneError: they share a text; it says how many, and with which set. Or something of
            this cannot be read.
    """
    found = []
    if probe is not None:
        prompts = read_prompts(probe.prompts, probe.max_prompts).texts
        found.append((prompts, "prompts of the probe", "give probe.prompts others"))
    if refusals:
        requests = {
            turn["content"].removesuffix(CUE)
            for seed in seeds
            for section in refusals
            for row in load_source(section, seed)[0]
            if isinstance(row, Conversation)
            for turn in row.messages
            if turn["role"] == "user"
        }
        found.append((sorted(requests), "requests of refusals", "give refusals without them"))
    if not found:
        return
    from anchortune.evaluation.plan import load_sets

    for asked in load_sets(evaluate):
        goals = [item.goal for item in asked.items]
        for texts, what, mend in found:
            check_disjoint(texts, goals, what, asked.name, mend)
