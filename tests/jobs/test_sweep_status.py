"""Where a sweep is, told from its folders alone."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from anchortune import lock
from anchortune.cli.app import app
from anchortune.errors import JobError
from anchortune.jobs.status import read_any
from anchortune.jobs.sweep import Run, Sweep
from anchortune.jobs.sweep_status import SweepsReport, list_runs
from anchortune.report.runs import RunRecord, run_text
from tests.jobs.sweeps import made, sweep_tree


@pytest.fixture
def sweep(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> Sweep:
    """A sweep of four runs that was begun: the aligned model is asked, nothing is trained."""
    found = Sweep(made(sweep_tree(tmp_path, llama_base, llama_adapter)))
    list_runs(found)
    assert [run.labels["defence"] for run in found.runs] == ["aligned", "sft", "safe-lora", "asft"]
    record(found, found.runs[0])
    return found


def record(sweep: Sweep, run: Run, error: str | None = None, seconds: float = 60.0) -> None:
    made_up = RunRecord(
        sweep=sweep.config.name,
        digest=run.digest,
        labels=run.labels,
        seed=run.seed,
        state="complete" if error is None else "failed",
        error=error,
        settings=run.settings,
        inputs=run.inputs,
        timings={"all_s": seconds},
    )
    sweep.results.mkdir(parents=True, exist_ok=True)
    sweep.path(run).write_text(run_text(made_up), encoding="utf-8")


def hold(sweep: Sweep, run: Run, holder: lock.Holder) -> None:
    folder = sweep.store.path / "locks" / f"runs-{run.digest[:12]}"
    folder.mkdir(parents=True)
    (folder / lock.LOCK_FILE).write_text(json.dumps(asdict(holder)))


def report(path: Path) -> SweepsReport:
    found = read_any(path)
    assert isinstance(found, SweepsReport)
    return found


def test_a_work_folder_tells_what_is_done_failed_running_and_missing(sweep: Sweep) -> None:
    _, sft, safe_lora, asft = sweep.runs
    record(sweep, sft, seconds=90.0)
    record(sweep, safe_lora, error="model.path: no such folder.")
    hold(sweep, asft, lock.Holder.here())
    log = sweep.store.place("train", asft.training or "") / "log.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1}\n{"step": 3, "loss": 1.0}\n{"st')
    found = report(sweep.store.path)
    (told,) = found.sweeps
    assert found.state == "running"
    assert told.counts == {"complete": 2, "failed": 1, "running": 1, "missing": 0}
    assert (told.total, told.left_s) == (4, 90.0)  # as long as the trained run took
    assert (told.working[0].doing, told.working[0].done, told.working[0].total) == (
        "training",
        3,
        4,
    )
    text = "\n".join(found.lines())
    assert "tiny: 4 runs: 2 complete, 1 failed, 1 running; about" in text
    assert "running   defence asft, seed 0: training, step 3 of 4 (process" in text
    assert "failed    defence safe-lora, seed 0: model.path: no such folder." in text

    answers = sweep.store.place("runs", asft.digest) / "eval" / "outputs.jsonl"
    answers.parent.mkdir(parents=True)
    answers.write_text("{}\n" * 5 + "{")
    assert (
        "defence asft, seed 0: answering, 5 answers (process" in report(sweep.store.path).lines()[1]
    )


def test_a_run_whose_process_is_gone_is_missing(sweep: Sweep) -> None:
    hold(sweep, sweep.runs[1], replace(lock.Holder.here(), process="1"))
    found = report(sweep.store.path)
    assert found.state == "stopped"
    assert found.sweeps[0].counts == {"complete": 1, "failed": 0, "running": 0, "missing": 3}
    assert found.sweeps[0].left_s is None


def test_it_agrees_with_the_sweep_itself_and_lists_all_whatever_was_chosen(sweep: Sweep) -> None:
    record(sweep, sweep.runs[2], error="e.")
    chosen = Sweep(sweep.config, {"defence": ["asft"]})
    list_runs(chosen)
    counts = report(sweep.store.path).sweeps[0].counts
    assert {state: n for state, n in counts.items() if n} == dict(sweep.counts())
    assert len(chosen.runs) == 1


def test_an_older_record_of_a_cell_does_not_count(
    sweep: Sweep, tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    for run in sweep.runs:
        record(sweep, run)
    assert report(sweep.store.path).state == "complete"
    tree: dict[str, Any] = sweep_tree(tmp_path, llama_base, llama_adapter)
    tree["defaults"]["training"]["max_steps"] = 5
    list_runs(Sweep(made(tree)))
    assert report(sweep.store.path).sweeps[0].counts["missing"] == 3


def test_of_records_alone_it_tells_what_they_tell(sweep: Sweep) -> None:
    record(sweep, sweep.runs[1], error="no rows.")
    (sweep.results / "notes.json").write_text("[1, 2]")
    found = report(sweep.results)
    (told,) = found.sweeps
    assert (told.total, told.counts["complete"], told.counts["failed"]) == (None, 1, 1)
    assert found.lines()[0].startswith("tiny: records: 1 complete, 1 failed; ")
    assert found.lines()[1] == "  failed    defence sft, seed 0: no rows."
    assert "what is missing, `anchortune sweep FILE --status` tells" in found.lines()[-1]


def test_what_is_neither_is_a_sentence(sweep: Sweep, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    for place in (empty, tmp_path / "nowhere"):
        with pytest.raises(JobError, match=r"no job's folder; .* the work or results of a sweep"):
            read_any(place)
    (empty / "locks" / "runs-0123").mkdir(parents=True)
    with pytest.raises(JobError, match="from before sweeps listed their runs there"):
        read_any(empty)
    (sweep.store.path / "sweeps" / "tiny.json").write_text("{}")
    with pytest.raises(JobError, match="is no list of a sweep's runs"):
        read_any(sweep.store.path)


def test_the_command(sweep: Sweep) -> None:
    run = CliRunner().invoke
    shown = run(app, ["status", str(sweep.store.path)], catch_exceptions=False)
    assert shown.stdout.startswith("tiny: 4 runs: 1 complete, 3 missing; ")
    told = run(app, ["status", str(sweep.store.path), "--json"], catch_exceptions=False)
    assert json.loads(told.stdout)["sweeps"][0]["counts"]["missing"] == 3
    ended = run(app, ["status", str(sweep.results), "--watch"], catch_exceptions=False)
    assert "1 complete" in ended.stdout


def test_a_sweep_says_how_long_the_rest_takes(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(found: Sweep, before: float | None, told: Any) -> None:
        for run in found.runs[1:]:
            now[0] += 50.0
            record(sweep, run)
            told(run, found.record(run))

    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("anchortune.jobs.pool.in_this_process", work)
    file = tmp_path / "sweep.yaml"
    file.write_text(sweep.config.model_dump_json())
    result = CliRunner().invoke(app, ["sweep", str(file)], catch_exceptions=False)
    lines = [line for line in result.stderr.splitlines() if line.startswith("[")]
    assert [line.partition("complete, ")[2] for line in lines] == [
        "60 s; about 2 min left",
        "60 s; about 50 s left",
        "60 s",
    ]
