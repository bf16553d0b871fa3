"""Whole jobs on a tiny pair: what is made, skipped, done again and released."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import DataError, EvaluationError, JobError
from anchortune.evaluation.screen import TooMuchHarm
from anchortune.files import sha256_file
from anchortune.jobs import run
from anchortune.jobs.folder import JobFolder
from anchortune.jobs.run import run_job
from anchortune.jobs.screening import sentence
from anchortune.jobs.share import plan_upload
from anchortune.jobs.status import read_status
from anchortune.lock import locked
from anchortune.record import read_record
from anchortune.report.card_source import read_made
from tests.jobs.conftest import FAILS, OPEN, PASSES, Make, Passed, write_rows

STEPS = ["anchor", "train-sft", "train-asft", "evaluate", "gate", "report", "release"]
WEIGHTS = "adapter_model.safetensors"


def hashes(folder: Path) -> dict[str, str]:
    """The content of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def made_by_steps(folder: Path) -> dict[str, str]:
    """The same, of what anchor, training and evaluation made."""
    mine = ("train/", "eval/", "anchor.")
    found = {name: sha256 for name, sha256 in hashes(folder).items() if name.startswith(mine)}
    assert found.pop("eval/report.html")
    return found


def steps_run(folder: Path) -> list[str]:
    """The steps that the last run did not skip."""
    status = JobFolder(folder).read_status()
    assert status is not None
    assert all(step.state in {"done", "skipped"} for step in status.steps)
    return [step.name for step in status.steps if step.state == "done"]


def test_a_job_that_passes(passed: Passed) -> None:
    folder, result = passed.folder, passed.first
    assert (result.decision, result.exit_code, result.released) == ("passed", 0, True)
    assert result.adapter == folder / "adapter"
    assert steps_run(folder) == STEPS
    for name in ("adapter", "adapter-on-base"):
        trained = folder / "train" / "asft" / name
        assert sha256_file(folder / name / WEIGHTS) == sha256_file(trained / WEIGHTS)
        assert read_record(folder / name).kind == "train"
        assert json.loads((folder / name / "release.json").read_text())["decision"] == "passed"
    assert not (folder / "rejected").exists()
    page = result.report.read_text()
    assert "job: asft on llama-base" in page
    assert "passes" in page
    record = read_record(folder)
    assert record == result.record
    assert record.kind == "job"
    assert list(record.outputs["steps"]) == STEPS
    assert record.metrics["decision"] == "passed"
    assert read_status(folder).state == "complete"
    assert not (folder / "lock.json").exists()
    evaluated = read_record(folder / "eval")
    assert list(evaluated.metrics["models"]) == ["aligned", "sft", "asft"]


def test_arms_share_data_and_seed_and_differ_in_the_penalty(passed: Passed) -> None:
    plain, main = (read_record(passed.folder / "train" / arm) for arm in ("sft", "asft"))
    assert plain.inputs["data"] == main.inputs["data"]
    assert plain.inputs["model"] == main.inputs["model"]
    assert plain.seed == main.seed
    assert "penalty" not in plain.inputs
    assert main.inputs["penalty"]["operator"] == "subspace"


def test_a_second_run_does_nothing(passed: Passed) -> None:
    def times() -> dict[Path, int]:
        found = {p: p.stat().st_mtime_ns for p in passed.folder.rglob("*") if p.is_file()}
        del found[passed.folder / "status.json"]
        return found

    before = times()
    assert run_job(passed.make()) == passed.first
    assert steps_run(passed.folder) == []
    assert times() == before


@pytest.mark.parametrize(
    ("limits", "decision", "code"), [(FAILS, "failed", 3), (OPEN, "undecided", 4)]
)
def test_other_limits_run_gate_report_and_release_alone(
    passed: Passed, limits: dict[str, Any], decision: str, code: int
) -> None:
    folder, made = passed.folder, made_by_steps(passed.folder)
    result = run_job(passed.make(limits=limits))
    assert steps_run(folder) == ["gate", "report", "release"]
    assert (result.decision, result.exit_code, result.released) == (decision, code, False)
    assert result.adapter == folder / "rejected" / "adapter"
    assert json.loads((result.adapter / "release.json").read_text())["decision"] == decision
    assert not (folder / "adapter").exists()
    assert not (folder / "adapter-on-base").exists()
    assert run_job(passed.make(limits=limits)).exit_code == code
    assert steps_run(folder) == []

    run_job(passed.make())
    assert steps_run(folder) == ["gate", "report", "release"]
    assert (folder / "adapter").is_dir()
    assert not (folder / "rejected").exists()
    assert made_by_steps(folder) == made
    assert not (folder / "superseded").exists()


def test_a_job_without_limits_releases_and_says_so(passed: Passed) -> None:
    result = run_job(passed.make(limits=None))
    assert steps_run(passed.folder) == ["report", "release"]
    assert (result.decision, result.exit_code, result.released) == (None, 0, True)
    note = json.loads((passed.folder / "adapter" / "release.json").read_text())
    assert "no limits" in note["sentence"]
    assert not (passed.folder / "gate.json").exists()  # it would speak of limits that are gone


def test_another_lambda_trains_one_arm_and_keeps_the_others_answers(passed: Passed) -> None:
    folder, plain = passed.folder, hashes(passed.folder / "train" / "sft")
    verdicts = (folder / "eval" / "verdicts.jsonl").read_text().splitlines()
    run_job(passed.make(penalty={"lam": 5.0}))
    assert steps_run(folder) == ["train-asft", "evaluate", "gate", "report", "release"]
    assert hashes(folder / "train" / "sft") == plain
    assert (folder / "superseded" / "asft-1" / "record.json").is_file()
    status = JobFolder(folder).read_status()
    assert status is not None
    evaluate = next(step for step in status.steps if step.name == "evaluate")
    assert (evaluate.before, evaluate.total) == (24, 36)  # aligned and sft keep their 12 each
    now = (folder / "eval" / "verdicts.jsonl").read_text().splitlines()
    assert len(now) == len(verdicts)
    for line in verdicts:
        row = json.loads(line)
        assert row["model"] == "asft" or row["judge"] == "coherence" or line in now


def test_changed_data_trains_all_arms_again(passed: Passed) -> None:
    data = Path(passed.make().data[0].path)
    write_rows(data, [{"prompt": f"say {i}", "completion": f"well {i}"} for i in range(16)])
    run_job(passed.make())
    assert steps_run(passed.folder) == STEPS[1:]
    assert read_record(passed.folder).inputs["data"]["sources"][0]["sha256"] == sha256_file(data)


def test_broken_data_takes_the_old_adapter_away(passed: Passed) -> None:
    Path(passed.make().data[0].path).write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match=r"task\.jsonl"):
        run_job(passed.make())
    assert not (passed.folder / "adapter").exists()
    assert not (passed.folder / "record.json").exists()
    assert read_status(passed.folder).state == "failed"


def test_a_mistake_beside_a_change_costs_no_training(passed: Passed) -> None:
    """Another λ would train anew; the mistake in the evaluation is told before anything moves."""
    made = made_by_steps(passed.folder)
    task = passed.make().evaluate.tasks[0].model_dump() | {"target": "labels"}
    with pytest.raises(EvaluationError, match="no column 'labels'"):
        run_job(passed.make(penalty={"lam": 7.0}, evaluate={"tasks": [task]}))
    assert not (passed.folder / "superseded").exists()
    page = passed.folder / "eval" / "report.html"
    assert page.is_file()
    assert made_by_steps(passed.folder) == made


def test_a_record_of_the_evaluation_changed_by_hand_is_refused(passed: Passed) -> None:
    path = passed.folder / "eval" / "record.json"
    path.write_text(path.read_text().replace('"value": 0.0', '"value": 1.0'))
    with pytest.raises(JobError, match=r"record\.json was changed since it was written; delete"):
        run_job(passed.make())
    assert not (passed.folder / "adapter").exists()


def test_an_evaluation_deleted_and_cut_short_before_its_note_goes_on(
    passed: Passed, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(passed.folder / "eval")
    with monkeypatch.context() as patch:
        patch.setattr(JobFolder, "finish", _dies_at("evaluate", JobFolder.finish))
        with pytest.raises(Killed):
            run_job(passed.make())
    assert run_job(passed.make()).released


def _dies_at(step: str, finish: Any) -> Any:
    def dying(folder: JobFolder, name: str, state: Any) -> None:
        if name == step:
            raise Killed
        finish(folder, name, state)

    return dying


def test_all_weights_trained_over_an_adapter(make: Make) -> None:
    result = run_job(make(lora=None, compare_with=[], limits=PASSES))
    assert result.adapter.name == "model"
    assert result.lines()[1].startswith("model   ")
    assert (result.adapter / "config.json").is_file()
    assert "library_name: transformers" in (result.adapter / "README.md").read_text()
    upload = plan_upload(read_made(result.folder), "org/full")  # which needs no base
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} < set(upload.files)


class Killed(BaseException):
    """Stands for the end of the process."""


CHANGES: dict[str, dict[str, Any]] = {
    "train-asft": {"penalty": {"lam": 3.0}},
    "evaluate": {"evaluate": {"bootstrap": 60}},
    "gate": {"limits": {"min_accuracy": 0.01}},
    "report": {},
    "release": {},
}


@pytest.mark.parametrize("step", CHANGES)
def test_no_adapter_stands_while_anything_is_open(
    passed: Passed, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The job passed; now a step is to be done again, and the process dies in it."""
    folder, work, died = passed.folder, run._work, []
    (folder / "steps" / f"{step}.json").unlink()

    def dies(where: JobFolder, doing: Any, ready: Any) -> Any:
        assert not (folder / "adapter").exists()
        assert not (folder / "adapter-on-base").exists()
        if doing.name == step:
            died.append(step)
            monkeypatch.setattr(JobFolder, "withdraw", lambda self: False)  # nothing tidies up
            raise Killed
        return work(where, doing, ready)

    with monkeypatch.context() as patch:
        patch.setattr(run, "_work", dies)
        with pytest.raises(Killed):
            run_job(passed.make(**CHANGES[step]))
        assert died == [step]
        assert not (folder / "adapter").exists()
        assert not (folder / "record.json").exists()


def test_an_adapter_changed_by_hand_is_not_released(passed: Passed) -> None:
    weights = passed.folder / "train" / "asft" / "adapter" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(JobError, match=r"is not what its training wrote; delete .*asft to train"):
        run_job(passed.make())
    assert not (passed.folder / "adapter").exists()


def test_an_adapter_deleted_by_hand_is_put_back(passed: Passed) -> None:
    shutil.rmtree(passed.folder / "adapter")
    assert run_job(passed.make()).adapter.is_dir()
    assert steps_run(passed.folder) == ["release"]


def test_a_folder_in_use_is_refused(make: Make, tmp_path: Path) -> None:
    folder = JobFolder(tmp_path / "job")
    folder.claim()
    with locked(folder.path), pytest.raises(JobError, match=r"job is in use \(process"):
        run_job(make())
    assert not (folder.path / "train").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [{"path": "gone.jsonl"}]},
        {"evaluate": {"harm": [{"path": "gone.jsonl"}]}},
        {"limits": {"max_harm": 0.1}},
        {"lora": {"target_modules": ["other"]}},
        {"anchor": {"target_modules": ["q_proj"]}},
    ],
    ids=["data", "prompts", "limits", "lora", "fit"],
)
def test_a_mistake_leaves_no_folder(make: Make, tmp_path: Path, changes: dict[str, Any]) -> None:
    from anchortune.errors import AnchortuneError

    with pytest.raises(AnchortuneError):
        run_job(make(**changes))
    assert not (tmp_path / "job").exists()


def test_the_error_is_in_the_status(make: Make, tmp_path: Path, monkeypatch) -> None:
    def fails(*_: Any) -> Any:
        raise JobError("the anchor fell off.")

    monkeypatch.setattr(run.AnchorStep, "_build", fails)
    with pytest.raises(JobError, match="fell off"):
        run_job(make())
    report = read_status(tmp_path / "job")
    assert (report.state, report.error, report.exit_code) == ("failed", "the anchor fell off.", 2)
    assert [step.state for step in report.steps][:2] == ["failed", "waiting"]


def judge_that_finds(bad: set[int], folder: Path) -> dict[str, str]:
    """A judge of the job's data to whom the rows ``bad`` look harmful."""
    said = [
        {"prompt": f"say {i}", "answer": f"ok {i}", "verdict": "harmful" if i in bad else "safe"}
        for i in range(16)
    ]
    return {"name": "file", "file": str(write_rows(folder / "verdicts.jsonl", said))}


def test_harmful_rows_are_left_out_of_every_arm(make: Make, tmp_path: Path) -> None:
    judge = judge_that_finds({3, 5}, tmp_path)
    result = run_job(make(screen={"judge": judge, "action": "drop"}))
    folder = tmp_path / "job"
    for arm in ("sft", "asft"):
        inputs = read_record(folder / "train" / arm).inputs
        assert inputs["data"]["sources"][0]["used"] == 14
        assert inputs["screen"]["dropped"] == 2
    assert "2 of 16 rows look harmful, 0 unscored; 2 left out" in result.report.read_text()
    assert result.record.outputs["steps"]["screen"]["outputs"]["harmful"] == 2
    run_job(make(screen={"judge": judge, "action": "drop"}))
    assert steps_run(folder) == []
    with pytest.raises(TooMuchHarm, match="2 rows look harmful"):
        run_job(make(screen={"judge": judge, "action": "stop"}))
    assert not (folder / "adapter").exists()
    assert read_status(folder).exit_code == 3


def test_who_looks_at_the_data_without_leaving_any_out_trains_nothing_again(
    passed: Passed,
) -> None:
    for bad in ({3}, {4, 5}):
        judge = judge_that_finds(bad, passed.root)
        result = run_job(passed.make(screen={"judge": judge, "action": "report"}))
        assert steps_run(passed.folder) == ["screen", "report", "release"]
        assert f"{len(bad)} of 16 rows look harmful" in result.report.read_text()


def test_seeds_are_trained_each_and_summed_up(make: Make, tmp_path: Path) -> None:
    result = run_job(make(seeds=[1, 2], limits=PASSES, training={"max_steps": 2}))
    folder = tmp_path / "job"
    metrics = read_record(folder / "eval").metrics
    assert list(metrics["models"]) == ["aligned", "sft-1", "sft-2", "asft-1", "asft-2"]
    accuracy = next(m for m in metrics["measures"] if m["kind"] == "accuracy")
    assert set(accuracy["arms"]) == {"sft", "asft"}
    gate = json.loads((folder / "gate.json").read_text())
    assert [model["model"] for model in gate["models"]] == ["asft-1", "asft-2"]
    first = folder / "train" / "asft-1" / "adapter"
    assert sha256_file(result.adapter / WEIGHTS) == sha256_file(first / WEIGHTS)


def test_every_weight_trained(make: Make, tmp_path: Path, llama_aligned: Path, llama_base) -> None:
    result = run_job(
        make(
            model={"path": str(llama_aligned), "adapter": None},
            base=str(llama_base),
            anchor={"rank": 4, "target_modules": ["q_proj", "v_proj"]},
            lora=None,
            compare_with=[],
        )
    )
    assert result.adapter == tmp_path / "job" / "model"
    assert (result.adapter / "config.json").is_file()
    assert not (tmp_path / "job" / "adapter").exists()


def test_what_an_indicative_judge_found_is_marked() -> None:
    found = {"judge": "builtin", "harmful": 2, "judged": 9, "unscored": 0, "dropped": 0}
    assert "by builtin (indicative): 2 of 9" in sentence(
        found | {"action": "report", "indicative": True}
    )
    assert "by builtin: 2 of 9" in sentence(found | {"action": "report", "indicative": False})
