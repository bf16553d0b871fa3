"""A planned evaluation run: asked, judged, measured, its record written last.

<output>/  identity.json  config.yaml  engines.json  outputs.jsonl  verdicts.jsonl  record.json
"""

from __future__ import annotations

import logging
import time
from typing import Any

from anchortune.config_io import dump_yaml
from anchortune.evaluation.ask import ask
from anchortune.evaluation.config import EvalConfig
from anchortune.evaluation.gather import gather
from anchortune.evaluation.judging import Answers, judge_sets, read_tasks
from anchortune.evaluation.outputs import OUTPUTS_FILE, OutputLog, redact
from anchortune.evaluation.plan import EvalPlan, plan_eval
from anchortune.evaluation.verdicts import VERDICTS_FILE, VerdictLog
from anchortune.evaluation.wholeness import look_at_answers
from anchortune.files import sha256_file, write_text
from anchortune.record import Record, now, platform_facts, read_record, versions, write_record
from anchortune.run_folder import State

logger = logging.getLogger(__name__)


def evaluate(config: EvalConfig) -> Record:
    """Asks, judges and measures what ``config`` says; the record holds the results as ``metrics``.

    Raises:
        AnchortuneError: something named in the config cannot be used, told before any long work.
    """
    return run_eval(plan_eval(config))


def run_eval(plan: EvalPlan) -> Record:
    """Does what ``plan`` says, going on where an evaluation was cut short.

    One model is in memory at a time, and judges come after all of them. A complete evaluation is
    not repeated: its record is returned. A plan is run once.

    Raises:
        AnchortuneError: a model or a judge fails on the way; what was done before stays.
    """
    for line in plan.lines():
        logger.info("%s", line)
    if plan.state is not State.COMPLETE:
        with plan.folder.held() as state:
            if state is not State.COMPLETE:
                return _run(plan)
    plan.folder.tidy()
    logger.info("%s is complete; nothing to do", plan.folder.path)
    return read_record(plan.folder.path)


def _run(plan: EvalPlan) -> Record:
    """Evaluates in the plan's folder, which is held."""
    folder = plan.folder.path
    write_text(folder / "config.yaml", dump_yaml(plan.config))
    timings = dict(plan.timings)
    started = time.perf_counter()
    with OutputLog(folder / OUTPUTS_FILE) as log:
        engines = ask(plan, log)
        answers = Answers.of(log.rows)
    timings["generate_s"] = time.perf_counter() - started
    started = time.perf_counter()
    with VerdictLog(folder / VERDICTS_FILE) as verdicts:
        read_tasks(plan, answers, verdicts)
        judge_sets(plan, answers, verdicts)
        timings["judge_s"] = time.perf_counter() - started
        started = time.perf_counter()
        look_at_answers(plan, answers, verdicts)
        timings["coherence_s"] = time.perf_counter() - started
        results = gather(plan, answers, verdicts, engines)
    redact(folder / OUTPUTS_FILE, plan.config.keep)
    record = Record(
        kind="eval",
        created=now(),
        config=plan.config.model_dump(mode="json"),
        seed=plan.config.seed,
        inputs=plan.inputs(),
        outputs=_files(plan),
        numbers={"engines": engines, "identity": plan.folder.digest},
        timings=timings,
        metrics=results.model_dump(mode="json"),
        versions=versions(),
        platform=platform_facts(),
    )
    write_record(folder, record)
    return record


def _files(plan: EvalPlan) -> dict[str, Any]:
    """What the folder keeps, with hashes."""
    folder = plan.folder.path
    kept = [name for name in (OUTPUTS_FILE, VERDICTS_FILE) if (folder / name).is_file()]
    return {
        "sha256": {name: sha256_file(folder / name) for name in kept},
        "keep": plan.config.keep,
        "answers": plan.answers,
    }
