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

from tests import tiny

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
TINY = [
    "training.max_steps=1",
    "training.max_length_tokens=64",
    "machine.device=cpu",
    "evaluate.generation.max_new_tokens=4",
    # The judge of harm needs weights that are not installed everywhere.
    "evaluate.judges=refusal",
    "limits={max_accuracy_drop: 0.03}",
    "penalty.rank=4",
    "screen=null",
]


def blocks(language: str) -> list[str]:
    """The README's code blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def commands(starting: str) -> list[list[str]]:
    """The shell lines that begin with ``starting``, split, without comments."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(starting)]


def test_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llama_base: Path) -> None:
    from typer.testing import CliRunner

    from anchortune.cli.app import app

    monkeypatch.chdir(tmp_path)
    tiny.tiny_llama(Path("aligned-model"), seed=2, tokenizer=True)
    shutil.copytree(llama_base, "base-model")
    [job] = blocks("yaml")
    name = job.splitlines()[0].removeprefix("# ")
    Path(name).write_text(job)
    rows = [{"question": f"q {i}", "answer": f"a {i}"} for i in range(12)]
    for path in ("task.jsonl", "test.jsonl"):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"prompt": f"how to take cookie {i}?"} for i in range(12)]
    Path("malicious.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    shown = commands("anchortune ")
    assert [line[1] for line in shown] == ["run", "run", "status"]
    for _, *arguments in shown:
        if arguments[0] == "run":
            arguments += [part for item in TINY for part in ("--set", item)]
        result = CliRunner().invoke(app, arguments, catch_exceptions=False)
        # Two random models on six prompts: too few to tell.
        done = 4 if arguments[0] == "run" and "--dry-run" not in arguments else 0
        assert result.exit_code == done, result.output
    [(_, *promised)] = commands("ls ")
    assert all(Path(path).exists() for path in promised)
    assert Path("runs/job/rejected/adapter").is_dir()
    assert not Path("runs/job/adapter").exists()


def test_every_command_that_it_names_is_there() -> None:
    from typer.main import get_command

    from anchortune.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    table = README.partition("| command | what it does |")[2].partition("\n\n")[0]
    named = {name.split()[0] for name in re.findall(r"\[`([\w ]+)`[\],]", table)}
    assert named | {"run", "status"} == known


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
    measured = {f"bench-{path.stem}" for path in (ROOT / "benchmarks").glob("*.py")}
    assert {"quickstart", "test"} <= named <= targets | measured


def test_its_tree_names_every_package() -> None:
    tree = README.partition("## Tree")[2].partition("## ")[0]
    for path in (ROOT / "src/anchortune").iterdir():
        if path.is_dir() and (path / "__init__.py").is_file():
            assert f"─ {path.name}/" in tree, path.name
        elif path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in tree, path.name
