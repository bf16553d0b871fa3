"""What the card tells of a base: its name on the Hub, and the code that it brings along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from anchortune.config import TrainConfig
from anchortune.config_io import validate
from anchortune.errors import JobError
from anchortune.jobs.share import check_push, plan_upload
from anchortune.record import Record, now, write_record
from anchortune.report.card import CardOptions, card
from anchortune.report.card_source import Made, read_made
from anchortune.training.plan import plan_stage
from anchortune.training.stage import run_stage

MODELING = """
from transformers import LlamaConfig, LlamaForCausalLM

class OursConfig(LlamaConfig):
    model_type = "ours"

class OursForCausalLM(LlamaForCausalLM):
    config_class = OursConfig
"""


def trained_on(folder: Path, path: str, revision: str | None, data: str = "d.jsonl") -> Made:
    """A training's folder with the record of an adapter on ``path``, and nothing else."""
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    model = {"path": path, "revision": revision, "files": {"model.safetensors": "0" * 64}}
    source = {"path": data, "rows": 8, "used": 8, "dropped": {}, "sha256": "0" * 64}
    record = Record(
        kind="train", created=now(), config={"model": {"path": path}}, seed=0,
        inputs={"model": model, "data": {"sources": [source]}}, outputs={}, numbers={},
        timings={}, metrics={}, versions={}, platform={},
    )  # fmt: skip
    write_record(folder, record)
    return read_made(folder)


def test_old_ids_of_the_hub_have_no_organisation(tmp_path: Path) -> None:
    made = trained_on(tmp_path, "gpt2", "607a30d", data="squad")
    text = card(made)
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["base_model"], front["datasets"]) == ("gpt2", ["squad"])
    assert 'from_pretrained("gpt2", revision="607a30d")' in text
    config = plan_upload(made, "org/mine").files["adapter_config.json"]
    assert isinstance(config, bytes)
    assert json.loads(config)["base_model_name_or_path"] == "gpt2"
    check_push("org/mine", "gpt2", None)


def test_a_folder_is_no_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trained_on(tmp_path, "gpt2", None)
    assert "base_model" not in card(made).split("---\n")[1]
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    for asked in (lambda: plan_upload(made, "org/mine"),
                  lambda: check_push("org/mine", "gpt2", None)):  # fmt: skip
        with pytest.raises(JobError, match=r"belong.* on gpt2, which is nowhere .* give --base-id"):
            asked()
    with pytest.raises(JobError, match=r"as its page there is headed \(gpt2 is openai-community"):
        plan_upload(made, "org/mine", CardOptions(base_id="gpt2"))


def with_code(model: Path, folder: Path) -> Path:
    """``model`` as one that transformers knows by the Python code beside it alone."""
    shutil.copytree(model, folder)
    (folder / "ours.py").write_text(MODELING, encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    places = {"AutoConfig": "ours.OursConfig", "AutoModelForCausalLM": "ours.OursForCausalLM"}
    config |= {"model_type": "ours", "architectures": ["OursForCausalLM"], "auto_map": places}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_base_with_code_of_its_own_is_loaded_as_the_card_says(
    tmp_path: Path, llama_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "c"))
    monkeypatch.syspath_prepend(str(tmp_path / "c"))
    base = with_code(llama_base, tmp_path / "base")
    rows = [{"prompt": f"say {i}", "completion": f"ok {i}"} for i in range(4)]
    (tmp_path / "d.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tree = {
        "model": {"path": str(base), "trust_remote_code": True},
        "data": {"path": str(tmp_path / "d.jsonl")},
        "output": str(tmp_path / "run"),
        "lora": {"rank": 2, "target_modules": ["q_proj"]},
        "training": {"max_steps": 1, "batch_size": 4},
        "machine": {"device": "cpu", "dtype": "float32"},
    }
    run_stage(plan_stage(validate(tree, TrainConfig, "test")))
    made = read_made(tmp_path / "run")
    text = card(made)
    assert "allowed to run Python code that comes with the base" in text
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "run")
    code = code.replace('"base"', repr(str(base)))
    names: dict[str, object] = {}
    exec(code, names)
    assert type(names["model"].base_model.model).__name__ == "OursForCausalLM"  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"trust_remote_code|custom code"):
        exec(code.replace(", trust_remote_code=True", ""), {})


def test_a_base_without_code_asks_for_no_trust(tmp_path: Path) -> None:
    assert "trust_remote_code" not in card(trained_on(tmp_path, "org/base", "607a30d"))
