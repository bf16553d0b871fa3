"""What every method must be and do, whichever it is: one suite over ``registry.NAMES``."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import anchortune.defences
from anchortune.anchor.anchor import Anchor
from anchortune.config import TrainConfig
from anchortune.config_defences import Defences, OneDefence, label_of
from anchortune.config_io import validate
from anchortune.defences.base import Anchors, Curriculum, Defence, Need
from anchortune.defences.registry import NAMES, defence_class, defences_of
from anchortune.errors import ConfigError
from anchortune.maths.lowrank import LowRank
from anchortune.record import read_record
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage
from tests import tiny
from tests.defences.rows import given, refusals, schedule

DOCS = Path(__file__).parents[2] / "docs" / "defences.md"
HOOKS = [
    "start_from",
    "before",
    "curriculum",
    "trained_layers",
    "terms",
    "task_loss",
    "after",
    "system_prompt",
]
TARGETS = ["q_proj", "v_proj"]
#: What is not the default here, for runs of three steps on tiny models.
SMALL: dict[str, dict[str, Any]] = {
    "lisa": {"alignment_steps": 1, "finetune_steps": 2},
    "safe-instr": {"share": 0.25},
    "bea": {"share": 0.25, "trigger_tokens": 12},
    "safe-lora": {"modules": 2},
    "lox": {"rank": 2},
}
every = pytest.mark.parametrize("name", NAMES)


def small(name: str) -> Defence:
    return defence_class(name)(**SMALL.get(name, {}))


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.tiny_llama(tmp_path_factory.mktemp("harmful") / "llama", seed=9)


@pytest.fixture(scope="module")
def anchor_files(
    tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path, harmful: Path
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("anchors")
    pairs = {"anchor": (llama_aligned, llama_base), "harmful_anchor": (harmful, llama_aligned)}
    found = {key: folder / f"{key}.safetensors" for key in pairs}
    for key, (later, earlier) in pairs.items():
        Anchor.from_checkpoints(later, earlier, target_modules=TARGETS, rank=4).save(found[key])
    return found


@pytest.fixture(scope="module")
def anchors(anchor_files: dict[str, Path]) -> Anchors:
    return Anchors(Anchor.load(anchor_files["anchor"]), Anchor.load(anchor_files["harmful_anchor"]))


@pytest.fixture(scope="module")
def tokenizer(llama_aligned: Path) -> Any:
    return AutoTokenizer.from_pretrained(llama_aligned)


# ------------------------------------------------------------------ what it is


@every
def test_it_is_made_from_defaults_and_says_what_it_is(name: str) -> None:
    method = defence_class(name)()
    assert isinstance(method, Defence)
    assert method.label == name == getattr(method, "name")  # noqa: B009
    assert re.fullmatch(r"\d{4}\.\d{5}", method.source)
    own = [type(method), sys.modules[type(method).__module__]]
    for documented in own:
        assert documented.__doc__
        assert "this one, SFT, does nothing" not in documented.__doc__
    assert method.needed() <= set(get_args(Need))
    assert method.needed() >= method.needs


@every
def test_its_yaml_keys_are_its_keywords_and_read_back(name: str) -> None:
    method = small(name)
    text = yaml.safe_dump([method.model_dump(mode="json")])
    [section] = TypeAdapter(Defences).validate_python(yaml.safe_load(text))
    assert set(type(section).model_fields) == set(type(method).model_fields)
    assert defences_of([section]) == [method]
    assert label_of([section]) == method.label
    assert defences_of([method]) == [method]
    [bare] = TypeAdapter(Defences).validate_python(name)
    assert defences_of([bare]) == [defence_class(name)()]


@every
def test_every_key_has_its_description(name: str) -> None:
    for key, field in defence_class(name).model_fields.items():
        assert key == "name" or field.description, key


@every
def test_an_unknown_key_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        defence_class(name)(colour="red")
    with pytest.raises(ValidationError):
        TypeAdapter(OneDefence).validate_python({"name": name, "colour": "red"})
    if name in ("asft", "asft-alt"):
        return  # becomes the config's `penalty`, whose own keys are checked there
    tree = {"model": {"path": "m"}, "data": {"path": "d"}, "output": "o"}
    with pytest.raises(ConfigError, match="colour"):
        validate(tree | {"defence": {"name": name, "colour": "red"}}, TrainConfig, "here")


@every
def test_it_cannot_be_changed_once_made(name: str) -> None:
    method = defence_class(name)()
    with pytest.raises(ValidationError, match="frozen"):
        method.name = "other"  # type: ignore[attr-defined]


@every
def test_it_overrides_something_and_leaves_the_rest_to_the_base(name: str) -> None:
    kind = defence_class(name)
    overridden = [hook for hook in HOOKS if hook in vars(kind)]
    assert overridden or hasattr(kind, "penalty")
    for hook in HOOKS:
        ours, base = getattr(kind, hook), getattr(Defence, hook)
        if hook not in overridden:
            assert ours is base, hook
        assert list(inspect.signature(ours).parameters) == list(inspect.signature(base).parameters)
        assert inspect.getdoc(ours)


@every
def test_the_documentation_has_it(name: str) -> None:
    text = DOCS.read_text("utf-8")
    [row] = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
    kind = defence_class(name)
    assert f"arxiv.org/abs/{kind.source}" in row
    assert f"`{kind.__name__}`" in row
    for need in kind().needed():
        assert f"`{need}`" in row
    assert f"<!-- defence:{name} -->" in text, "the table of its keys"


@every
def test_it_is_a_public_name_loaded_lazily(name: str) -> None:
    kind = defence_class(name)
    assert getattr(anchortune.defences, kind.__name__) is kind
    assert kind.__name__ in anchortune.defences.__all__


def test_the_public_names_are_all_there_and_no_others() -> None:
    assert dir(anchortune.defences) == sorted(anchortune.defences.__all__)
    for name in anchortune.defences.__all__:
        assert getattr(anchortune.defences, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Liza'"):
        anchortune.defences.Liza  # noqa: B018


# ------------------------------------------------------------------ what its hooks return


@every
def test_its_rows_are_the_users_first_and_the_same_at_one_seed(name: str, tokenizer: Any) -> None:
    method, first, pool = small(name), given(12), refusals(30)
    made = method.curriculum(first, pool, schedule(3, 4), tokenizer)
    assert isinstance(made, Curriculum)
    assert first == given(12), "what was given is left unchanged"
    assert pool == refusals(30)
    for mine, theirs in zip(made.rows, first.rows, strict=False):
        assert mine.messages[-2:] == theirs.messages[-2:]
        assert mine.place == theirs.place
    added = made.rows[len(first.rows) :]
    assert sum(made.added.values()) == len(added)
    assert set(made.added) <= {method.label}
    assert bool(added) == ("refusals" in method.needed())
    if made.order is not None:
        assert all(0 <= index < len(made.rows) for batch in made.order for index in batch)
        assert all(0 < len(batch) <= 4 for batch in made.order)
    again = small(name).curriculum(given(12), refusals(30), schedule(3, 4), tokenizer)
    assert again == made


@every
def test_its_other_hooks_return_what_they_must(
    name: str, tokenizer: Any, anchors: Anchors, llama_aligned: Path
) -> None:
    method = small(name)
    assert method.start_from() == "aligned"
    layers = method.trained_layers(12)
    assert layers is None or (layers == sorted(set(layers)) and set(layers) < set(range(12)))
    prompt = method.system_prompt(tokenizer)
    assert prompt is None or prompt.strip() == prompt != ""
    assert small(name).system_prompt(tokenizer) == prompt
    loss = method.task_loss()
    if loss is not None:
        logits, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
        assert loss(logits, labels, torch.randn(2, 5, 7)).shape == ()
    edit = method.before(anchors)
    for part in (edit or {}).values():
        assert isinstance(part, LowRank)
    assert edit is None or set(edit) <= set(anchors.aligned.modules)  # type: ignore[union-attr]


@every
def test_its_terms_keep_their_state(name: str, anchors: Anchors, llama_aligned: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    for term in small(name).terms(model, anchors, schedule(3, 4)):
        for step in range(3):
            term.add_gradient_(step, 1.0)
        state = copy.deepcopy(term.state_dict())
        term.load_state_dict(state)
        assert set(term.state_dict()) == set(state)
        assert term.logs()
        assert all(isinstance(value, float) for value in term.logs().values())


@every
def test_what_it_mends_is_an_update_of_the_same_modules(name: str, anchors: Anchors) -> None:
    update = {}
    for module in sorted(anchors.aligned.modules):  # type: ignore[union-attr]
        rows, columns = anchors.aligned.modules[module].shape  # type: ignore[union-attr]
        generator = torch.Generator().manual_seed(len(module))
        update[module] = LowRank(
            torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
        )
    before = copy.deepcopy(update)
    method = small(name)
    after = method.after(update, anchors)
    again = method.after(copy.deepcopy(before), anchors)
    assert set(after) == set(before)
    for module, part in after.items():
        assert isinstance(part, LowRank)
        assert part.shape == before[module].shape
        assert torch.isfinite(part.left @ part.right).all()
        assert torch.equal(part.left @ part.right, again[module].left @ again[module].right)
        assert torch.equal(update[module].left, before[module].left), "left unchanged"
    changed = any(
        not torch.allclose(after[m].left @ after[m].right, before[m].left @ before[m].right)
        for m in before
    )
    assert changed == ("after" in vars(type(method)))


# ------------------------------------------------------------------ a whole run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rows")
    found = {}
    for key, rows in (("data", given(12).rows), ("refusals", refusals(30))):
        found[key] = folder / f"{key}.jsonl"
        lines = (json.dumps({"messages": row.messages}) for row in rows)
        found[key].write_text("\n".join(lines), encoding="utf-8")
    return found


def run_of(
    method: Defence,
    output: Path,
    aligned: Path,
    base: Path,
    files: dict[str, Path],
    anchor_files: dict[str, Path],
) -> Any:
    tree: dict[str, Any] = {
        "model": {"path": str(aligned)},
        "data": {"path": str(files["data"])},
        "defence": [method.model_dump(mode="json")],
        "training": {"epochs": 1, "batch_size": 4, "learning_rate": 1e-2},
        "lora": {"rank": 2, "alpha": 8, "target_modules": TARGETS},
        "machine": {"device": "cpu", "dtype": "float32"},
        "output": str(output),
    }
    for key, place in {
        "anchor": anchor_files["anchor"],
        "harmful_anchor": anchor_files["harmful_anchor"],
        "base": base,
        "refusals": files["refusals"],
    }.items():
        if key in method.needed():
            tree[key] = {"path": str(place)}
    return validate(tree, TrainConfig, "test")


def check_run(method: Defence, output: Path, start: Path, config: Any) -> None:
    plan = plan_stage(config)
    run_stage(plan)
    record = read_record(output)
    adapter = output / record.outputs["path"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    moved = [name for name, tensor in tensors.items() if "lora_B" in name and tensor.any()]
    assert moved
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())

    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    ids = torch.arange(3, 15)[None]
    plain = model(input_ids=ids).logits
    adapted = PeftModel.from_pretrained(model, adapter)
    assert not torch.allclose(adapted(input_ids=ids).logits, plain)
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert settings["base_model_name_or_path"] == str(start)

    if record.config["defence"]:
        assert [entry["name"] for entry in record.config["defence"]] == [method.name]  # type: ignore[attr-defined]
    else:
        assert record.config["penalty"]["side"] == method.penalty().side  # type: ignore[attr-defined]
    prompt = method.system_prompt(AutoTokenizer.from_pretrained(start))
    assert record.outputs.get("system_prompt") == prompt
    if "refusals" in method.needed():
        assert record.inputs["data"]["added"].keys() == {method.label}
    trained = method.trained_layers(2)
    layers = {int(found[1]) for name in moved if (found := re.search(r"layers\.(\d+)\.", name))}
    assert layers == set(range(2) if trained is None else trained)


@every
def test_three_steps_end_to_end(
    name: str,
    tmp_path: Path,
    llama_aligned: Path,
    llama_base: Path,
    files: dict[str, Path],
    anchor_files: dict[str, Path],
) -> None:
    method = small(name)
    config = run_of(method, tmp_path / "run", llama_aligned, llama_base, files, anchor_files)
    check_run(method, tmp_path / "run", llama_aligned, config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("asft", {"operator": "none"}),
        ("asft", {"operator": "subspace", "side": "along"}),
        ("asft", {"operator": "gram", "scaled": False}),
        ("asft-alt", {"operator": "gram", "lam": 10.0}),
        ("resta", {"vector": "harmful"}),
        ("safe-lora", {"threshold": 0.5}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_ablations_and_other_settings_end_to_end(
    name: str,
    settings: dict[str, Any],
    tmp_path: Path,
    llama_aligned: Path,
    llama_base: Path,
    files: dict[str, Path],
    anchor_files: dict[str, Path],
    anchors: Anchors,
    tokenizer: Any,
) -> None:
    method = defence_class(name)(**settings)
    assert not method.terms(None, anchors, schedule(3, 4))
    made = method.curriculum(given(12), refusals(30), schedule(3, 4), tokenizer)
    assert made == given(12)
    config = run_of(method, tmp_path / "run", llama_aligned, llama_base, files, anchor_files)
    check_run(method, tmp_path / "run", llama_aligned, config)


def test_lisa_base_end_to_end_belongs_on_the_base(
    tmp_path: Path,
    llama_aligned: Path,
    llama_base: Path,
    files: dict[str, Path],
    anchor_files: dict[str, Path],
) -> None:
    method = defence_class("lisa")(start="base", **SMALL["lisa"])
    config = run_of(method, tmp_path / "run", llama_aligned, llama_base, files, anchor_files)
    check_run(method, tmp_path / "run", llama_base, config)
