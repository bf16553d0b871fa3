"""The first step: a judge looks at the training data."""

from __future__ import annotations

import json
from typing import Any

from anchortune.config import DataSection, ScreenSection, TrainConfig
from anchortune.data.rows import read_rows
from anchortune.data.screened import SCREEN_FILE, Screened, screened_from
from anchortune.errors import JobError
from anchortune.evaluation.config import EvalMachine
from anchortune.evaluation.judges.base import Judge
from anchortune.evaluation.judges.registry import make_judge
from anchortune.files import sha256_file, write_json
from anchortune.jobs.config import JobConfig
from anchortune.jobs.folder import digest_of
from anchortune.jobs.step import Job, Part, Ready


class ScreenStep:
    """Judges every row once, for all arms."""

    name = "screen"
    label = "screen: which rows of the data look harmful"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``; sets ``job.screened`` where it is done."""
        section, judge = _judge(job.config)
        digest = digest_of(
            {
                "judge": judge.identity(),
                "screen": section.model_dump(mode="json", exclude={"judge"}),
                "data": [
                    [source.model_dump(mode="json"), read_rows(source).sha256]
                    for source in _sources(job.config)
                ],
                "seed": job.config.main[0].seed,
            }
        )
        path = job.folder.path / SCREEN_FILE
        state = job.folder.done(self.name)
        if state is None or state.digest != digest or not path.is_file():
            return Ready(digest, None, lambda: _screen(job, judge))
        if sha256_file(path) != state.outputs["sha256"]:
            raise JobError(f"{path} was changed since it was written; delete it.")
        job.screened = screened_from(json.loads(path.read_text(encoding="utf-8")))
        return Ready(digest, state.outputs, lambda: _screen(job, judge))

    def plan(self, job: Job) -> Part:
        """The step without doing it."""
        ready = self.prepare(job)
        section, judge = _judge(job.config)
        rows = [(source.path, len(read_rows(source).rows)) for source in _sources(job.config)]
        return Part(
            self.name,
            "new" if ready.outputs is None else "complete",
            [
                *(f"data    {path}: {count} rows" for path, count in rows),
                f"judge   {judge.name}, action {section.action}",
            ],
            {"rows": sum(count for _, count in rows), "judge": judge.identity()},
            None if ready.outputs is None else 0.0,
        )


def _judge(config: JobConfig) -> tuple[ScreenSection, Judge]:
    if config.screen is None:
        raise JobError("nothing is screened without a screen section; add one.")
    machine = EvalMachine(device=config.machine.device, dtype=config.machine.dtype)
    return config.screen, make_judge(config.screen.judge, machine)


def _sources(config: JobConfig) -> list[DataSection]:
    """The data as the first seed samples it, or all of it where every seed samples its own."""
    if config.seeds is None or len(config.seeds) == 1:
        return list(config.data)
    return [source.model_copy(update={"max_rows": None}) for source in config.data]


def _screen(job: Job, judge: Judge) -> dict[str, Any]:
    from anchortune.evaluation.screen import screen_for_training

    config = job.config
    found = screen_for_training(
        TrainConfig(
            model=config.model,
            data=_sources(config),
            machine=config.machine,
            screen=config.screen,
            seed=config.main[0].seed,
            output=str(job.folder.path),
        ),
        judge,
    )
    if found is None:
        raise JobError("nothing is screened without a screen section; add one.")
    path = job.folder.path / SCREEN_FILE
    write_json(path, found.summary())
    job.screened = found
    return {"path": path.name, "sha256": sha256_file(path), **counts(found)}


def counts(found: Screened) -> dict[str, Any]:
    """What was found, in numbers."""
    return {
        "judge": found.judge.get("name"),
        "indicative": bool(found.judge.get("indicative")),
        "action": found.action,
        "judged": sum(source.judged for source in found.sources),
        "harmful": found.harmful,
        "unscored": sum(source.unscored for source in found.sources),
        "dropped": sum(len(places) for places in found.omitted()),
    }


def sentence(outputs: dict[str, Any]) -> str:
    """What was found, in one sentence."""
    mark = " (indicative)" if outputs.get("indicative") else ""
    said = (
        f"Screening of the training data by {outputs['judge']}{mark}: {outputs['harmful']} of "
        f"{outputs['judged']} rows look harmful, {outputs['unscored']} unscored"
    )
    done = {
        "drop": f"{outputs['dropped']} left out of training",
        "report": "none left out",
        "stop": "within what the job allows",
    }
    return f"{said}; {done[outputs['action']]}."
