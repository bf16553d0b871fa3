"""Nothing that comes with a model, an adapter, an anchor or a checkpoint is run: tried out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig
from typer.testing import CliRunner

from anchortune.anchor.anchor import Anchor
from anchortune.chat import with_system
from anchortune.checkpoints.source import open_checkpoint
from anchortune.config import ModelSection, TrainConfig
from anchortune.config_io import load_config, parse_yaml, validate
from anchortune.errors import AnchortuneError, CheckpointError, ConfigError
from anchortune.models.load import load_config as load_model_config
from anchortune.models.load import load_model, load_skeleton, load_tokenizer, pick_numbers
from anchortune.sections import MachineSection
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage
from tests.security.nasty import boom, boom_zip

PICKLES = ("pytorch_model.bin", "adapter_model.bin", "model.pt", "model.pth", "model.ckpt",
           "model.pkl", "model.npy", "training_args.bin", "tokenizer.pkl")  # fmt: skip
CPU = pick_numbers(MachineSection(device="cpu", dtype="float32"), None)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that is there once something has run."""
    return tmp_path / "it ran"


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "d.jsonl"
    found = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(8)]
    path.write_text("\n".join(json.dumps(row) for row in found))
    return path


def config(model: Path, rows: Path, output: Path, **changes: Any) -> TrainConfig:
    tree = {
        "model": {"path": str(model)},
        "data": {"path": str(rows)},
        "output": str(output),
        "training": {"max_steps": 4, "batch_size": 4},
        "machine": {"device": "cpu", "dtype": "float32", "save_steps": 2},
    }
    return validate(tree | changes, TrainConfig, "test")


def test_the_trap_works(marker: Path) -> None:
    import pickle

    pickle.loads(boom(marker))
    assert marker.exists()


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_alone_is_no_model_adapter_or_anchor(
    name: str, marker: Path, tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    for folder, source in ((model, llama_base), (adapter, llama_adapter)):
        folder.mkdir()
        for file in source.glob("*.json"):
            shutil.copy(file, folder)
        (folder / "model.safetensors.index.json").unlink(missing_ok=True)
        for make in (boom, boom_zip):
            (folder / name).write_bytes(make(marker))
            for use in (
                lambda place=folder: open_checkpoint(place),
                lambda place=folder: load_model(ModelSection(path=str(place)), CPU),
                lambda place=folder: load_model(
                    ModelSection(path=str(llama_base), adapter=str(place)), CPU
                ),
                lambda place=folder: Anchor.load(place / name),
            ):
                with pytest.raises(AnchortuneError):
                    use()
    assert not marker.exists()


def test_a_pickle_beside_the_weights_is_left_alone(
    marker: Path, tmp_path: Path, llama_base: Path
) -> None:
    model = Path(shutil.copytree(llama_base, tmp_path / "model"))
    for name in PICKLES:
        (model / name).write_bytes(boom_zip(marker))
    load_model(ModelSection(path=str(model)), CPU)
    load_tokenizer(ModelSection(path=str(model)))
    assert not marker.exists()


def test_an_index_cannot_name_a_pickle(marker: Path, tmp_path: Path, llama_base: Path) -> None:
    model = Path(shutil.copytree(llama_base, tmp_path / "model"))
    (model / "weights.bin").write_bytes(boom_zip(marker))
    index = model / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    name = next(iter(tree["weight_map"]))
    tree["weight_map"][name] = "weights.bin"
    index.write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match="which is not safetensors"):
        load_model(ModelSection(path=str(model)), CPU)
    assert not marker.exists()


def test_a_checkpoint_is_resumed_without_running_it(
    marker: Path, tmp_path: Path, llama_base: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anchortune.training import stage

    made = config(llama_base, rows, tmp_path / "run")
    with monkeypatch.context() as cut_short:
        cut_short.setattr(stage, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_stage(plan_stage(made))
    first, second = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))
    assert (first.name, second.name) == ("checkpoint-2", "checkpoint-4")
    shutil.rmtree(second)
    for file in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        whole = (first / file).read_bytes()
        (first / file).write_bytes(boom_zip(marker))
        with pytest.raises(AnchortuneError, match=r"more than tensors and plain values.*delete"):
            run_stage(plan_stage(made))
        assert not marker.exists(), file
        (first / file).write_bytes(whole)


# Code beside a model


def with_code(source: Path, folder: Path, marker: Path, *, known: bool) -> Path:
    """A model folder that brings Python of its own, for config, model and tokenizer."""
    model = Path(shutil.copytree(source, folder))
    (model / "evil.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Config(LlamaConfig):\n    model_type = 'evil'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Config\n"
        "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
    )
    (model / "custom_generate").mkdir()
    (model / "custom_generate" / "generate.py").write_text(
        f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef generate(*a, **k): pass\n"
    )
    place = model / "config.json"
    tree = json.loads(place.read_text())
    tree["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    if not known:
        tree["model_type"], tree["architectures"] = "evil", ["Model"]
    place.write_text(json.dumps(tree))
    place = model / "tokenizer_config.json"
    tree = json.loads(place.read_text())
    tree["auto_map"] = {"AutoTokenizer": [None, "evil.Tokenizer"]}
    if not known:
        tree["tokenizer_class"] = "Tokenizer"
    place.write_text(json.dumps(tree))
    return model


@pytest.mark.parametrize("load", [load_model_config, load_skeleton, load_tokenizer, "model"])
def test_code_beside_a_model_is_not_run(
    load: Any, marker: Path, tmp_path: Path, llama_base: Path
) -> None:
    section = ModelSection(path=str(with_code(llama_base, tmp_path / "m", marker, known=False)))
    with pytest.raises(CheckpointError, match=r"trust_remote_code|cannot be loaded") as caught:
        load_model(section, CPU) if load == "model" else load(section)
    assert len(str(caught.value).splitlines()) == 1
    assert not marker.exists()


def test_code_beside_a_known_model_is_passed_over(
    marker: Path, tmp_path: Path, llama_base: Path
) -> None:
    section = ModelSection(path=str(with_code(llama_base, tmp_path / "m", marker, known=True)))
    model = load_model(section, CPU)
    assert type(model).__name__ == "LlamaForCausalLM"
    load_tokenizer(section)
    assert not marker.exists()


def test_the_command_says_so_in_one_sentence(
    marker: Path, tmp_path: Path, llama_base: Path, rows: Path
) -> None:
    from anchortune.cli.app import app

    model = with_code(llama_base, tmp_path / "m", marker, known=False)
    path = tmp_path / "c.yaml"
    made = config(model, rows, tmp_path / "out")
    path.write_text(yaml.safe_dump(made.model_dump(mode="json", exclude_unset=True)))
    result = CliRunner().invoke(app, ["train", str(path), "--dry-run"])
    assert isinstance(result.exception, CheckpointError)
    assert not marker.exists()


def test_with_its_flag_it_is_run(
    marker: Path, tmp_path: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the tests above could fail."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    model = with_code(llama_base, tmp_path / "m", marker, known=False)
    load_model_config(ModelSection(path=str(model), trust_remote_code=True))
    assert marker.exists()


def test_attention_code_of_a_repository_is_not_fetched(tmp_path: Path, llama_base: Path) -> None:
    model = Path(shutil.copytree(llama_base, tmp_path / "m"))
    tree = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(tree | {"attn_implementation": "evil/kernel"}))
    if "/" not in str(AutoConfig.from_pretrained(model)._attn_implementation):
        loaded = load_model(ModelSection(path=str(model)), CPU)  # transformers 5.0 ignores the key
        assert "/" not in loaded.config._attn_implementation
        return
    with pytest.raises(CheckpointError, match="asks for attention code of the repository evil/ker"):
        load_model(ModelSection(path=str(model)), CPU)


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"x": 1}, "megatron_core": "evil"},
        {"peft_type": "XLORA", "adapters": {"0": "../elsewhere"}},
        {"auto_mapping": {"base_model_class": "system", "parent_library": "os"}},
    ],
)
def test_an_adapter_imports_and_fetches_nothing(
    change: dict[str, Any], tmp_path: Path, llama_base: Path, llama_adapter: Path
) -> None:
    adapter = Path(shutil.copytree(llama_adapter, tmp_path / "a"))
    (tmp_path / "evil.py").write_text("raise SystemExit(9)")
    tree = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(tree | change))
    section = ModelSection(path=str(llama_base), adapter=str(adapter))
    if "auto_mapping" in change:  # of PEFT's own AutoPeftModel, which is not used
        load_model(section, CPU)
        return
    with pytest.raises(CheckpointError, match="adapter"):
        load_model(section, CPU)


# Templates


ESCAPES = (
    "{{ cycler.__init__.__globals__.os.popen('touch MARKER').read() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__init__.__globals__ }}",
    "{{ messages.append({'role': 'user', 'content': 'x'}) }}",
    "{% set x = namespace.__init__.__globals__ %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ raise_exception('\x1b[31mred') }}",
    "{% for i in range(10000000) %}x{% endfor %}",
)


@pytest.mark.parametrize("template", ESCAPES)
def test_a_chat_template_reaches_nothing(
    template: str, marker: Path, tmp_path: Path, llama_base: Path, rows: Path
) -> None:
    model = Path(shutil.copytree(llama_base, tmp_path / "m"))
    (model / "chat_template.jinja").write_text(template.replace("MARKER", f"'{marker}'"))
    tokenizer = load_tokenizer(ModelSection(path=str(model)))
    assert tokenizer.chat_template
    before = [{"role": "user", "content": "q"}]
    with pytest.raises(AnchortuneError):
        plan_stage(config(model, rows, tmp_path / "out"))
    assert with_system(tokenizer, before, "be good")[0]["role"] == "user"
    assert before == [{"role": "user", "content": "q"}]
    assert not marker.exists()


# YAML


@pytest.mark.parametrize(
    "text",
    [
        "seed: !!python/object/apply:os.system ['touch MARKER']",
        "seed: !!python/object/new:os.system ['touch MARKER']",
        "seed: !!python/name:os.system",
        "seed: !!python/module:os",
        "seed: !!python/object:anchortune.record.Record {}",
        "!!python/object/apply:builtins.exec ['1']",
    ],
)
def test_yaml_makes_no_objects(text: str, marker: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("MARKER", str(marker)))
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(path, TrainConfig)
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_yaml(path.read_text(), "--set x")
    assert not marker.exists()


def test_a_model_card_that_is_a_bomb_has_no_licence(tmp_path: Path, llama_base: Path) -> None:
    """Ten lines of aliases, which written out would be 10⁹ texts."""
    model = Path(shutil.copytree(llama_base, tmp_path / "m"))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (model / "README.md").write_text("---\n" + "\n".join(lines) + "\nlicense: *a8\n---\n")
    assert open_checkpoint(model).licence is None
