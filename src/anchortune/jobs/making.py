"""The steps that make something: the anchors, and one training for each arm."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchortune.errors import JobError
from anchortune.files import sha256_file
from anchortune.jobs.config import Arm, JobConfig
from anchortune.jobs.folder import digest_of
from anchortune.jobs.step import Job, Ready
from anchortune.record import RECORD_FILE, Record, read_record

if TYPE_CHECKING:
    from anchortune.jobs.harmful_anchor import HarmfulPlan
    from anchortune.training.plan import Plan

logger = logging.getLogger(__name__)


def weights_of(section: Any) -> dict[str, Any]:
    """The hashes that say which weights a model section names, wherever they lie.

    Args:
        section: with ``path``, ``revision`` and perhaps ``adapter``.
    """
    from anchortune.config import ModelSection
    from anchortune.models.load import identity

    adapter = getattr(section, "adapter", None)
    found = identity(ModelSection(path=section.path, revision=section.revision, adapter=adapter))
    kept = {key: found.get(key) for key in ("sha256", "config_sha256")}
    if adapter is not None:
        kept["adapter"] = {k: found["adapter"][k] for k in ("sha256", "config_sha256")}
    return kept


def anchor_parents(config: JobConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """``open_checkpoint``'s arguments, by keyword, for the aligned model and for its base.

    Raises:
        JobError: no base is known.
    """
    base = config.aligned_from
    if base is None:
        raise JobError("no base to build an anchor from; give base.")
    adapter = config.model.adapter
    if adapter is not None:
        aligned: dict[str, Any] = {"name": adapter, "revision": None}
    else:
        aligned = {"name": config.model.path, "revision": config.model.revision}
    return aligned, {"name": base.path, "revision": base.revision}


class AnchorStep:
    """Builds the anchor: the aligned model minus its base."""

    name = "anchor"
    label = "anchor: the aligned model minus its base"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        config = job.config
        section = config.anchor
        base = config.aligned_from
        aligned, before = weights_of(config.model), None if base is None else weights_of(base)
        same = before is not None and before["sha256"] == aligned["sha256"]
        if base is not None and same and config.model.adapter is None:
            raise JobError(
                f"base {base.path} holds the very weights of model {config.model.path}, so there "
                "is nothing to anchor; name what the model was aligned from."
            )
        digest = digest_of(
            {
                "aligned": aligned,
                "base": before,
                "target_modules": config.anchor_targets,
                "rank": section.rank if section is not None else None,
                "energy": section.energy if section is not None else None,
            }
        )
        path = job.folder.anchor
        state = job.folder.done(self.name)
        outputs = None
        if state is not None and state.digest == digest and path.is_file():
            outputs = state.outputs
            if sha256_file(path) != outputs["sha256"]:
                raise JobError(f"{path} was changed since it was built; delete it.")
        return Ready(digest, outputs, lambda: self._build(job))

    def _build(self, job: Job) -> dict[str, Any]:
        from anchortune.anchor.anchor import Anchor
        from anchortune.progress import Progress

        config, path = job.config, job.folder.anchor
        section = config.anchor
        aligned, base = anchor_parents(config)
        job.folder.set_aside(path)
        with Progress("anchor") as tell:
            anchor = Anchor.from_checkpoints(
                aligned["name"],
                base["name"],
                target_modules=config.anchor_targets,
                rank=section.rank if section is not None else None,
                energy=section.energy if section is not None else None,
                aligned_revision=aligned["revision"],
                base_revision=base["revision"],
                progress=lambda done, total, module: tell(done, total=total, note=module),
            )
        anchor.save(path)
        logger.info("%s: %d modules", path, len(anchor))
        return {"path": path.name, "sha256": anchor.sha256, "modules": len(anchor)}


class HarmfulStep:
    """Makes the harmful anchor: harmful data's pull on the aligned model."""

    name = "harmful-anchor"
    label = "harmful anchor: where harmful pairs pull the aligned model"

    def plan(self, job: Job, *, timed: bool = False) -> HarmfulPlan:
        """What is to be made, checked.

        Raises:
            AnchortuneError: model or data cannot be used.
        """
        from anchortune.jobs.harmful_anchor import plan_harmful

        config = job.config
        settings = config.harmful_settings
        if settings is None:
            raise JobError("no data to make a harmful anchor from; give harmful_anchor.")
        return plan_harmful(
            config.model, settings, job.folder.harmful, machine=config.machine, timed=timed
        )

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        from anchortune.data.rows import read_rows
        from anchortune.jobs.harmful_anchor import make_harmful

        config, path = job.config, job.folder.harmful
        settings = config.harmful_settings
        if settings is None:
            raise JobError("no data to make a harmful anchor from; give harmful_anchor.")
        digest = digest_of(
            {
                "model": weights_of(config.model),
                "settings": settings.model_dump(mode="json"),
                "data": read_rows(settings.data).sha256,
            }
        )
        state = job.folder.done(self.name)
        if state is not None and state.digest == digest and path.is_file():
            if sha256_file(path) != state.outputs["sha256"]:
                raise JobError(f"{path} was changed since it was made; delete it.")
            outputs = state.outputs
            return Ready(digest, outputs, lambda: outputs)
        plan = self.plan(job)

        def work() -> dict[str, Any]:
            job.folder.set_aside(path)
            anchor = make_harmful(plan)
            logger.info("%s: %d modules, %d pairs", path, len(anchor), plan.pairs)
            return {"path": path.name, "sha256": anchor.sha256, "modules": len(anchor)}

        training = plan.training
        if training is None:
            return Ready(digest, None, work)
        folder = training.folder.path.relative_to(job.folder.path).as_posix()
        return Ready(digest, None, work, folder=folder, total=training.steps)


class TrainStep:
    """Trains one arm.

    Args:
        arm: which.
    """

    def __init__(self, arm: Arm) -> None:
        self.arm = arm
        self.name = f"train-{arm.name}"
        self.label = f"train {arm.name}"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        from anchortune.training.folder import OtherRun, State
        from anchortune.training.plan import plan_stage
        from anchortune.training.stage import unneeded

        path = job.folder.train(self.arm.name)
        config = job.training_of(self.arm, path)
        try:
            plan = plan_stage(config, screened=job.omitting)
        except OtherRun as error:
            job.check()
            job.folder.withdraw()
            place = job.folder.set_aside(path)
            logger.info("%s; the old one is now %s", error, place)
            plan = plan_stage(config, screened=job.omitting)
        outputs = None
        if plan.state is State.COMPLETE:
            plan.folder.tidy(*unneeded(plan))
            outputs = outputs_of(path)
        checkpoint = plan.folder.last_checkpoint()
        before = int(checkpoint.name.rpartition("-")[2]) if checkpoint is not None else 0
        return Ready(
            digest=plan.folder.digest,
            outputs=outputs,
            work=lambda: _train(plan),
            folder=path.relative_to(job.folder.path).as_posix(),
            total=plan.steps,
            before=before,
        )


def _train(plan: Plan) -> dict[str, Any]:
    from anchortune.training.stage import run_stage

    run_stage(plan)
    return outputs_of(plan.folder.path)


def results_in(run: Path, record: Record) -> dict[str, dict[str, str]]:
    """The hashes of what a training made, by folder: ``adapter`` or ``model``, and on the base."""
    found = [record.outputs, record.outputs.get("on_base")]
    return {made["path"]: made["sha256"] for made in found if made is not None}


def outputs_of(run: Path) -> dict[str, Any]:
    """What a complete training made, held against its record.

    Raises:
        JobError: a file was changed or taken away since.
    """
    record = read_record(run)
    made = results_in(run, record)
    for folder, hashes in made.items():
        for name, sha256 in hashes.items():
            file = run / folder / name
            if not file.is_file() or sha256_file(file) != sha256:
                raise JobError(
                    f"{file} is not what its training wrote; delete {run} to train it again."
                )
    return {
        "path": run.name,
        "made": made,
        "record_sha256": sha256_file(run / RECORD_FILE),
        "steps": record.metrics["steps"],
    }
