"""Sweeps on a tiny pair: what is run, shared, skipped, recorded, and run again."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import AnchortuneError, ConfigError, DataError
from anchortune.jobs.pool import in_this_process
from anchortune.jobs.sweep import Run, Sweep
from anchortune.jobs.sweep_status import list_runs, read_sweeps
from anchortune.record import read_record
from anchortune.report.runs import RunRecord
from tests import tiny
from tests.jobs.conftest import write_rows
from tests.jobs.sweeps import made, records, result, sweep_tree

LISA_BASE = {"name": "lisa", "start": "base"}


def do(sweep: Sweep, before: float | None = None) -> list[str]:
    """What was run, as lines."""
    told: list[str] = []

    def tell(run: Run, record: RunRecord) -> None:
        told.append(f"{run.line()}: {record.state}")

    in_this_process(sweep, before, tell)
    return told


@pytest.fixture(scope="module")
def _whole(
    tmp_path_factory: pytest.TempPathFactory, llama_base: Path, llama_adapter: Path
) -> tuple[dict[str, Any], Path, Path]:
    root = tmp_path_factory.mktemp("sweep") / "root"
    root.mkdir()
    tree = sweep_tree(root, llama_base, llama_adapter)
    told = do(Sweep(made(tree)))
    assert told == [
        "defence aligned: complete",
        *(f"defence {name}, seed 0: complete" for name in ("sft", "safe-lora", "asft")),
    ]
    return tree, root, Path(shutil.copytree(root, root.with_name("as-it-was")))


@pytest.fixture
def whole(_whole: tuple[dict[str, Any], Path, Path]) -> tuple[dict[str, Any], Path]:
    """(the config, the folder) of a sweep that was run; every test finds it as it was then."""
    tree, root, copy = _whole
    shutil.rmtree(root)
    shutil.copytree(copy, root)
    return tree, root


def test_records_hold_verdicts_by_item_and_no_path(whole: tuple[dict[str, Any], Path]) -> None:
    _, root = whole
    found = {run.labels["defence"]: run for run in records(root / "results").values()}
    assert set(found) == {"aligned", "sft", "safe-lora", "asft"}
    for name, run in found.items():
        told = [(one.measure, one.set, one.judge, len(one.items)) for one in run.outcomes]
        assert told == [
            ("refusal", "bad", "refusal", 6),
            ("coherence", "bad", None, 6),
            ("accuracy", "own", None, 6),
        ]
        assert run.state == "complete"
        assert ("steps" in run.numbers) == (name != "aligned")
        assert str(root) not in json.dumps(run.model_dump(mode="json"))
    items = [set(run.outcomes[0].items) for run in found.values()]
    assert items.count(items[0]) == 4  # the same prompts, so that they can be paired
    asft = found["asft"]
    assert asft.numbers["lam"] == 1.0
    assert asft.numbers["asft/update_energy"] > 0
    assert (asft.numbers["rows"], asft.numbers["harmful_rows"]) == (16, 2)
    assert {"model.path", "model.adapter", "mix.harmful.0.path", "anchor.built"} <= set(asft.inputs)
    assert asft.settings["mix"]["benign"][0]["path"] == "task.jsonl"
    assert "refusals" not in {key for key, value in asft.settings.items() if value}
    names = [path.name for path in (root / "results").iterdir()]
    assert f"asft-s0-{asft.digest[:12]}.json" in names
    assert f"aligned-{found['aligned'].digest[:12]}.json" in names


def test_what_comes_after_training_shares_it(whole: tuple[dict[str, Any], Path]) -> None:
    _, root = whole
    assert len(list((root / "work" / "train").iterdir())) == 2  # sft and safe-lora; asft
    mended = [path.parent for path in (root / "work" / "runs").glob("*/adapter")]
    assert len(mended) == 1
    for name in ("anchors", "models"):
        assert len(list((root / "work" / name).iterdir())) == 1


def test_the_training_and_the_evaluation_are_those_of_the_commands(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """The same run by ``train`` and ``eval`` alone, on the model as it is named."""
    from anchortune.config import TrainConfig
    from anchortune.config_io import validate
    from anchortune.evaluation.config import EvalConfig
    from anchortune.evaluation.evaluate import evaluate
    from anchortune.files import sha256_file
    from anchortune.training.train import train

    tree, root = whole
    defaults = tree["defaults"]
    [mix] = (root / "work" / "mixes").glob("*.jsonl")
    kept = {key: defaults[key] for key in ("model", "lora", "training", "machine")}
    config = {**kept, "data": [{"path": str(mix)}], "seed": 0, "output": str(tmp_path / "train")}
    record = train(validate(config, TrainConfig, "here"))
    weights = "adapter_model.safetensors"
    mine = sha256_file(tmp_path / "train" / "adapter" / weights)
    trained = {sha256_file(path) for path in (root / "work" / "train").glob(f"*/adapter/{weights}")}
    assert mine in trained

    model = defaults["model"]
    adapters = [model["adapter"], str(tmp_path / "train" / record.outputs["path"])]
    asked = defaults["evaluate"] | {
        "models": {
            "aligned": {"path": model["path"], "adapter": [model["adapter"]]},
            "sft": {"path": model["path"], "adapter": adapters},
        },
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(tmp_path / "eval"),
    }
    measured = evaluate(validate(asked, EvalConfig, "here")).metrics["measures"]
    [sft] = [r for r in records(root / "results").values() if r.labels["defence"] == "sft"]
    for one in sft.outcomes:
        [same] = [m for m in measured if (m["kind"], m["set"]) == (one.measure, one.set)]
        assert sum(one.scored) / len(one.scored) == same["figures"]["sft"]["value"]


def test_what_is_done_is_not_done_again(whole: tuple[dict[str, Any], Path]) -> None:
    tree, root = whole
    before = {path: path.read_bytes() for path in (root / "results").iterdir()}
    assert do(Sweep(made(tree))) == []
    shutil.rmtree(root / "work")  # the records are enough
    assert do(Sweep(made(tree))) == []
    assert {path: path.read_bytes() for path in (root / "results").iterdir()} == before


def test_rows_a_step_are_a_setting_and_rows_held_at_once_are_not(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, _ = whole
    defaults = tree["defaults"]
    rows = defaults["training"]["batch_size"]

    def missing(**changed: Any) -> int:
        return Sweep(made(tree, defaults=defaults | changed)).counts().get("missing", 0)

    assert missing(machine=defaults["machine"] | {"micro_batch_size": 1}) == 0
    assert missing(training=defaults["training"] | {"batch_size": rows * 2}) == 3


def test_a_cell_may_make_its_anchor_again_and_needs_a_penalty_for_it(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, root = whole
    again = {"anchor_refresh": {"every": 2, "data": str(root / "refusals.jsonl"), "rank": 2}}
    penalty = {"defence": [{"name": "asft", "operator": "subspace", "lam": 1.0}]}
    sweep = Sweep(made(tree, axes={"defence": {"again": penalty | again}}))
    assert do(sweep) == ["defence again, seed 0: complete"]
    [log] = [
        text
        for path in (root / "work" / "train").glob("*/log.jsonl")
        if "refresh/cosine_to_first" in (text := path.read_text())
    ]
    assert len(log.splitlines()) == 4
    [run] = [r for r in records(root / "results").values() if r.labels["defence"] == "again"]
    assert "anchor_refresh.data.path" in run.inputs
    with pytest.raises(ConfigError, match="there is no penalty"):
        _ = Sweep(made(tree, axes={"defence": {"sft": again}})).runs


def test_another_seed_and_another_axis_are_all_that_is_run(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, _ = whole
    config = made(tree, seeds=[0, 7])
    assert Sweep(config).counts() == {"complete": 4, "missing": 3}
    only = Sweep(config, {"defence": ["sft"]})
    assert do(only) == ["defence sft, seed 7: complete"]
    for wrong, said in (
        ({"defence": ["sft", "stf"]}, "--only defence=stf: there is aligned, sft,"),
        ({"lam": ["1"]}, "--only lam: there is no such axis"),
    ):
        with pytest.raises(ConfigError, match=said):
            _ = Sweep(config, wrong).runs
    lam = {"key": "defence.0.lam", "values": [1.0], "only": {"defence": ["asft"]}}
    renamed = Sweep(made(tree, axes=tree["axes"] | {"lam": lam}))
    assert renamed.counts() == {"complete": 3, "missing": 1}
    renamed.adopt()  # the same run under other labels
    assert renamed.counts() == {"complete": 4}
    [run] = [run for run in renamed.runs if run.labels["defence"] == "asft"]
    record = renamed.record(run)
    assert record is not None
    assert record.labels == {"defence": "asft", "lam": "1"}


def test_a_file_may_be_missing_that_only_an_unasked_run_names(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, root = whole
    anchor = root / "gone.safetensors"
    alt = {"defence": ["asft-alt"], "harmful_anchor": str(anchor)}
    gone = {"model.path": "package:not-here-at-all"}
    config = made(tree, axes={"defence": tree["axes"]["defence"] | {"alt": alt, "gone": gone}})
    known = sorted(tree["axes"]["defence"])
    anchor.touch()
    asked = Sweep(config, {"defence": [*known, "alt"]})
    assert [run.labels["defence"] for run in asked.runs] == [*tree["axes"]["defence"], "alt"]
    assert asked.left_out == ["defence aligned", "defence gone, seed 0"]  # of another model
    list_runs(asked)
    assert total_of(root) == (7, 3)  # two aligned models; alt is to be done, two are left out
    anchor.unlink()
    asked = Sweep(config, {"defence": known})
    assert [run.labels["defence"] for run in asked.runs] == [*tree["axes"]["defence"]]
    list_runs(asked)  # what others listed is kept
    assert total_of(root) == (7, 3)
    for only, said in (
        ({"defence": ["aligned"]}, "package:not-here-at-all"),  # each model's is asked for
        (None, "package:not-here-at-all: the package is not installed"),
        ({"defence": ["alt"]}, r"gone\.safetensors: there is no such file"),
        ({"defence": ["sft", "alt"]}, r"gone\.safetensors: there is no such file"),
        ({"defence": ["alto"]}, "--only defence=alto: there is aligned, sft, safe-lora, asft, alt"),
    ):
        with pytest.raises(AnchortuneError, match=said):
            _ = Sweep(config, only).runs


def total_of(root: Path) -> tuple[int | None, int]:
    """(runs in all, missing ones), as ``anchortune status`` tells them."""
    report = read_sweeps(root / "work")
    assert report is not None
    [found] = report.sweeps
    assert (report.state == "stopped") == bool(found.counts["missing"])
    return found.total, found.counts["missing"]


def test_a_changed_file_makes_stale_what_was_made_from_it(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, root = whole
    rows = [{"prompt": f"speak {i}", "completion": f"ok {i}"} for i in range(24)]
    write_rows(root / "task.jsonl", rows)
    sweep = Sweep(made(tree))
    assert sweep.counts() == {"complete": 1, "missing": 3}
    assert len(sweep.stale()) == 3
    assert len(do(sweep)) == 3
    assert sweep.stale() == []
    assert len(records(root / "results")) == 4  # what was stale is gone

    write_rows(root / "refusals.jsonl", [{"prompt": "a", "completion": "I cannot."}])
    assert Sweep(made(tree)).counts() == {"complete": 4}  # nothing here trains on refusals
    write_rows(root / "bad.jsonl", [{"prompt": f"vice {i}"} for i in range(6)])
    assert Sweep(made(tree)).counts() == {"missing": 4}


def test_a_failed_run_is_recorded_and_the_others_go_on(
    whole: tuple[dict[str, Any], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="anchortune")  # as the command line has it
    tree, root = whole
    axes = {"rows": {"key": "mix.rows", "values": [1000, 8]}}
    sweep = Sweep(made(tree, axes=axes))
    told = do(sweep)
    assert told == [
        "defence sft, rows 1000, seed 0: failed",
        "defence sft, rows 8, seed 0: complete",
    ]
    [(run, error)] = sweep.failures()
    record = sweep.record(run)
    assert record is not None
    assert (record.state, record.outcomes, record.error) == ("failed", [], error)
    assert "Traceback" not in error
    assert str(root) not in error
    log = (sweep.store.place("runs", run.digest) / "log.txt").read_text()
    assert "Traceback" in log
    assert "failed: " in log

    assert do(Sweep(made(tree, axes=axes))) == []  # not by itself
    more = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(24)]
    write_rows(root / "task.jsonl", more)  # the same rows: nothing is stale
    assert do(sweep, before=time.time()) == ["defence sft, rows 1000, seed 0: failed"]


def test_an_anchor_of_another_model_fails_before_any_training(
    whole: tuple[dict[str, Any], Path], tmp_path: Path, llama_base: Path
) -> None:
    from anchortune.anchor.anchor import Anchor

    tree, root = whole
    other = tiny.tiny_llama(tmp_path / "other", seed=9)
    path = tmp_path / "anchor.safetensors"
    Anchor.from_checkpoints(other, llama_base, target_modules=["q_proj", "v_proj"]).save(path)
    axes = {"defence": {"safe-lora": {"defence": ["safe-lora"], "anchor": {"path": str(path)}}}}
    changed = made(tree, axes=axes, defaults={"training": {"max_steps": 3}})
    before = len(list((root / "work" / "train").iterdir()))
    assert do(Sweep(changed)) == ["defence safe-lora, seed 0: failed"]
    assert len(list((root / "work" / "train").iterdir())) == before
    [record] = [run for run in records(root / "results").values() if run.state == "failed"]
    assert "holds other weights than" in str(record.error)
    assert "or set anchor.allow_other_start" in str(record.error)
    allowed = {"path": str(path), "allow_other_start": True}
    for method in ({"name": "safe-lora"}, {"name": "asft", "rank": 2}):  # after training, and in it
        axes = {"defence": {method["name"]: {"defence": [method], "anchor": allowed}}}
        changed = made(tree, axes=axes, defaults={"training": {"max_steps": 3}})
        assert do(Sweep(changed)) == [f"defence {method['name']}, seed 0: complete"]


def test_another_start_is_allowed_of_a_made_anchor_only_and_unset_is_false(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, root = whole
    with pytest.raises(ConfigError, match="allow_other_start is for an anchor at a path"):
        made(tree, defaults={"anchor": {"allow_other_start": True}}).cells()
    (root / "a.safetensors").write_bytes(b"")
    digests = []
    for extra in ({}, {"allow_other_start": False}):
        anchor = {"path": str(root / "a.safetensors"), **extra}
        digests.append([run.digest for run in Sweep(made(tree, defaults={"anchor": anchor})).runs])
    assert digests[0] == digests[1]  # the key is newer than some records


def test_one_run_under_two_labels_is_refused(whole: tuple[dict[str, Any], Path]) -> None:
    tree, _ = whole
    axes = {"defence": {"sft": {}, "plain": {}}}
    with pytest.raises(ConfigError, match="are one and the same run: defence sft, seed 0; defence"):
        _ = Sweep(made(tree, axes=axes)).runs


@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"axes": {"defence": {"lisa": {"defence": "lisa"}}}}, ConfigError, "lisa needs refusals"),
        (
            {"axes": {"defence": {"x": {"defence": ["asft-alt"]}}}},
            ConfigError,
            "asft-alt needs harmful_anchor",
        ),
        (
            {"axes": {"defence": {"x": {"defence": ["safe-lora"], "lora": None}}}},
            ConfigError,
            "x: defence safe-lora mends a LoRA update and lora is null",
        ),
        (
            {"axes": {"defence": {"x": {"defence": [LISA_BASE, "safe-lora"]}}}},
            ConfigError,
            "starts from the base model, but safe-lora measures from the aligned one",
        ),
        (
            {"axes": {"defence": {"x": {"defence": ["bea", "ptst"]}}}},
            ConfigError,
            "bea and ptst each bring a system prompt",
        ),
        ({"axes": {"d": {"x": {"mix.benign": "nowhere.jsonl"}}}}, AnchortuneError, "nowhere.jsonl"),
        ({"axes": {"d": {"x": {"mix.benign": "data:a.jsonl"}}}}, DataError, "ANCHORTUNE_DATA"),
    ],
)
def test_what_is_lacking_is_told_before_any_work(
    whole: tuple[dict[str, Any], Path],
    changes: dict[str, Any],
    kind: type[AnchortuneError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ANCHORTUNE_DATA", raising=False)
    tree, _ = whole
    with pytest.raises(kind) as caught:
        _ = Sweep(made(tree, defaults={"refusals": []}, **changes)).runs
    assert said in str(caught.value)


def test_the_aligned_model_is_asked_once_for_each_evaluation(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    tree, _ = whole
    other = write_rows(tmp_path / "other.jsonl", [{"text": f"t {i}", "label": "ok"} for i in "ab"])
    task = tree["defaults"]["evaluate"]["tasks"][0] | {"path": str(other), "label": "other"}
    axes = {
        "task": {"own": {}, "other": {"evaluate": {"tasks": [task]}}},
        "p": {"key": "mix.poison_ratio", "values": [0.0, 0.25]},
    }
    runs = Sweep(made(tree, axes=axes, reference=["aligned", "base"])).runs
    assert [run.labels for run in runs[:4]] == [
        {"defence": "aligned", "task": "own"},
        {"defence": "aligned", "task": "other"},
        {"defence": "base", "task": "own"},
        {"defence": "base", "task": "other"},
    ]
    assert len(runs) == 8
    assert len({run.reference for run in runs}) == 2


def test_a_model_is_asked_with_the_prompt_that_its_method_needs(
    whole: tuple[dict[str, Any], Path],
) -> None:
    tree, _ = whole
    bea = {"name": "bea", "trigger_tokens": 5}
    defences = {
        "sft": {},
        "bea": {"defence": [bea]},
        "bea+safe-lora": {"defence": [bea, "safe-lora"]},
        "ptst": {"defence": ["ptst"]},
        "safe-lora+ptst": {"defence": ["safe-lora", "ptst"]},
    }
    sweep = Sweep(made(tree, axes={"defence": defences}))
    do(sweep)
    asked: dict[str, str | None] = {}
    for run in sweep.runs[1:]:
        name = run.labels["defence"]
        place = sweep.store.place("runs", run.digest) / "eval" / "identity.json"
        identity = json.loads(place.read_text())
        asked[name] = identity["models"]["run"]["system"]
        assert identity["models"]["aligned"]["system"] is None
        tokens = identity["sha256"]["tokens"]
        assert (tokens["run"] == tokens["aligned"]) == (name == "sft")  # what was put to each
        trained = read_record(sweep.store.place("train", run.training or ""))
        if name.startswith("bea"):
            assert asked[name] == trained.outputs["system_prompt"]
        record = sweep.record(run)
        assert record is not None
        assert record.numbers.get("rows_added") == (1 if name.startswith("bea") else None)
    assert asked["sft"] is None
    assert asked["bea"] == asked["bea+safe-lora"]
    assert asked["bea"]
    assert asked["ptst"] == asked["safe-lora+ptst"]
    assert "Refuse requests that are harmful" in (asked["ptst"] or "")


def test_a_training_cut_short_is_resumed(whole: tuple[dict[str, Any], Path]) -> None:
    """As ``train`` does it; here only that a run finds its training again."""
    tree, root = whole
    for path in (root / "results").glob("asft-*.json"):
        path.unlink()
    [run] = [run for run in Sweep(made(tree)).runs if run.labels["defence"] == "asft"]
    sweep = Sweep(made(tree))
    shutil.rmtree(sweep.store.place("runs", run.digest))
    trained = sweep.store.place("train", run.training or "") / "record.json"
    held = trained.read_bytes()
    assert do(sweep) == ["defence asft, seed 0: complete"]
    assert trained.read_bytes() == held
    assert read_record(trained.parent).kind == "train"


def test_results_do_not_depend_on_the_way_there(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    tree, root = whole
    again = made(tree, results=str(tmp_path / "results"), work=str(tmp_path / "work"))
    do(Sweep(again, {"defence": ["asft"]}))  # alone: it asks the aligned model by itself
    [record] = records(tmp_path / "results").values()
    assert result(record) == result(records(root / "results")[record.digest])
