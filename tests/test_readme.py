"""What the README shows runs as it stands there, on a tiny model."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TINY = ["training.max_steps=1", "training.max_length_tokens=64", "machine.device=cpu"]


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(starting: str) -> list[list[str]]:
    """The shell lines that begin with ``starting``, split, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starting)]


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_base: Path
) -> None:
    from typer.testing import CliRunner

    from anchortune.cli.app import app

    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama_base, "base-model")
    rows = "".join(
        json.dumps({"prompt": f"q {i}", "completion": f"a {i}"}) + "\n" for i in range(8)
    )
    for block in blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        Path(name).write_text(block)
        Path(yaml.safe_load(block)["data"]["path"]).write_text(rows)
    shown = commands("anchortune ")
    assert [line[1] for line in shown] == ["align", "anchor", "train"]
    for _, *arguments in shown:
        if arguments[0] in ("align", "train"):
            arguments += [part for item in TINY for part in ("--set", item)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    [(_, *promised)] = commands("ls ")
    assert all(Path(path).exists() for path in promised)
    record = json.loads(Path("runs/asft/record.json").read_text())
    assert record["inputs"]["anchor"]["start"] == "aligned"


def test_the_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_base: Path, llama_adapter: Path
) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    monkeypatch.chdir(tmp_path)
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32),
        args=SFTConfig(
            "out", max_steps=1, logging_steps=1, use_cpu=True, bf16=False, report_to="none"
        ),
        train_dataset=Dataset.from_list([{"prompt": "Hello", "completion": " you"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(llama_base),
        peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]),
    )
    script, loop = blocks("python")
    scope: dict[str, Any] = {"aligned": llama_adapter, "base": llama_base, "trainer": trainer}
    exec(script, scope)
    trainer.train()
    assert "asft/penalty" in trainer.state.log_history[0]

    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    ids = torch.arange(8).reshape(1, 8)
    before = [p.detach().clone() for p in trained]
    scope = {
        "model": model,
        "batches": [{"input_ids": ids, "labels": ids}],
        "lam": 1.0,
        "optimizer": torch.optim.SGD(trained, lr=0.1),
    }
    exec(loop, scope)
    assert not all(torch.equal(a, b) for a, b in zip(before, trained, strict=True))
    assert scope["penalty"]().detach() >= 0


def test_it_is_short_and_its_links_lead_somewhere() -> None:
    assert README.count("\n") <= 200
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_the_targets_it_names_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([\w-]+)", README, re.MULTILINE))
    assert {"quickstart", "test"} <= named <= targets


def test_its_tree_names_every_package() -> None:
    tree = README.partition("## Tree")[2].partition("## ")[0]
    for path in (ROOT / "src/anchortune").iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert f"─ {path.name}/" in tree, path.name
        elif path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in tree, path.name
