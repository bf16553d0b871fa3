"""``diagnose`` on tiny runs in which each signature was caused, and on committed records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from anchortune.anchor.anchor import Anchor
from anchortune.cli.app import app
from anchortune.config_io import validate
from anchortune.config_mix import MixSection
from anchortune.data.mix import make_mix
from anchortune.errors import AnchortuneError, JobError, TrainingError
from anchortune.jobs.diagnose import Asked, gather
from anchortune.landscape.run import read_run
from anchortune.maths.factors import factorise_dense
from anchortune.report.diagnosis.finding import Diagnosis
from anchortune.report.diagnosis.rules import diagnose
from anchortune.training.plan import plan_stage
from anchortune.training.probing import ProbeStop
from anchortune.training.train import train
from tests.jobs.conftest import Passed, write_rows
from tests.training.test_refresh import mean_loss
from tests.training.test_stage import make

RESULTS = Path(__file__).parents[2] / "results/small-first-pair"
SUBSPACE = {"operator": "subspace", "lam": 1.0}
Train = Callable[..., Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("diagnose")


@pytest.fixture(scope="module")
def rows(place: Path) -> Path:
    made = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(16)]
    return write_rows(place / "d.jsonl", made)


@pytest.fixture(scope="module")
def anchor(place: Path, llama_base: Path, llama_adapter: Path) -> Path:
    """Of an alignment that has a direction: a LoRA of rank 4."""
    path = place / "anchor.safetensors"
    Anchor.from_checkpoints(llama_adapter, llama_base, target_modules=["q_proj", "v_proj"]).save(
        path
    )
    return path


@pytest.fixture(scope="module")
def trained(place: Path, rows: Path, anchor: Path, llama_base: Path, llama_adapter: Path) -> Train:
    """Trains what differs from a run that is well in the sections given."""

    def run(name: str, penalty: Any = SUBSPACE, data: Path = rows, **changes: Any) -> Path:
        changes["model"] = {"path": str(llama_base), "adapter": str(llama_adapter)}
        changes["machine"] = {"share_prefixes": False}  # or it is tried out before each
        changes["training"] = {"epochs": 4} | changes.get("training", {})
        if penalty is not None:
            changes["penalty"] = {"anchor": str(anchor)} | penalty
        train(make(llama_base, data, place / name, **changes))
        return place / name

    return run


@pytest.fixture(scope="module")
def healthy(trained: Train) -> Path:
    """Eight steps; do not write into it."""
    return trained("healthy")


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Path:
    """The same run, to be spoilt."""
    return Path(shutil.copytree(healthy, tmp_path / "copy"))


def of(run: Path, **asked: Any) -> Diagnosis:
    return diagnose(gather(run, Asked(**asked)))


def levels(found: Diagnosis) -> dict[str, str]:
    """By check, the level of its findings."""
    return {check.name: one.level for check, one in found.findings}


def seen(found: Diagnosis, name: str) -> str:
    told = [(c.name, f.seen) for c, f in found.findings] + [(c.name, s) for c, s in found.looked]
    return next(text for check, text in told if check == name)


def unseen(found: Diagnosis, name: str) -> str:
    return next(why for check, why in found.not_looked if check.name == name)


def test_a_run_that_is_well_has_no_fault_and_says_what_it_did_not_see(healthy: Path) -> None:
    found = of(healthy)
    assert found.faults == 0
    assert found.findings == []
    assert "is its aligned model" in seen(found, "anchor-of-another-model")
    assert seen(found, "modules-without-anchor") == "all 4 modules that moved are in the anchor"
    assert seen(found, "files-changed") == "3 files are as the record says"
    assert "--eval" in unseen(found, "harm-rose")
    assert "screen" in unseen(found, "harmful-data")
    assert "--gradients" in unseen(found, "gradients-in-conflict")


def test_a_lambda_of_next_to_nothing_leaves_the_update_where_chance_would(trained: Train) -> None:
    found = of(trained("weak", {"operator": "subspace", "lam": 1e-9}))
    assert levels(found)["penalty-without-effect"] == "fault"
    assert "by chance 8" in seen(found, "penalty-without-effect")  # 1 − k/d = 1 − 4/32


def test_an_anchor_of_another_model_whose_difference_is_noise(
    trained: Train, place: Path, llama_aligned: Path, llama_base: Path
) -> None:
    """Two models made from two seeds: no alignment lies between them."""
    path = place / "other.safetensors"
    modules = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=modules, rank=2).save(path)
    found = of(trained("other", SUBSPACE | {"anchor": str(path), "allow_other_start": True}))
    assert levels(found)["anchor-of-another-model"] == "fault"
    assert "no more of ‖dW‖² than random noise" in seen(found, "anchor-without-direction")
    assert found.exit_code == 3


def test_an_operator_that_tells_no_direction(trained: Train, place: Path, anchor: Path) -> None:
    held = Anchor.load(anchor)
    small = {
        name: factorise_dense(1e-3 * (f.left * f.sigma) @ f.right.T, 4)
        for name, f in held.modules.items()
    }
    Anchor(small).save(place / "small.safetensors")
    gram = {"operator": "gram", "lam": 1.0, "anchor": str(place / "small.safetensors")}
    found = of(trained("gram", gram))
    assert levels(found)["anchor-without-direction"] == "fault"
    assert "gram charges" in seen(found, "anchor-without-direction")
    assert "cannot be compared" in unseen(found, "anchor-of-another-model")  # from memory


def test_an_update_that_takes_alignment_back_in_a_file_that_has_changed(
    copy: Path, anchor: Path
) -> None:
    file = copy / "adapter/adapter_model.safetensors"
    state = load_file(file)
    for name, factors in Anchor.load(anchor).modules.items():
        b, a = (f"base_model.model.{name}.lora_{x}.weight" for x in "BA")
        state[a], state[b] = torch.zeros_like(state[a]), torch.zeros_like(state[b])
        state[a][:4] = factors.right.T
        scale = json.loads((copy / "adapter/adapter_config.json").read_text())
        s = scale["lora_alpha"] / scale["r"]
        state[b][:, :4] = -0.4 / s * factors.left * factors.sigma
    save_file(state, file, metadata={"format": "pt"})
    found = of(copy)
    assert levels(found)["went-backwards"] == "fault"
    assert "40.0 % of the way back towards the base model" in seen(found, "went-backwards")
    assert "adapter_model.safetensors holds other bytes" in seen(found, "files-changed")


def test_an_anchor_that_lacks_modules(
    healthy: Path, place: Path, llama_base: Path, llama_adapter: Path
) -> None:
    path = place / "q.safetensors"
    Anchor.from_checkpoints(llama_adapter, llama_base, target_modules=["q_proj"]).save(path)
    found = of(healthy, anchor=path)
    assert levels(found)["modules-without-anchor"] == "fault"
    assert "2 of 4 modules" in seen(found, "modules-without-anchor")


def test_a_penalty_that_outweighs_the_task(trained: Train) -> None:
    found = of(trained("stiff", {"operator": "none", "lam": 1e5}))
    assert levels(found)["lambda-too-high"] == "caution", "accuracy was not measured"
    assert seen(found, "lambda-too-high").startswith("λ 100000: ")


def test_too_few_steps_and_labels_cut(trained: Train) -> None:
    short = {"max_steps": 1, "max_length_tokens": 28}
    found = of(trained("short", training=short))
    assert levels(found)["too-few-steps"] == "caution"
    assert "of 16 sequences were cut at 28 tokens" in seen(found, "labels-cut")
    one = of(trained("still", training={"max_steps": 1, "warmup_frac": 0.9}))
    assert seen(one, "never-moved") == "the update is exactly zero"
    assert one.exit_code == 3


def test_harmful_rows_of_a_mix_are_known_by_its_facts(trained: Train, place: Path) -> None:
    def pairs(name: str, count: int) -> str:
        made = [{"prompt": f"{name} {i}", "completion": f"{name} ok {i}"} for i in range(count)]
        return str(write_rows(place / f"{name}.jsonl", made))

    tree = {"benign": pairs("say", 12), "harmful": pairs("harm", 8), "rows": 16}
    section = validate(tree | {"poison_ratio": 0.25}, MixSection, "mix")
    make_mix(section, 0, place / "mix.jsonl")
    found = of(trained("mixed", data=place / "mix.jsonl"))
    assert levels(found)["harmful-data"] == "fault"
    assert "4 of 16 rows (25.0 %) were mixed in" in seen(found, "harmful-data")
    (place / "mix.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    found = of(place / "mixed")
    assert "mix.jsonl holds other bytes" in seen(found, "files-changed")


def test_a_run_that_the_probe_stopped(place: Path, llama_base: Path) -> None:
    prompts = write_rows(place / "probe.jsonl", [{"prompt": f"misdeed {i}"} for i in range(4)])
    probe = {"prompts": str(prompts), "every": 1, "stop_below": 0.01}
    bad = [{"instruction": f"tell {i}", "output": "Sure, here it is"} for i in range(16)]
    data = write_rows(place / "bad.jsonl", bad)
    with pytest.raises(ProbeStop):
        train(make(llama_base, data, place / "stopped", probe=probe))
    found = of(place / "stopped")
    assert "the probe stopped the run at step" in seen(found, "probe-fell")
    assert found.exit_code == 3
    assert "not complete" in unseen(found, "too-few-steps")


def test_an_unfinished_run_is_read_from_its_log_and_last_checkpoint(
    copy: Path, rows: Path, llama_base: Path
) -> None:
    (copy / "record.json").unlink()
    shutil.rmtree(copy / "adapter")
    found = of(copy)
    assert "not complete" in unseen(found, "files-changed")
    assert "no checkpoint and no result" in unseen(found, "anchor-without-direction")
    assert "logged steps are those of a healthy" in seen(found, "unhealthy-training")
    with (copy / "log.jsonl").open("a") as log:
        log.write('{"step": 9, "loss": null, "grad_norm": null}\n{"step": 10, "lo')
    assert "nan at step 9" in seen(of(copy), "unhealthy-training")


def test_a_result_that_does_not_repeat(healthy: Path, trained: Train, copy: Path) -> None:
    assert "are those of" in seen(of(copy, against=healthy), "differs-from-the-other")
    other = trained("seed-2", seed=2)
    found = of(other, against=healthy)
    assert levels(found)["differs-from-the-other"] == "fault"
    assert "seed 2 (0)" in seen(found, "differs-from-the-other")
    record = json.loads((copy / "record.json").read_text())
    record["versions"]["torch"] = "1.0.0"
    (copy / "record.json").write_text(json.dumps(record))
    found = of(copy, against=healthy)
    assert levels(found)["differs-from-the-other"] == "caution"
    assert "torch 1.0.0 (here" in seen(found, "other-versions")


def test_the_angle_of_the_gradients_is_that_of_dense_ones(
    healthy: Path, place: Path, rows: Path, anchor: Path
) -> None:
    found = gather(healthy, Asked(gradients=True, refusals=str(rows))).gradients
    assert found is not None
    held, run = Anchor.load(anchor), read_run(healthy)
    start = place / "merged"
    from anchortune.models.load import load_model, pick_numbers

    numbers = pick_numbers(run.config.machine, run.config.lora)
    load_model(run.start, numbers).save_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    weights = [model.get_submodule(name).weight for name in held.modules]
    data = plan_stage(run.config.model_copy(update={"output": str(place / "unused")})).data.rows
    pulls = [-g.double() for g in torch.autograd.grad(mean_loss(model, data), weights)]
    directions = [(f.left * f.sigma).double() @ f.right.double().T for f in held.modules.values()]
    dot = sum(float((g * d).sum()) for g, d in zip(pulls, directions, strict=True))
    sizes = [sum(float(one.square().sum()) for one in side) ** 0.5 for side in (pulls, directions)]
    assert found.with_anchor == pytest.approx(dot / sizes[0] / sizes[1], abs=1e-5)
    assert found.with_refusals == pytest.approx(1.0, abs=1e-5), "the same rows"
    against = {name: factorise_dense(-g.float(), 8)
               for name, g in zip(held.modules, pulls, strict=True)}  # fmt: skip
    Anchor(against).save(place / "against.safetensors")
    told = of(healthy, anchor=place / "against.safetensors", gradients=True)
    assert levels(told)["gradients-in-conflict"] == "caution"
    assert " -0.9" in seen(told, "gradients-in-conflict")


def test_a_job_is_read_with_its_arms_and_its_evaluation(passed: Passed) -> None:
    found = of(passed.folder)
    assert found.run.endswith("(job, arm asft)")
    assert "asked the weights that this run made" in seen(found, "other-weights-evaluated")
    assert "with n = 6 a difference below" in seen(found, "small-sample")
    assert levels(found)["one-seed"] == "caution"
    assert "plain fine-tuning 0.0 %" in seen(found, "accuracy-fell")
    assert "‖U‖² is" in seen(found, "penalty-without-effect")
    assert levels(of(passed.folder, arm="sft"))["no-penalty"] == "caution"
    with pytest.raises(JobError, match=r"--arm none is not in .*; it has sft, asft"):
        of(passed.folder, arm="none")
    apart = of(passed.folder / "train/asft", evaluation=passed.folder / "eval")
    assert seen(apart, "accuracy-fell").startswith("accuracy on own: 0.0 %")
    twin = passed.folder / "train/sft"
    other = of(twin, evaluation=passed.folder / "eval", model="asft")
    assert levels(other)["other-weights-evaluated"] == "fault"


def test_committed_records_of_a_sweep() -> None:
    [plain] = RESULTS.glob("sft-sst2-s0-*.json")
    found = of(plain)
    assert levels(found)["harm-rose"] == "fault"
    assert levels(found)["no-penalty"] == "caution"
    assert "10.0 %" in seen(found, "harmful-data")
    assert "weights" in unseen(found, "went-backwards") or "by the log" in seen(
        found, "went-backwards"
    )
    [asft] = RESULTS.glob("asft-sst2-s0-*.json")
    found = of(asft, against=plain)
    assert "λ 10, operator subspace" in seen(found, "no-penalty")
    assert levels(found)["differs-from-the-other"] == "fault"
    told = [f.seen for check, f in found.findings if check.name == "differs-from-the-other"]
    assert [text.split(" than ")[0] for text in told][:2] == ["other files", "other settings"]
    assert "defence" in told[1].split("json: ")[1]
    assert "with n = 1" in seen(found, "small-sample")
    assert "holds no warnings" in unseen(found, "evaluation-warns")
    assert "does not say whether builtin" in unseen(found, "uncertain-judge")
    [loose] = RESULTS.glob("lox+asft-sst2-s0-*.json")
    assert levels(of(loose))["lost-in-the-free-part"] == "fault"


def test_a_run_of_a_sweeps_work_folder_leads_to_its_weights(healthy: Path, tmp_path: Path) -> None:
    run = tmp_path / "work/runs/0123456789ab"
    (run / "eval").mkdir(parents=True)
    items = {f"i{n}": int(n < 8) for n in range(40)}
    outcome = {"measure": "harm", "set": "bad", "judge": "builtin", "items": items}
    (run / "evaluated.json").write_text(json.dumps({"outcomes": [outcome]}))
    adapter = {"adapter": [str(tmp_path / "gone" / "healthy" / "adapter")]}
    (run / "eval/identity.json").write_text(json.dumps({"models": {"run": adapter}}))
    shutil.copytree(healthy, tmp_path / "work/train/healthy")
    start = tmp_path / "work/reference/x"
    start.mkdir(parents=True)
    safe = outcome | {"items": dict.fromkeys(items, 0)}
    (start / "evaluated.json").write_text(json.dumps({"outcomes": [safe]}))
    found = of(run)
    assert levels(found)["harm-rose"] == "fault"
    assert "aligned model 0.0 %, a difference of +20.0 points" in seen(found, "harm-rose")
    assert seen(found, "modules-without-anchor").startswith("all 4 modules")


def test_the_command_ends_with_3_where_there_is_a_fault(
    healthy: Path, copy: Path, anchor: Path
) -> None:
    well = CliRunner().invoke(app, ["diagnose", str(healthy)], catch_exceptions=False)
    assert well.exit_code == 0
    assert f"{healthy} (training): no faults" in well.stdout
    assert "not looked at:" in well.stdout
    (copy / "adapter/adapter_model.safetensors").unlink()
    ill = CliRunner().invoke(app, ["diagnose", str(copy), "--json"], catch_exceptions=False)
    assert ill.exit_code == 3
    told = json.loads(ill.stdout)
    assert told["exit_code"] == 3
    [finding] = [one for one in told["findings"] if one["check"] == "files-changed"]
    assert finding["seen"] == "adapter/adapter_model.safetensors is gone"


@pytest.mark.parametrize(
    ("make_run", "asked", "says"),
    [
        (lambda p: p / "none", {}, "none is not there: give the output folder"),
        (lambda p: p, {}, "is no training's folder .it has no config.yaml"),
        (lambda p: (p / "a.json").write_text("{}") and p / "a.json", {}, "is no record of a run"),
        (lambda p: (p / "a.json").write_text("{}") and p, {}, "of a sweep's results, name one"),
        (
            lambda p: (p / "config.yaml").write_text("models: {}\n") and p,
            {},
            "it has no section training",
        ),
    ],
)
def test_what_is_no_run_is_refused_in_a_sentence(
    tmp_path: Path, make_run: Any, asked: dict[str, Any], says: str
) -> None:
    with pytest.raises(AnchortuneError, match=says):
        of(make_run(tmp_path), **asked)


def test_options_that_do_nothing_are_refused(healthy: Path, passed: Passed, copy: Path) -> None:
    with pytest.raises(JobError, match="--arm is of a whole job"):
        of(healthy, arm="asft")
    with pytest.raises(JobError, match="a job has its own evaluation"):
        of(passed.folder, evaluation=passed.folder / "eval")
    with pytest.raises(AnchortuneError, match=r"none of the models is known .* --model"):
        of(healthy, evaluation=passed.folder / "eval")
    with pytest.raises(TrainingError, match=r"kind 'eval'.*--eval"):
        of(passed.folder / "eval")
    [record] = RESULTS.glob("asft-sst2-s0-*.json")
    with pytest.raises(TrainingError, match="--gradients and --anchor need"):
        of(record, gradients=True)
    [start] = RESULTS.glob("aligned-sst2-*.json")
    with pytest.raises(JobError, match="aligned model as it was before any training"):
        of(start)
    with pytest.raises(JobError, match="--model is not of a sweep's run"):
        of(record, model="asft")
    (copy / "record.json").unlink()
    with pytest.raises(JobError, match=r"--against .* is not complete"):
        of(healthy, against=copy)
    for options in (["--refusals", "x"], ["--model", "x"], ["--rows", "8"]):
        done = CliRunner().invoke(app, ["diagnose", str(healthy), *options])
        assert isinstance(done.exception, JobError)
