"""A run's drift: shares against dense formulas, directions found again, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from anchortune.anchor.anchor import Anchor
from anchortune.cli.app import app
from anchortune.config import DataSection, MachineSection
from anchortune.errors import AnchorError, AnchortuneError, TrainingError
from anchortune.landscape.directions_again import Asked, directions_again, plan_directions
from anchortune.landscape.drift import measure_drift
from anchortune.landscape.run import read_run
from anchortune.landscape.separate import separate
from anchortune.maths.angles import chance_cosine
from anchortune.maths.factors import factorise_dense
from anchortune.report.drift import Drift
from anchortune.report.drift_plots import plot_drift
from anchortune.training.train import train
from tests.tiny import tiny_adapter
from tests.training.test_refresh import mean_loss
from tests.training.test_stage import make

CPU = MachineSection(device="cpu", dtype="float32")
KEEP = {"save_steps": 2, "keep_checkpoints": True}
MODULES = [f"model.layers.{layer}.self_attn.{kind}_proj" for layer in (0, 1) for kind in "qv"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "d.jsonl"
    made = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in made))
    return path


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path) -> Path:
    path = tmp_path_factory.mktemp("anchor") / "anchor.safetensors"
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=targets, rank=4).save(path)
    return path


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, rows: Path) -> Path:
    """Four steps with checkpoints after two and four. Do not write into it."""
    path = tmp_path_factory.mktemp("run") / "lora"
    train(make(llama_aligned, rows, path, machine=KEEP))
    return path


def adapter_update(folder: Path, name: str) -> torch.Tensor:
    state = load_file(folder / "adapter_model.safetensors")
    a, b = (state[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    return 4.0 * b @ a


def test_the_shares_at_each_checkpoint_are_those_of_the_dense_update(
    lora_run: Path, anchor: Path
) -> None:
    held, run = Anchor.load(anchor), read_run(lora_run)
    assert [place.label for place in run.places] == ["step 2", "step 4"]
    generator = torch.Generator().manual_seed(0)
    other = Anchor(
        {
            name: factorise_dense(torch.randn(f.shape, generator=generator), 2)
            for name, f in held.modules.items()
        }
    )
    found = measure_drift(run, held, other)
    for place in found.places:
        folder = lora_run / f"checkpoints/checkpoint-{place.step}"
        assert list(place.modules) == MODULES
        energy = inside = forwards = 0.0
        for name, lie in place.modules.items():
            u = adapter_update(folder, name)
            for shares, side in ((lie.anchor, held), (lie.harmful, other)):
                assert shares is not None
                f = side.modules[name]
                left, right = f.left.double(), f.right.double()
                d = left @ torch.diag(f.sigma.double()) @ right.T
                along = float((u * d).sum() / d.norm() / u.norm())
                assert shares.energy == pytest.approx(float(u.square().sum()))
                assert shares.forwards - shares.backwards == pytest.approx(along * abs(along))
                assert shares.inside == pytest.approx(float((left.T @ u).norm() / u.norm()) ** 2)
                assert shares.both == pytest.approx(
                    float((left.T @ u @ right).norm() / u.norm()) ** 2
                )
                assert shares.chance_inside == f.rank / f.shape[0]
                assert shares.chance_along == 1 / (f.shape[0] * f.shape[1])
            energy += lie.anchor.energy
            inside += lie.anchor.energy * lie.anchor.inside
            forwards += lie.anchor.energy * lie.anchor.forwards
        assert place.whole.anchor.energy == pytest.approx(energy)
        assert place.whole.anchor.inside == pytest.approx(inside / energy)
        assert place.whole.anchor.forwards == pytest.approx(forwards / energy)
    assert found.method == "sft"
    assert Drift.model_validate_json(found.model_dump_json()) == found


def test_a_full_training_is_measured_against_its_start(
    llama_aligned: Path, rows: Path, anchor: Path, tmp_path: Path
) -> None:
    train(
        make(llama_aligned, rows, tmp_path / "o", lora=None, machine=KEEP,
             training={"learning_rate": 1e-3})
    )  # fmt: skip
    run, held = read_run(tmp_path / "o"), Anchor.load(anchor)
    found = measure_drift(run, held)
    start = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    end = AutoModelForCausalLM.from_pretrained(
        tmp_path / "o/checkpoints/checkpoint-4", dtype=torch.float32
    )
    name = MODULES[1]
    u = (end.get_submodule(name).weight - start.get_submodule(name).weight).detach().double()
    left = held.modules[name].left.double()
    shares = found.places[-1].modules[name].anchor
    assert shares.energy == pytest.approx(float(u.square().sum()), rel=1e-5)
    assert shares.inside == pytest.approx(float((left.T @ u).norm() / u.norm()) ** 2, rel=1e-5)


def plan_of(run: Path, anchor: Path, rows: Path, rank: int = 32) -> Any:
    held = Anchor.load(anchor)
    asked = [Asked("aligned", DataSection(path=str(rows)), held)]
    return plan_directions(read_run(run), held, asked, rank=rank, machine=CPU)


def test_the_direction_again_is_the_gradient_at_the_checkpoint(
    lora_run: Path, llama_aligned: Path, anchor: Path, rows: Path
) -> None:
    plan = plan_of(lora_run, anchor, rows)
    [direction] = directions_again(plan)
    gradients = []
    for folder in (None, *(lora_run / f"checkpoints/checkpoint-{step}" for step in (2, 4))):
        model = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
        weights = [model.get_submodule(name).weight for name in MODULES]
        with torch.no_grad():
            for name, weight in zip(MODULES, weights, strict=True):
                if folder is not None:
                    weight += adapter_update(folder, name).float()
        found = torch.autograd.grad(mean_loss(model, plan.asked[0][1].rows), weights)
        gradients.append(torch.cat([one.flatten().double() for one in found]))
    cosines = [
        float(torch.nn.functional.cosine_similarity(gradients[0], one, dim=0))
        for one in gradients[1:]
    ]
    assert [turn.cosine for turn in direction.turns] == pytest.approx(cosines, abs=1e-5)
    assert cosines[1] < 0.999  # it has turned, or nothing was tested
    assert -1 <= direction.noise < 1
    assert direction.rows == 12
    assert direction.chance == chance_cosine(sum(p.numel() for p in weights))


def test_an_adapter_that_moves_nothing_turns_nothing(
    lora_run: Path, anchor: Path, rows: Path, tmp_path: Path
) -> None:
    shutil.copytree(lora_run, tmp_path / "o")
    for step in (2, 4):
        file = tmp_path / f"o/checkpoints/checkpoint-{step}/adapter_model.safetensors"
        still = {k: v * 0 if "lora_B" in k else v for k, v in load_file(file).items()}
        save_file(still, file, metadata={"format": "pt"})
    [direction] = directions_again(plan_of(tmp_path / "o", anchor, rows, rank=8))
    for turn in direction.turns:
        assert turn.cosine == pytest.approx(1.0, abs=1e-6)
        assert turn.angle_mean == pytest.approx(0.0, abs=0.1)
        assert turn.inside == pytest.approx(1.0, abs=1e-5)
        assert turn.anchor_cosine == pytest.approx(direction.start_cosine, abs=1e-6)
    with pytest.raises(TrainingError, match="update is zero at every checkpoint"):
        measure_drift(read_run(tmp_path / "o"), Anchor.load(anchor))


def test_two_adapters_are_compared_in_the_anchors_modules(
    llama_aligned: Path, anchor: Path, tmp_path: Path
) -> None:
    one = tiny_adapter(tmp_path / "benign", llama_aligned, seed=5)
    other = tiny_adapter(tmp_path / "harmful", llama_aligned, seed=6)
    held = Anchor.load(anchor)
    found = separate(held, one, other)
    assert [module.module for module in found.modules] == MODULES
    state = load_file(one / "adapter_model.safetensors")
    name = MODULES[0]
    a, b = (state[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    left = held.modules[name].left.double()
    share = float((left.T @ b @ a).norm() / (b @ a).norm()) ** 2
    assert found.modules[0].benign.left.share == pytest.approx(share, rel=1e-4)
    assert found.benign.left_chance == pytest.approx(4 / 32, rel=0.5)
    same = separate(held, one, one)
    assert same.between.cosine == pytest.approx(1.0)
    assert same.between.left == pytest.approx(1.0)
    assert same.benign == same.harmful
    told = found.to_json()
    assert told["between"]["cosine"] == found.between.cosine
    assert str(tmp_path) not in json.dumps(told)
    still = {k: v * 0 if "lora_B" in k else v for k, v in state.items()}
    save_file(still, one / "adapter_model.safetensors")
    with pytest.raises(AnchorError, match="moves no weight"):
        separate(held, one, other)


def test_the_command_writes_figures_and_a_picture(
    lora_run: Path, anchor: Path, rows: Path, tmp_path: Path
) -> None:
    given = [
        "drift", str(lora_run), "--anchor", str(anchor), "--refusals", str(rows), "--rows", "8",
        "-o", str(tmp_path / "o"), "--device", "cpu",
    ]  # fmt: skip
    plan = CliRunner().invoke(app, [*given, "--dry-run"], catch_exceptions=False)
    assert "gradients of 4 modules at 3 places, 32 rows" in plan.stdout
    assert not (tmp_path / "o").exists()
    done = CliRunner().invoke(app, given, catch_exceptions=False)
    assert done.exit_code == 0
    assert "step 4" in done.stdout
    assert "Two halves of the rows" in done.stdout
    assert "0.00%" not in done.stdout
    assert (tmp_path / "o/drift.png").stat().st_size > 10_000
    found = Drift.model_validate_json((tmp_path / "o/drift.json").read_text())
    assert [turn.step for turn in found.directions[0].turns] == [2, 4]
    assert "say 3" not in (tmp_path / "o/drift.json").read_text()
    plot_drift(found, tmp_path / "again.svg")
    plot_drift(found, tmp_path / "twice.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "twice.svg").read_bytes()
    with pytest.raises(AnchortuneError, match="a plot ends in"):
        plot_drift(found, tmp_path / "again.gif")


def test_what_cannot_be_looked_at_is_refused(
    lora_run: Path, llama_aligned: Path, anchor: Path, rows: Path, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match="no training's folder"):
        read_run(tmp_path)
    bare = tmp_path / "bare"
    shutil.copytree(lora_run, bare, ignore=shutil.ignore_patterns("checkpoints", "record.json"))
    with pytest.raises(TrainingError, match="no checkpoint and no result"):
        read_run(bare)
    shutil.copy(lora_run / "record.json", bare)
    only = read_run(bare)
    assert [(place.label, place.step) for place in only.places] == [("result", 4)]
    assert "keep_checkpoints" in only.notes[0]
    without = CliRunner().invoke(app, ["drift", str(lora_run)])
    assert isinstance(without.exception, AnchorError)
    assert "name one with --anchor" in str(without.exception)
    narrow = Anchor({MODULES[0]: Anchor.load(anchor).modules[MODULES[0]]})
    with pytest.raises(AnchorError, match="was trained and is not in the anchor"):
        measure_drift(read_run(lora_run), narrow)
    one = tmp_path / "one.jsonl"
    one.write_text(rows.read_text().splitlines()[0])
    with pytest.raises(TrainingError, match="1 usable row"):
        plan_of(lora_run, anchor, one)
