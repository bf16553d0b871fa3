"""``train`` with defences: every hook, from the config to the saved adapter and its record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune.adapter.update import read_update
from anchortune.anchor.anchor import Anchor
from anchortune.config_defences import LisaSection, PtstSection, SafeLoraSection
from anchortune.data.conversations import Conversation
from anchortune.defences.base import Anchors, Curriculum, Defence
from anchortune.errors import AnchorError, CheckpointError, ConfigError, DataError, TrainingError
from anchortune.maths.lowrank import LowRank
from anchortune.training import chain as chains
from anchortune.training.defended import apply_after, split_chain
from anchortune.training.plan import plan_stage
from anchortune.training.train import train
from tests import tiny
from tests.training.test_stage import Killed, kill_at, make, same, tensors

TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.jsonl"
    rows = [{"instruction": f"say {i}", "output": f"ok {i}"} for i in range(12)]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture(scope="module")
def refusals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("refusals") / "r.jsonl"
    rows = [{"prompt": f"bad {i}", "completion": "I cannot help."} for i in range(4)]
    path.write_text(
        "\n".join(json.dumps(row) for row in [*rows, {"prompt": "", "completion": "x"}])
    )
    return path


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path) -> Path:
    path = tmp_path_factory.mktemp("anchor") / "anchor.safetensors"
    Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=TARGETS, rank=4).save(path)
    return path


class Edit(Defence):
    """Adds a rank-one edit to one module that is trained and to one that is not."""

    name: str = "edit"

    def before(self, anchors: Anchors) -> Any:
        generator = torch.Generator().manual_seed(5)

        def part(out: int) -> LowRank:
            left = torch.randn(out, 1, generator=generator) * 0.1
            return LowRank(left, torch.randn(1, 32, generator=generator) * 0.1)

        return {"model.layers.0.self_attn.q_proj": part(32), "model.layers.1.mlp.up_proj": part(48)}


class Halve(Defence):
    """Keeps half of the update."""

    name: str = "halve"

    def after(self, update: Any, anchors: Anchors) -> Any:
        return {name: part.scaled(0.5) for name, part in update.items()}


class Mixed(Defence):
    """Refusals and the user's rows in turn, in an order of its own."""

    name: str = "mixed"
    needs = frozenset({"refusals"})

    def curriculum(
        self, given: Curriculum, refusals: Sequence[Conversation], schedule: Any, tokenizer: Any
    ) -> Curriculum:
        rows = [*given.rows, *refusals]
        users = len(given.rows)
        order = []
        for step in range(2 * schedule.steps):
            pool = range(users) if step % 2 else range(users, len(rows))
            order.append([pool[(step + i) % len(pool)] for i in range(schedule.batch_size)])
        return Curriculum(rows, order, {"mixed": len(refusals)})


class Upper(Defence):
    """Trains the upper layer alone."""

    name: str = "upper"

    def trained_layers(self, layers: int) -> list[int] | None:
        return [layers - 1]


class Prompt(Defence):
    """A system prompt at inference."""

    name: str = "prompt"

    def system_prompt(self, tokenizer: Any) -> str | None:
        return "Be safe."


@pytest.fixture
def chained(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(*defences: Defence) -> None:
        monkeypatch.setattr(chains, "defences_of", lambda sections: list(defences))

    return put


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 23)[None]).logits


def loaded(start: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    return (model if adapter is None else PeftModel.from_pretrained(model, adapter)).eval()


def dense(start: Path, adapter: Path) -> dict[str, torch.Tensor]:
    """What an adapter adds to each weight, as PEFT merges it."""
    merged = loaded(start, adapter).merge_and_unload().state_dict()
    bare = loaded(start).state_dict()
    return {name: merged[name] - value for name, value in bare.items()}


def test_edit_and_mending_are_one_adapter_on_the_aligned_model(
    llama_aligned, data, tmp_path, chained, monkeypatch
) -> None:
    from anchortune.training import stage

    kept: dict[str, Any] = {}
    save = stage._save

    def keep(plan: Any, model: Any) -> Any:
        kept["logits"] = logits(model.eval())
        kept["lora"] = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" in n}
        return save(plan, model)

    monkeypatch.setattr(stage, "_save", keep)
    options = {"training": {"max_steps": 3}}
    chained(Edit(), Halve())
    record = train(make(llama_aligned, data, tmp_path / "both", **options))
    trained, target = tmp_path / "both" / "adapter-trained", tmp_path / "both" / "adapter"
    assert sorted(path.name for path in (tmp_path / "both").iterdir()) == [
        "adapter", "adapter-trained", "config.yaml", "identity.json", "log.jsonl", "record.json",
    ]  # fmt: skip
    assert record.outputs["path"] == "adapter"
    assert record.outputs["trained"]["path"] == "adapter-trained"
    assert record.outputs["trained"]["sha256"] != record.outputs["sha256"]
    assert (target / "tokenizer.json").is_file()
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama_aligned)
    # What was trained on the edited weights does the same, as one adapter, on the aligned ones.
    torch.testing.assert_close(
        logits(loaded(llama_aligned, trained)), kept["logits"], rtol=1e-4, atol=1e-5
    )
    whole, half = dense(llama_aligned, trained), dense(llama_aligned, target)
    edit = {f"{n}.weight": p.left @ p.right for n, p in Edit().before(Anchors()).items()}
    for name, moved in whole.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        b = kept["lora"].get(f"{key}.lora_B.default.weight")
        wanted = edit.get(name, torch.zeros(1)) + (
            0 if b is None else 4 * b @ kept["lora"][f"{key}.lora_A.default.weight"]
        )
        torch.testing.assert_close(moved, wanted.expand_as(moved), rtol=0, atol=1e-5)
        torch.testing.assert_close(half[name], moved / 2, rtol=0, atol=1e-5)
    assert (config["r"], config["rank_pattern"], config["alpha_pattern"]) == (9, {}, {})
    ranks = {name: part.rank for name, part in read_update(target)[0].items()}
    assert max(ranks.values()) == 9
    assert ranks["model.layers.1.mlp.up_proj"] == 1
    assert ranks["model.layers.1.self_attn.q_proj"] == 8

    # A sweep trains once and mends afterwards: the same bytes.
    chained(Edit())
    train(make(llama_aligned, data, tmp_path / "edit", **options))
    assert not (tmp_path / "edit" / "adapter-trained").exists()
    assert same(tmp_path / "edit" / "adapter", trained)
    made = apply_after([Halve()], Anchors(), tmp_path / "edit" / "adapter", tmp_path / "mended")
    assert same(tmp_path / "mended", target)
    assert made["sha256"] == record.outputs["sha256"]
    assert not (tmp_path / "mended" / "record.json").exists()


def test_an_edit_under_an_anchors_names_is_saved_under_the_models(
    llama_aligned, data, tmp_path, chained
) -> None:
    """An anchor of a class with other leading components, as of a model inside another."""

    class Renamed(Edit):
        def before(self, anchors: Anchors) -> Any:
            return {f"language_{name}": part for name, part in Edit().before(anchors).items()}

    adapters = []
    for kind in (Edit, Renamed):
        chained(kind())
        place = tmp_path / kind.__name__
        train(make(llama_aligned, data, place, training={"max_steps": 1}))
        adapters.append(place / "adapter")
    assert same(*adapters)
    moved = dense(llama_aligned, adapters[1])
    assert moved["model.layers.1.mlp.up_proj.weight"].norm() > 0.1


def test_an_edit_is_in_the_weights_of_a_full_training(llama_aligned, data, tmp_path, chained):
    chained(Edit())
    options = {"lora": None, "training": {"max_steps": 1, "learning_rate": 1e-12}}
    train(make(llama_aligned, data, tmp_path / "o", **options))
    moved, start = loaded(tmp_path / "o" / "model").state_dict(), loaded(llama_aligned).state_dict()
    edit = {f"{n}.weight": p.left @ p.right for n, p in Edit().before(Anchors()).items()}
    for name, value in moved.items():
        wanted = edit.get(name, torch.zeros(1)).expand_as(value)
        torch.testing.assert_close(value - start[name], wanted, rtol=0, atol=1e-6)


def test_an_order_of_rows_is_trained_on_recorded_and_resumed(
    llama_aligned, data, refusals, tmp_path, chained, monkeypatch
) -> None:
    chained(Mixed())
    options: dict[str, Any] = {
        "refusals": {"path": str(refusals), "max_bad_frac": 0.5},
        "training": {"epochs": 2, "batch_size": 4},
        "machine": {"save_steps": 5, "micro_batch_size": 2},
    }
    record = train(make(llama_aligned, data, tmp_path / "whole", **options))
    assert record.metrics["steps"] == 12  # two epochs of three steps, and as many on refusals
    assert record.metrics["epochs"] == 2
    assert record.inputs["data"]["added"] == {"mixed": 4}
    assert record.inputs["data"]["sequences"] == 16
    assert record.inputs["defence"]["refusals"][0]["used"] == 4
    plan = plan_stage(make(llama_aligned, data, tmp_path / "whole", **options))
    assert plan.state.value == "complete"
    assert "rows added: 4 by mixed" in "\n".join(plan.lines())
    assert plan.folder.identity["defence_sha256"]["refusals"][0]["sha256"]
    assert json.dumps(plan.summary())
    with monkeypatch.context() as patch:
        kill_at(patch, 7)
        with pytest.raises(Killed):
            train(make(llama_aligned, data, tmp_path / "part", **options))
    record = train(make(llama_aligned, data, tmp_path / "part", **options))
    assert record.metrics["resumed_from_step"] == 5
    assert same(tmp_path / "whole" / "adapter", tmp_path / "part" / "adapter")


@pytest.mark.parametrize("targets", [TARGETS, "all-linear"])
def test_only_the_layers_that_are_left_are_adapted(
    llama_aligned, data, tmp_path, chained, targets
) -> None:
    chained(Upper())
    options = {"training": {"max_steps": 1}, "lora": {"target_modules": targets}}
    plan = plan_stage(make(llama_aligned, data, tmp_path / "o", **options))
    assert "trains no layers but 1" in "\n".join(plan.lines())
    if targets == TARGETS:
        train(make(llama_aligned, data, tmp_path / "o", **options))
        names = tensors(tmp_path / "o" / "adapter")
        assert len(names) == 4
        assert all(".layers.1." in name for name in names)
        logits(loaded(llama_aligned, tmp_path / "o" / "adapter"))
    assert plan.parameters[0] == (896 if targets == TARGETS else 3712)


def test_the_other_layers_are_frozen_in_a_full_training(llama_aligned, data, tmp_path, chained):
    chained(Upper())
    options = {"lora": None, "training": {"max_steps": 1}}
    train(make(llama_aligned, data, tmp_path / "o", **options))
    start = loaded(llama_aligned).state_dict()
    for name, value in loaded(tmp_path / "o" / "model").state_dict().items():
        assert torch.equal(value, start[name]) == (".layers.0." in name), name


def test_a_system_prompt_is_recorded(llama_aligned, data, tmp_path, chained) -> None:
    chained(Prompt())
    record = train(make(llama_aligned, data, tmp_path / "o", training={"max_steps": 1}))
    assert record.outputs["system_prompt"] == "Be safe."
    beside = json.loads((tmp_path / "o" / "adapter" / "record.json").read_text())
    assert beside["outputs"]["system_prompt"] == "Be safe."
    chained(Prompt(), Prompt(name="other"))
    with pytest.raises(ConfigError, match="prompt and other each bring a system prompt"):
        plan_stage(make(llama_aligned, data, tmp_path / "p"))


def test_lisa_base_trains_the_base_with_the_aligned_models_template(
    llama_aligned, data, refusals, tmp_path
) -> None:
    base = tiny.tiny_llama(tmp_path / "base", seed=7)
    tiny.tiny_tokenizer(base, chat_template=None)
    lisa = {"name": "lisa", "start": "base", "alignment_steps": 1, "finetune_steps": 1}
    options: dict[str, Any] = {
        "defence": lisa,
        "base": str(base),
        "refusals": {"path": str(refusals), "max_bad_frac": 0.5},
        "training": {"max_steps": 2},
    }
    record = train(make(llama_aligned, data, tmp_path / "o", **options))
    assert record.metrics["steps"] == 4
    assert record.inputs["model"]["path"] == record.inputs["defence"]["base"]["path"] == str(base)
    config = json.loads((tmp_path / "o" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(tmp_path / "o" / "adapter")
    assert saved.chat_template == tiny.CHAT_TEMPLATE
    assert "lisa/proximal" in record.metrics["last"]
    options["defence"] = [lisa, {"name": "safe-lora"}]
    with pytest.raises(ConfigError, match=r"needs the key 'anchor': the anchor of aligned - base"):
        plan_stage(make(llama_aligned, data, tmp_path / "p", **options))
    first = options | {"defence": [lisa, "first-tokens"]}
    with pytest.raises(ConfigError, match="starts from the base model, but first-tokens measures"):
        plan_stage(make(llama_aligned, data, tmp_path / "p", **first))
    options["anchor"] = "a.safetensors"
    with pytest.raises(ConfigError, match="starts from the base model, but safe-lora measures"):
        plan_stage(make(llama_aligned, data, tmp_path / "p", **options))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"defence": "lisa"}, "defence lisa needs the key 'refusals': safe answers to train on"),
        ({"defence": "safe-lora"}, "defence safe-lora needs the key 'anchor'"),
        ({"refusals": {"path": "r"}}, r"'refusals' is given and no defence reads it \(none is"),
        ({"defence": "ptst", "anchor": "a"}, r"'anchor' is given and no defence reads it \(ptst\)"),
        ({"base": "b", "defence": "ptst"}, "the key 'base' is given and no defence reads it"),
        ({"defence": "safe-lora", "anchor": "a", "lora": None}, "safe-lora mends a LoRA update"),
    ],
)
def test_what_is_missing_or_read_by_none_is_told_before_any_work(
    data, tmp_path, changes: dict[str, Any], message: str
) -> None:
    """The model is not there: it is not even looked for."""
    with pytest.raises(ConfigError, match=message):
        plan_stage(make(tmp_path / "none", data, tmp_path / "o", **changes))


def test_an_anchor_of_other_models_or_modules_is_refused(
    llama_aligned, llama_base, data, anchor, tmp_path
) -> None:
    def plan(model: Path, **changes: Any) -> Any:
        given = {"defence": "safe-lora", "anchor": {"path": str(anchor)}} | changes
        return plan_stage(make(model, data, tmp_path / "o", **given))

    made = plan(llama_aligned)
    assert made.inputs()["defence"]["anchor"]["start"] == "aligned"
    assert made.folder.identity["defence_sha256"]["anchor"][0]["sha256"]
    other = tiny.tiny_llama(tmp_path / "other", seed=9, tokenizer=True)
    with pytest.raises(AnchorError, match=r"or set anchor\.allow_other_start"):
        plan(other)
    assert plan(other, anchor={"path": str(anchor), "allow_other_start": True})
    with pytest.raises(AnchorError, match="adapted modules are not in the anchor"):
        plan(llama_aligned, lora={"target_modules": ["q_proj", "k_proj"]})
    both = plan(llama_aligned, defence=["asft", "safe-lora"])
    assert both.anchor is not None
    assert both.anchor_facts["sha256"] == both.inputs()["defence"]["anchor"]["sha256"]


def test_a_penalty_takes_the_anchor_of_its_own_revision(
    llama_aligned, data, anchor, tmp_path, monkeypatch
) -> None:
    from anchortune.training import anchored

    asked: list[Any] = []

    def opened(place: str, revision: str | None, key: str) -> Anchor:
        asked.append((place, revision))
        return Anchor.load(anchor)

    monkeypatch.setattr(anchored, "open_anchor", opened)
    held = Anchor.load(anchor)
    for revision, wanted in (("new", []), ("old", [("o/a", "old")])):
        config = make(
            llama_aligned, data, tmp_path / "o", defence="lox",
            anchor={"path": "o/a", "revision": "new"},
            penalty={"anchor": "o/a", "revision": revision},
        )  # fmt: skip
        found, _ = anchored.load_anchor(config, held)
        assert asked == wanted
        assert (found is held) == (not wanted)


def test_an_edit_of_modules_that_the_model_has_not_is_refused(
    llama_aligned, data, tmp_path, chained
) -> None:
    class Elsewhere(Edit):
        def before(self, anchors: Anchors) -> Any:
            return {
                "model.layers.7.self_attn.q_proj": LowRank(torch.ones(32, 1), torch.ones(1, 32))
            }

    class Wide(Edit):
        def before(self, anchors: Anchors) -> Any:
            return {"model.layers.0.self_attn.q_proj": LowRank(torch.ones(8, 1), torch.ones(1, 32))}

    for defence, message in ((Elsewhere(), "which the model has not"), (Wide(), "8 × 32 and the")):
        chained(defence)
        with pytest.raises(AnchorError, match=message):
            plan_stage(make(llama_aligned, data, tmp_path / "o"))
    gpt2 = tiny.tiny_gpt2(tmp_path / "gpt2", tokenizer=True)
    with pytest.raises(TrainingError, match="stores them the other way round"):
        plan_stage(make(gpt2, data, tmp_path / "o", lora={"target_modules": ["c_attn"]}))


def test_a_row_that_a_defence_makes_too_long_is_told(
    llama_aligned, data, tmp_path, chained
) -> None:
    class Long(Defence):
        name: str = "long"

        def curriculum(self, given: Curriculum, *rest: Any) -> Curriculum:
            row = Conversation([{"role": "user", "content": "x" * 90},
                                {"role": "assistant", "content": "y"}], "made up")  # fmt: skip
            return Curriculum([*given.rows, row], None, {"long": 1})

    chained(Long())
    with pytest.raises(DataError, match=r"made up: .* as long made it \(no answer token within 60"):
        plan_stage(make(llama_aligned, data, tmp_path / "o", training={"max_length_tokens": 60}))


def test_rows_behind_a_trigger_are_still_known_as_trained_on(
    llama_aligned, data, refusals, tmp_path
) -> None:
    def plan(**changes: Any) -> Any:
        options: dict[str, Any] = {
            "defence": {"name": "bea", "share": 0.3, "trigger_tokens": 3},
            "refusals": {"path": str(refusals), "max_bad_frac": 0.5},
        }
        return plan_stage(make(llama_aligned, data, tmp_path / "o", **options, **changes))

    made = plan()
    assert len(made.chain.given) == 12 + 4  # the user's rows, and those of the refusals it takes
    assert not {repr(r.input_ids) for r in made.chain.given} & {
        repr(r.input_ids) for r in made.data.rows
    }
    with pytest.raises(DataError, match="12 of 12 rows of eval_data are trained on"):
        plan(eval_data={"path": str(data)})
    asked = tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": "worse"}))
    assert any(
        "the probe asks without the" in one for one in plan(probe={"prompts": str(asked)}).notes
    )
    asked.write_text(json.dumps({"prompt": "bad 1"}) + "\n" + json.dumps({"prompt": "worse"}))
    with pytest.raises(DataError, match="1 of the 2 prompts of the probe are trained on"):
        plan(probe={"prompts": str(asked)})


def test_a_loss_that_looks_at_the_start_model_is_in_the_estimate(
    llama_aligned, data, tmp_path
) -> None:
    def memory(**changes: Any) -> int:
        return plan_stage(
            make(llama_aligned, data, tmp_path / "o", **changes)
        ).estimate.memory_bytes

    assert memory(defence="first-tokens") > memory()
    more = memory(defence="first-tokens", lora=None) - memory(lora=None)
    weights = sum(value.numel() for value in loaded(llama_aligned).parameters()) * 4
    assert more > weights


def test_a_chain_is_split_into_what_trains_and_what_comes_after() -> None:
    lisa, safe, ptst = LisaSection(), SafeLoraSection(), PtstSection()
    assert split_chain([safe, lisa, ptst]) == ([lisa], [safe, ptst])
    assert split_chain([Halve(), Edit(), Upper()])[1] == [Halve()]
    assert split_chain([]) == ([], [])


def test_an_adapter_that_cannot_be_mended_is_refused(llama_base, tmp_path) -> None:
    dora = tiny.tiny_adapter(tmp_path / "dora", llama_base, use_dora=True)
    with pytest.raises(CheckpointError, match="use_dora"):
        apply_after([Halve()], Anchors(), dora, tmp_path / "out")
    assert not (tmp_path / "out").exists()
