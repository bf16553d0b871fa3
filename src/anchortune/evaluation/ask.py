"""Every model asked every set, one model in memory at a time; what is answered already stays."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from anchortune.errors import EvaluationError
from anchortune.evaluation.candidates import Candidate
from anchortune.evaluation.engine import Engine, make_engine
from anchortune.evaluation.items import Answer, Finish, Item
from anchortune.evaluation.outputs import OutputLog
from anchortune.evaluation.plan import Asked, EvalPlan
from anchortune.files import write_json
from anchortune.progress import Progress

#: How each model was run: device, dtype. Kept beside the answers, for they may be resumed.
ENGINES_FILE = "engines.json"


def ask(plan: EvalPlan, log: OutputLog) -> dict[str, list[dict[str, Any]]]:
    """Asks what ``log`` does not hold yet; by model, how it was run (device, dtype).

    Raises:
        AnchortuneError: a model cannot be loaded or asked. What it answered before stays.
    """
    path = plan.folder.path / ENGINES_FILE
    engines: dict[str, list[dict[str, Any]]] = {}
    if path.is_file():
        try:
            engines = json.loads(path.read_text("utf-8"))
        except ValueError:
            raise EvaluationError(f"{path}: not JSON; delete it to go on.") from None

    def run_as(name: str, facts: dict[str, Any]) -> None:
        """Keeps how a model is run, once for each way: a resumed run may have another."""
        known = engines.setdefault(name, [])
        if facts not in known:
            known.append(facts)
            write_json(path, engines)

    for name, candidate in plan.candidates.items():
        left = [(asked, _left(name, asked, log)) for asked in plan.asked]
        left = [(asked, items) for asked, items in left if items]
        if not left:
            continue
        if candidate.given is not None:
            for asked, items in left:
                _take(plan.given[name, asked.name], items, log)
            run_as(name, {"engine": "file"})
        else:
            _generate(plan, candidate, left, log, partial(run_as, name))
    return engines


def _left(model: str, asked: Asked, log: OutputLog) -> list[Item]:
    return [item for item in asked.items if (model, asked.name, item.id) not in log]


def _take(answers: Sequence[Answer], items: Sequence[Item], log: OutputLog) -> None:
    wanted = {item.id for item in items}
    for answer in answers:
        if answer.item.id in wanted:
            log.append(answer)


def _generate(
    plan: EvalPlan,
    candidate: Candidate,
    left: Sequence[tuple[Asked, list[Item]]],
    log: OutputLog,
    run_as: Callable[[dict[str, Any]], None],
) -> None:
    engine = make_engine(candidate.section, plan.config.generation, plan.config.machine)
    run_as({key: value for key, value in engine.facts().items() if key != "batch_size"})
    for asked, items in left:
        with Progress(f"{candidate.name} answers {asked.name}", len(items)) as tell:
            _answer(engine, candidate.name, asked, items, log, tell)
        missing = _left(candidate.name, asked, log)
        if missing:
            raise EvaluationError(
                f"models.{candidate.name}: {len(missing)} of {len(asked.items)} prompts of "
                f"'{asked.name}' were not answered; run the same command again."
            )
    del engine
    free_memory()


def _answer(
    engine: Engine,
    model: str,
    asked: Asked,
    items: Sequence[Item],
    log: OutputLog,
    tell: Callable[[int], None],
) -> None:
    done = 0

    def on_answer(
        index: int, text: str, finish: Finish, tokens: int | None, notes: dict[str, Any]
    ) -> None:
        nonlocal done
        log.append(Answer(model, items[index], text, finish, tokens, notes))
        done += 1
        tell(done)

    engine.answer(items, max_new_tokens=asked.max_new_tokens, on_answer=on_answer)


def free_memory() -> None:
    """Gives back what a model held that nobody refers to any more."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
