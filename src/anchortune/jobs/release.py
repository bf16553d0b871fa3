"""The last step: the trained adapter goes where a release picks it up, or is kept apart.

``<output>/adapter`` exists only while everything that led to it stands and the gate has passed. It
is taken away before any step is done again, and put in place last, by a rename.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from anchortune.errors import JobError
from anchortune.files import atomic_directory, sha256_file, write_json
from anchortune.jobs.folder import RELEASED, digest_of
from anchortune.jobs.judging import gate_of
from anchortune.jobs.step import Job, Ready
from anchortune.record import read_record
from anchortune.report.card import CARD_FILE, card
from anchortune.report.card_source import Part, made_by_job

RELEASE_FILE = "release.json"
UNGATED = "The job sets no limits, so no gate held the result against any."


class ReleaseStep:
    """Copies what the first main arm made into the job's folder."""

    name = "release"
    label = "release"

    def prepare(self, job: Job) -> Ready:
        """As in ``Step``."""
        arm = job.config.main[0]
        trained = job.states[f"train-{arm.name}"].outputs
        gate = gate_of(job)
        digest = digest_of(
            {
                "made": trained["made"],
                "record": trained["record_sha256"],
                "gate": job.states["gate"].outputs if "gate" in job.states else None,
                "arm": arm.name,
                "evaluation": job.states["evaluate"].outputs,
                "screen": job.states["screen"].outputs if "screen" in job.states else None,
            }
        )
        state = job.folder.done(self.name)
        place = _place(job, gate)
        standing = (
            state is not None
            and state.digest == digest
            and all(_stands(place / folder, made) for folder, made in trained["made"].items())
        )
        return Ready(
            digest,
            state.outputs if standing and state is not None else None,
            lambda: self._put(job, arm.name, gate),
        )

    def _put(self, job: Job, arm: str, gate: dict[str, Any] | None) -> dict[str, Any]:
        source = job.folder.train(arm)
        made: dict[Part, Any] = job.states[f"train-{arm}"].outputs["made"]
        decision = gate["decision"] if gate is not None else None
        note = {
            "arm": arm,
            "decision": decision,
            "sentence": gate["sentence"] if gate is not None else UNGATED,
            "gate": gate,
        }
        prompt = read_record(source).outputs.get("system_prompt")
        if prompt is not None:  # without it, this is not the model that was measured
            note["system_prompt"] = prompt
        place = _place(job, gate)
        # The main folder last: who finds it finds everything.
        for folder in sorted(made, key=lambda name: RELEASED.index(name), reverse=True):
            with atomic_directory(place / folder) as temporary:
                shutil.copytree(source / folder, temporary, dirs_exist_ok=True)
                if not _stands(temporary, made[folder]):
                    raise JobError(
                        f"{source / folder} is not what its training wrote; run the job again."
                    )
                write_json(temporary / RELEASE_FILE, note)
                _write_card(job, temporary, folder, arm, gate)
        main = next(name for name in RELEASED if name in made)
        path = (place / main).relative_to(job.folder.path)
        return {
            "path": path.as_posix(),
            "sha256": made[main],
            "released": place == job.folder.path,
            "decision": decision,
        }


def _write_card(job: Job, place: Path, part: Part, arm: str, gate: dict[str, Any] | None) -> None:
    screened = job.states.get("screen")
    made = made_by_job(
        job.folder.path,
        place,
        part,
        arm=arm,
        config=job.config.model_dump(mode="json"),
        gate=gate,
        screen=None if screened is None else screened.outputs,
    )
    (place / CARD_FILE).write_text(card(made), encoding="utf-8")


def _place(job: Job, gate: dict[str, Any] | None) -> Path:
    passed = gate is None or gate["decision"] == "passed"
    return job.folder.path if passed else job.folder.rejected


def _stands(folder: Path, hashes: dict[str, str]) -> bool:
    return all(
        (folder / name).is_file() and sha256_file(folder / name) == sha256
        for name, sha256 in hashes.items()
    )
