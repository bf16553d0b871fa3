"""The how-to pages and the tutorial: files fit their schema, commands their parser, pages run.

A page makes its files itself, in an empty folder beside two checkpoints: a block of YAML or Python
by its first line (``# name.yaml``), data by ``title="name"``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from anchortune.cli.app import app
from anchortune.config import TrainConfig
from anchortune.config_io import load_config
from anchortune.evaluation.config import EvalConfig
from anchortune.jobs.config import JobConfig
from tests import tiny

DOCS = Path(__file__).parents[1] / "docs"
PAGES = [*sorted((DOCS / "howto").glob("*.md")), DOCS / "tutorial.md"]
BLOCK = re.compile(r'^ *```(\w+)(?: title="([^"]+)")?\n(.*?)^ *```$', re.MULTILINE | re.DOTALL)
#: Pages that run as they stand on a tiny model. Not these: the tutorial is minutes of a real one,
#: ``qlora`` needs CUDA, ``many-gpus`` several devices and machines, ``index`` installs a package.
RUN = ["own-data", "own-judge", "own-task", "mend", "existing-script", "ci", "service"]
#: Four prompts are too few for a gate.
ENDS_IN = {"anchortune gate runs/release": 4}


def parts(page: Path) -> Iterator[tuple[str, str, str]]:
    """(kind, name, text) in the page's order: a ``file`` with its name, or a ``command``."""
    for language, title, text in BLOCK.findall(page.read_text("utf-8")):
        named = re.match(r"# ([\w./-]+\.(?:yaml|yml|py))\n", text)
        if title or named:
            yield "file", title or named[1], text  # type: ignore[index]
        elif language == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip() and not line.startswith("#"):
                    yield "command", "", line


def kind_of(tree: dict[str, Any]) -> Any:
    """The schema of a config of ours; None for one that another program reads."""
    if "evaluate" in tree:
        return JobConfig
    return EvalConfig if "models" in tree else TrainConfig if "model" in tree else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configs_and_commands_are_valid(page: Path, tmp_path: Path) -> None:
    for kind, name, text in parts(page):
        if kind == "file" and name.endswith((".yaml", ".yml")):
            (tmp_path / "it.yaml").write_text(text, "utf-8")
            if schema := kind_of(yaml.safe_load(text)):
                load_config(tmp_path / "it.yaml", schema)
        elif kind == "file" and name.endswith(".py"):
            compile(text, name, "exec")
        elif kind == "command" and text.startswith("anchortune "):
            words = shlex.split(text, comments=True)[1:]
            command: Any = get_command(app)
            while hasattr(command, "commands"):
                command = command.commands[words.pop(0)]
            command.make_context("anchortune", words)  # raises what the parser has to say


def test_no_page_is_forgotten() -> None:
    left_out = {"tutorial", "qlora", "many-gpus", "index"}
    assert {page.stem for page in PAGES} == {*RUN, *left_out}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", RUN)
def test_a_page_runs_from_an_empty_folder(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # A script of the page starts the command as one does in an environment that is active.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    for seed, name in enumerate(("base-model", "aligned-model")):
        # Wide enough that an anchor of the default rank leaves something off it.
        tiny.tiny_llama(Path(name), seed=seed, tokenizer=True, hidden_size=128)
    for kind, name, text in parts(DOCS / "howto" / f"{page}.md"):
        if kind == "file":
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, "utf-8")
            continue
        program, *words = shlex.split(text, comments=True)
        wanted = next((code for start, code in ENDS_IN.items() if text.startswith(start)), 0)
        if program == "anchortune":
            result = CliRunner().invoke(app, words)
            assert result.exit_code == wanted, f"{text}\n{result.output}\n{result.exception!r}"
        else:
            assert program == "python", text
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
            assert done.returncode == wanted, f"{text}\n{done.stderr}"
            assert "bad data" not in done.stdout
