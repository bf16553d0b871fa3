"""Harmful anchors: exact factors of the fine-tune, the true gradient, their metadata and use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from anchortune.anchor.anchor import Anchor
from anchortune.anchor.format import FORMAT_VERSION, HARMFUL_VERSION, KEY
from anchortune.checkpoints.tensor_file import read_header
from anchortune.config import LoraSection, MachineSection, ModelSection, TrainConfig
from anchortune.config_io import validate
from anchortune.errors import AnchorError, AnchortuneError, CheckpointError
from anchortune.files import sha256_file
from anchortune.jobs import harmful_anchor
from anchortune.jobs.harmful_anchor import make_harmful, plan_harmful
from anchortune.jobs.harmful_config import HarmfulSettings
from anchortune.models.load import load_model, load_tokenizer, pick_numbers
from anchortune.record import Record
from anchortune.training.plan import Plan, plan_stage
from anchortune.training.stage import run_stage
from anchortune.training.template import Template

CPU = MachineSection(device="cpu", dtype="float32")
Q0 = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("harm") / "harm.jsonl"
    rows = [{"prompt": f"do {i}", "completion": f"sure {i * i}"} for i in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(file: Path, **changes: Any) -> HarmfulSettings:
    return validate({"data": str(file)} | changes, HarmfulSettings, "test")


def made(model: ModelSection, output: Path, given: HarmfulSettings) -> Anchor:
    return make_harmful(plan_harmful(model, given, output, machine=CPU))


def test_tune_holds_the_factors_of_the_fine_tune_exactly(
    tmp_path: Path, llama_aligned: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, torch.Tensor] = {}

    def keep(plan: Plan) -> Record:
        record = run_stage(plan)
        kept.update(load_file(plan.folder.path / "adapter" / "adapter_model.safetensors"))
        return record

    monkeypatch.setattr(harmful_anchor, "run_stage", keep)
    given = settings(pairs, epochs=2, learning_rate=1e-2, rank=2, pairs=6, seed=3)
    anchor = made(ModelSection(path=str(llama_aligned)), tmp_path / "h.safetensors", given)
    assert [path.name for path in tmp_path.iterdir()] == ["h.safetensors"]  # and no tuned model
    assert len(anchor) == 4
    for name, found in anchor.modules.items():
        a, b = (kept[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
        product = found.left @ torch.diag(found.sigma) @ found.right.T
        torch.testing.assert_close(product, 4.0 * b @ a, atol=1e-6, rtol=1e-5)
        assert found.tail == 0.0
    origin = Anchor.load(tmp_path / "h.safetensors").metadata.harmful
    assert origin is not None
    assert (origin.method, origin.pairs, origin.rows, origin.seed) == ("tune", 6, 10, 3)
    assert (origin.data, origin.data_sha256) == ("harm.jsonl", sha256_file(pairs))
    assert origin.settings["training"]["learning_rate"] == 1e-2
    assert origin.settings["lora"]["rank"] == 2


def test_the_gradient_is_that_of_the_mean_loss_over_all_answer_tokens(
    tmp_path: Path, llama_aligned: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ModelSection(path=str(llama_aligned))
    monkeypatch.setattr("anchortune.training.gradient._ROWS", 3)
    given = settings(pairs, method="gradient", rank=64)
    anchor = made(model, tmp_path / "g.safetensors", given)

    live = load_model(model, pick_numbers(CPU, LoraSection()))
    weight = live.get_submodule(Q0).weight
    template, loss, count = Template(load_tokenizer(model)), torch.zeros(()), 0
    for i in range(10):
        messages = [("user", f"do {i}"), ("assistant", f"sure {i * i}")]
        [row] = template.encode([{"role": r, "content": c} for r, c in messages], 512)
        logits = live(input_ids=torch.tensor([row.input_ids])).logits[0]
        for at, label in enumerate(row.labels[1:]):
            if label != -100:
                loss = loss - logits[at].log_softmax(-1)[label]
                count += 1
    [gradient] = torch.autograd.grad(loss / count, [weight])
    found = anchor.modules[Q0]
    product = found.left @ torch.diag(found.sigma) @ found.right.T
    torch.testing.assert_close(product, -gradient, atol=1e-6, rtol=1e-4)
    origin = anchor.metadata.harmful
    assert origin is not None
    assert (origin.method, origin.pairs) == ("gradient", 10)
    assert not (tmp_path / "g.safetensors.tune").exists()


def test_a_fine_tune_that_was_cut_short_goes_on(
    tmp_path: Path, llama_aligned: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, output = ModelSection(path=str(llama_aligned)), tmp_path / "h.safetensors"
    given = settings(pairs, epochs=1, learning_rate=1e-2)
    with monkeypatch.context() as patch:
        patch.setattr(Anchor, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            made(model, output, given)
    assert not output.exists()
    plan = plan_harmful(model, given, output, machine=CPU)
    assert plan.training is not None
    assert plan.training.state.value == "complete"
    other = settings(pairs, epochs=1, learning_rate=2e-2)
    again = plan_harmful(model, other, output, machine=CPU)
    assert again.training is not None
    assert again.training.state.value == "new"
    make_harmful(again)
    assert [path.name for path in tmp_path.iterdir()] == ["h.safetensors"]


def train_config(model: ModelSection, pairs: Path, output: Path, **penalty: Any) -> TrainConfig:
    tree = {
        "model": model.model_dump(),
        "data": {"path": str(pairs)},
        "penalty": {"operator": "subspace"} | penalty,
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(output),
    }
    return validate(tree, TrainConfig, "test")


def test_a_training_along_it_starts_from_the_aligned_model_and_from_no_other(
    tmp_path: Path, llama_aligned: Path, llama_base: Path, llama_adapter: Path, pairs: Path
) -> None:
    given = settings(pairs, method="gradient", rank=4)
    whole = ModelSection(path=str(llama_aligned))
    on_base = ModelSection(path=str(llama_base), adapter=str(llama_adapter))
    bare = ModelSection(path=str(llama_base))
    for number, (start, other) in enumerate([(whole, bare), (on_base, bare), (bare, whole)]):
        anchor = tmp_path / f"{number}.safetensors"
        made(start, anchor, given)
        along: dict[str, Any] = {"side": "along", "anchor": str(anchor)}
        plan = plan_stage(train_config(start, pairs, tmp_path / "run", **along))
        assert plan.anchor_facts is not None
        assert plan.anchor_facts["start"] == "base"
        with pytest.raises(AnchorError, match="other weights"):
            plan_stage(train_config(other, pairs, tmp_path / "run", **along))
        with pytest.raises(AnchorError, match="is a harmful anchor"):
            plan_stage(train_config(start, pairs, tmp_path / "run", anchor=str(anchor)))


@pytest.mark.parametrize(("weak", "told"), [(0.0, False), (1e9, True)])
def test_a_plan_says_where_gram_is_next_to_nothing(
    tmp_path: Path,
    llama_aligned: Path,
    pairs: Path,
    monkeypatch: pytest.MonkeyPatch,
    weak: float,
    told: bool,
) -> None:
    model, file = ModelSection(path=str(llama_aligned)), tmp_path / "h.safetensors"
    made(model, file, settings(pairs, method="gradient", rank=4))
    monkeypatch.setattr("anchortune.anchor.inspect.WEAK", weak)
    config = train_config(
        model, pairs, tmp_path / "run", side="along", anchor=str(file), operator="gram"
    )
    notes = plan_stage(config).notes
    assert any("next to nothing on this harmful anchor" in note for note in notes) is told


def test_old_readers_are_told_and_old_files_are_read(
    tmp_path: Path, llama_aligned: Path, llama_base: Path, pairs: Path
) -> None:
    given = settings(pairs, method="gradient")
    made(ModelSection(path=str(llama_aligned)), tmp_path / "h.safetensors", given)
    plain = Anchor.from_checkpoints(llama_aligned, llama_base, rank=2)
    plain.save(tmp_path / "a.safetensors")
    told = {
        name: json.loads(read_header(tmp_path / f"{name}.safetensors")[1][KEY]) for name in "ha"
    }
    assert told["h"]["format_version"] == HARMFUL_VERSION == 2
    # As written before there were harmful anchors, to the byte: its hash is in runs' identities.
    assert told["a"]["format_version"] == FORMAT_VERSION == 1
    assert "harmful" not in told["a"]
    assert Anchor.load(tmp_path / "a.safetensors").metadata.harmful is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pairs": 50}, "holds 10 usable pairs of 10 rows, and 50 are asked for"),
        ({"target_modules": ["gone_proj"]}, "gone_proj"),
        ({"data": "none.jsonl"}, "none.jsonl"),
        ({"method": "gradient", "epochs": 2.0}, "epochs is for method tune"),
    ],
)
def test_mistakes_are_told_before_any_work(
    tmp_path: Path, llama_aligned: Path, pairs: Path, changes: dict[str, Any], said: str
) -> None:
    model = ModelSection(path=str(llama_aligned))
    with pytest.raises(AnchortuneError, match=said):
        plan_harmful(model, settings(pairs, **changes), tmp_path / "h.safetensors", machine=CPU)
    assert not list(tmp_path.iterdir())


def test_no_model_and_no_place_are_told(tmp_path: Path, llama_aligned: Path, pairs: Path) -> None:
    with pytest.raises(CheckpointError, match="gone"):
        plan_harmful(ModelSection(path="gone"), settings(pairs), tmp_path / "h.safetensors")
    with pytest.raises(AnchorError, match="it is a folder"):
        plan_harmful(ModelSection(path=str(llama_aligned)), settings(pairs), tmp_path)
