"""One run of a sweep: its rows, its anchor, its training, what comes after, its evaluation.

Each part is found again by its digest, so that a run that was cut short goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchortune.config import LoraSection, ModelSection, TrainConfig
from anchortune.config_defences import AnchorRef
from anchortune.config_io import validate
from anchortune.data.mix import FACTS_SUFFIX
from anchortune.defences.base import Anchors
from anchortune.errors import AnchorError, ConfigError
from anchortune.evaluation.ask import ask, free_memory
from anchortune.evaluation.config import CandidateSection, EvalConfig
from anchortune.evaluation.judges.base import Judge
from anchortune.evaluation.judging import Answers, judge_sets, read_tasks
from anchortune.evaluation.outputs import OUTPUTS_FILE, OutputLog, read_outputs, redact
from anchortune.evaluation.plan import COHERENCE, EvalPlan, plan_eval
from anchortune.evaluation.verdicts import VERDICTS_FILE, VerdictLog
from anchortune.evaluation.wholeness import LIKELIHOODS_FILE, look_at_answers
from anchortune.files import DISK, naming, sha256_file, write_json
from anchortune.jobs.carry import carry
from anchortune.jobs.folder import digest_of
from anchortune.jobs.sweep import Run, Sweep
from anchortune.jobs.sweep_inputs import base_of, needs_of
from anchortune.jobs.sweep_record import (
    commit,
    mix_figures,
    outcomes_of,
    sentence_of,
    training_figures,
)
from anchortune.jobs.sweep_store import built_anchor, cleared, made_mix, runnable
from anchortune.record import Record, platform_facts, versions
from anchortune.report.runs import Outcome, RunRecord

logger = logging.getLogger(__name__)
ALIGNED, OTHER = "aligned", "run"
EVALUATED_FILE = "evaluated.json"
#: Judges kept between runs in one process: small ones, which take longer to load than to judge.
_KEPT: dict[str, Judge] = {}
_SMALL = ("builtin",)


def execute(sweep: Sweep, run: Run) -> RunRecord:
    """Does one run; a failure is its record too, and its traceback is in the run's ``log.txt``.

    Raises:
        OSError: the disk is full or may not be written to.
    """
    folder = sweep.store.place("runs", run.digest)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("== %s", run.line())
    started = time.perf_counter()
    made = _Making(sweep, run, folder)
    with _logged(folder / "log.txt") as log:
        try:
            outcomes = made.outcomes()
            error = None
        except Exception as failure:
            if isinstance(failure, OSError) and failure.errno in DISK:
                raise  # a full disk is no failure of this run, and would be one of all others
            outcomes, error = [], sentence_of(failure)
            with naming(log), log.open("a", encoding="utf-8") as stream:
                stream.write(traceback.format_exc())
            logger.info("   failed: %s", error)
    made.timings["all_s"] = time.perf_counter() - started
    free_memory()
    return RunRecord(
        sweep=sweep.config.name,
        digest=run.digest,
        labels=run.labels,
        seed=run.seed,
        state="complete" if error is None else "failed",
        error=error,
        settings=run.settings,
        inputs=dict(sorted((run.inputs | made.inputs).items())),
        outcomes=outcomes,
        numbers=made.numbers if error is None else {},
        timings={key: round(seconds, 3) for key, seconds in sorted(made.timings.items())},
        commit=commit(),
        versions=versions(),
        platform=platform_facts() | made.platform,
    )


class _Log(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing: where the disk is full, the run itself says so."""


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[Path]:
    """What we log goes to ``path`` too."""
    root = logging.getLogger("anchortune")
    with naming(path):
        path.write_text("", encoding="utf-8")
    # Appending, for the traceback of a failure is appended too.
    handler = _Log(path, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    root.addHandler(handler)
    try:
        yield path
    finally:
        root.removeHandler(handler)
        # What it still held does not fit on a full disk, which the run itself has told of.
        with contextlib.suppress(OSError):
            handler.close()


@dataclass(frozen=True)
class _Model:
    """A model to ask: where its weights lie, and what is put before every prompt."""

    start: ModelSection
    adapter: Path | None = None
    system: str | None = None

    def section(self) -> CandidateSection:
        return CandidateSection(
            path=self.start.path,
            revision=self.start.revision,
            trust_remote_code=self.start.trust_remote_code,
            adapter=[] if self.adapter is None else [str(self.adapter)],
            system=self.system,
        )


class _Making:
    """A run while it is made, and what its record says of it besides the verdicts."""

    def __init__(self, sweep: Sweep, run: Run, folder: Path) -> None:
        self._sweep, self._run, self._folder = sweep, run, folder
        self._store, self._cell = sweep.store, run.config
        self.inputs: dict[str, str] = {}
        self.numbers: dict[str, Any] = {}
        self.timings: dict[str, float] = {}
        self.platform: dict[str, Any] = {}

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - started

    def outcomes(self) -> list[Outcome]:
        """Trains where there is anything to train, and measures."""
        with self._timed("models_s"):
            aligned = _Model(runnable(self._store, self._cell.model))
        if self._run.kind == "aligned":
            said = self._reference(aligned)
        else:
            if self._run.kind == "base":
                model = _Model(runnable(self._store, self._base()))
            else:
                model = self._trained(aligned.start)
            self._reference(aligned)
            said = self._asked(self._folder, {ALIGNED: aligned, OTHER: model}, OTHER)
        self.timings |= said["timings"]
        self.platform |= said["platform"]
        return [Outcome.model_validate(one) for one in said["outcomes"]]

    def _base(self) -> ModelSection:
        base = base_of(self._cell)
        if not isinstance(base, ModelSection):
            raise ConfigError("the base model is not known; give base.")
        return base

    def _trained(self, start: ModelSection) -> _Model:
        """The run's model, from its training (shared with runs that differ afterwards) on."""
        from anchortune.models.load import load_tokenizer
        from anchortune.training.defended import apply_after, as_defences, overrides, split_chain

        during, afterwards = split_chain(self._cell.defence)
        if any(method.start_from() == "base" for method in as_defences(during)):
            start = runnable(self._store, self._base())
        mends = [one for one in as_defences(afterwards) if overrides(one, "after")]
        anchors = self._anchors_of(mends, start)
        record, folder = self._training(during, start)
        self.numbers |= training_figures(record)
        adapter: Path | None = folder / record.outputs["path"]
        if self._cell.lora is None:
            full = ModelSection(path=str(adapter), trust_remote_code=start.trust_remote_code)
            start, adapter = full, None
        if mends and adapter is not None:
            with self._timed("after_s"):
                apply_after(mends, anchors, adapter, self._folder / "adapter")
            adapter = self._folder / "adapter"
        system = record.outputs.get("system_prompt")  # of its own tokenizer, as it was trained
        if system is None:
            tokenizer = load_tokenizer(start)
            prompts = [one.system_prompt(tokenizer) for one in as_defences(afterwards)]
            system = next((prompt for prompt in prompts if prompt is not None), None)
        return _Model(start, adapter, system)

    def _anchors_of(self, mends: list[Any], start: ModelSection) -> Anchors:
        """What the methods after training measure against, held against the start model."""
        from anchortune.training.anchored import check_parent
        from anchortune.training.defended import load_anchors

        needed = needs_of(mends)
        aligned = self._anchor() if "anchor" in needed else None
        harmful = self._cell.harmful_anchor if "harmful_anchor" in needed else None
        anchors = load_anchors(aligned, harmful)
        for key, ref, anchor, parent in (
            ("anchor", aligned, anchors.aligned, "aligned"),
            ("harmful_anchor", harmful, anchors.harmful, "base"),
        ):
            if ref is None or anchor is None:
                continue
            if key == "anchor" and anchor.metadata.harmful is not None:
                raise AnchorError(
                    f"{ref.path} is a harmful anchor and no anchor of aligned - base; give it as "
                    "harmful_anchor."
                )
            check_parent(
                anchor, start, (parent,), ref.path, f"{key}.allow_other_start",
                ref.allow_other_start,
            )  # fmt: skip
        return anchors

    def _anchor(self) -> AnchorRef:
        """The given anchor, or the one that is built for all runs that need the same."""
        given = self._cell.anchor
        if given is not None and given.path is not None:
            return AnchorRef(
                path=given.path,
                revision=given.revision,
                allow_other_start=bool(given.allow_other_start),
            )
        targets: list[str] | str | None = given.target_modules if given is not None else None
        if targets is None and isinstance(self._cell.lora, LoraSection):
            targets = self._cell.lora.target_modules
        if targets is None:
            from anchortune.anchor.build import DEFAULT_TARGET_MODULES

            targets = list(DEFAULT_TARGET_MODULES)
        with self._timed("anchor_s"):
            path = built_anchor(self._store, self._cell.model, self._base(), targets, given)
        self.inputs["anchor.built"] = sha256_file(path)
        return AnchorRef(path=str(path))

    def _training(self, during: list[Any], start: ModelSection) -> tuple[Record, Path]:
        """The record and folder of the training that runs of one training digest share."""
        from anchortune.training.folder import OtherRun
        from anchortune.training.plan import plan_stage
        from anchortune.training.stage import run_stage

        folder = self._store.place("train", self._run.training or "")
        with self._timed("data_s"):
            config = self._train_config(during, start, folder)
        with self._store.held("train", self._run.training or ""), self._timed("training_s"):
            try:
                plan = plan_stage(config)
            except OtherRun:
                cleared(folder)
                plan = plan_stage(config)
            record = run_stage(plan)
            del plan
        free_memory()
        self.timings |= {f"train.{key}": value for key, value in record.timings.items()}
        self.platform["trained_on"] = {
            key: record.numbers[key]
            for key in ("device", "compute_dtype", "shared_prefixes")
            if key in record.numbers  # a training of an earlier version may lack the last
        } | {key: value for key, value in record.platform.items() if key == "gpu"}
        return record, folder

    def _train_config(self, during: list[Any], start: ModelSection, folder: Path) -> TrainConfig:
        cell = self._cell
        needed = needs_of(during)
        without = {"mix", "evaluate", "anchor", "harmful_anchor", "base", "penalty", "preset",
                   "screen", "refusals", "output"}  # fmt: skip
        tree = cell.model_dump(mode="json", exclude=without)
        tree["defence"] = [section.model_dump(mode="json") for section in during]
        tree["model"] = start.model_dump(mode="json")
        if "base" in needed:  # the same place for both: what it starts from is the base
            aligned = runnable(self._store, cell.model)
            tree["model"] = aligned.model_dump(mode="json")
            tree["base"] = start.model_dump(mode="json")
        if "anchor" in needed:
            tree["anchor"] = self._anchor().model_dump(mode="json")
        if "harmful_anchor" in needed and cell.harmful_anchor is not None:
            tree["harmful_anchor"] = cell.harmful_anchor.model_dump(mode="json")
        if "refusals" in needed:
            tree["refusals"] = [section.model_dump(mode="json") for section in cell.refusals]
        if cell.mix is not None:
            digest = self._sweep.digest_of_mix(self._run)
            path = made_mix(self._store, cell.mix, self._run.seed, digest)
            self.inputs["mix.made"] = sha256_file(path)
            self.numbers |= mix_figures(path.with_name(path.name + FACTS_SUFFIX))
            tree["data"] = [{"path": str(path)}]
        tree |= {"seed": self._run.seed, "output": str(folder)}
        return validate(tree, TrainConfig, "the run")

    def _reference(self, aligned: _Model) -> dict[str, Any]:
        """What the aligned model answers, asked once for all runs that are asked the same."""
        digest = self._run.reference
        folder = self._store.place("reference", digest)
        with self._store.held("reference", digest):
            return self._asked(folder, {ALIGNED: aligned}, ALIGNED)

    def _asked(self, folder: Path, models: dict[str, _Model], which: str) -> dict[str, Any]:
        """The outcomes of one of ``models``, the aligned one being the first of them."""
        path = folder / EVALUATED_FILE
        if path.is_file():
            return dict(json.loads(path.read_text(encoding="utf-8")))
        cell = self._cell
        shared = {key: getattr(cell.machine, key) for key in ("device", "dtype")}
        own = cell.evaluate.machine
        machine = own.model_copy(
            update={key: value for key, value in shared.items() if getattr(own, key) == "auto"}
        )
        settings = dict(cell.evaluate) | {"machine": machine, "keep": "text"}
        sections = {name: model.section() for name, model in models.items()}
        place = folder / "eval"
        config = EvalConfig(**settings, models=sections, output=str(place))
        plan = _plan(config, place)
        if len(models) > 1 and not (place / OUTPUTS_FILE).is_file():
            _carried(self._store.place("reference", self._run.reference) / "eval", plan)
        said = _evaluate(plan, which)
        if len(models) > 1:  # the answers of the reference stay, for other runs to stand beside
            redact(place / OUTPUTS_FILE, cell.evaluate.keep)
        write_json(path, said)
        return said


def _plan(config: EvalConfig, place: Path) -> EvalPlan:
    from anchortune.run_folder import OtherRun

    try:
        plan = plan_eval(config)
    except OtherRun:
        cleared(place)
        plan = plan_eval(config)
    for number, judge in enumerate(plan.judges):
        if judge.name in _SMALL:
            key = digest_of([judge.identity(), config.machine.model_dump()])
            plan.judges[number] = _KEPT.setdefault(key, judge)
    return plan


def _carried(old: Path, plan: EvalPlan) -> None:
    """Takes over the aligned model's answers, verdicts and likelihoods."""
    place = plan.folder.path
    plan.folder.claim()
    if not carry(old, place, plan.folder.identity):
        return
    with VerdictLog(place / LIKELIHOODS_FILE) as known:
        for row in read_outputs(old / VERDICTS_FILE):
            if row["judge"] == COHERENCE and row.get("score") is not None:
                known.append(row, "likelihood", "measured", score=row["score"])


def _evaluate(plan: EvalPlan, which: str) -> dict[str, Any]:
    """Asks, judges and looks; the outcomes of the model called ``which``."""
    folder = plan.folder.path
    plan.folder.claim()
    timings: dict[str, float] = {"eval_plan_s": plan.timings["plan_s"]}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        timings[name] = time.perf_counter() - started
        started = time.perf_counter()

    with OutputLog(folder / OUTPUTS_FILE) as log:
        engines = ask(plan, log)
        answers = Answers.of(log.rows)
    lap("generate_s")
    with VerdictLog(folder / VERDICTS_FILE) as verdicts:
        read_tasks(plan, answers, verdicts)
        judge_sets(plan, answers, verdicts)
        lap("judge_s")
        look_at_answers(plan, answers, verdicts)
        lap("coherence_s")
        outcomes = outcomes_of(plan, answers, verdicts, which)
    return {
        "outcomes": [one.model_dump(mode="json") for one in outcomes],
        "timings": timings,
        "platform": {"asked_on": engines.get(which, [])},
    }
