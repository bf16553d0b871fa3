"""Every command and block of Python of every page, and the configs that commands name, are valid.

A command of ours is given to its own parser, a file of the tree to the schema of what reads it, a
make target to the Makefile. What other programs read is on a list with the reason. A command that
is none of these fails.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from anchortune.cli.app import app
from anchortune.config import AlignConfig, TrainConfig
from anchortune.config_io import load_config
from anchortune.config_mix import MixSection
from anchortune.evaluation.config import EvalConfig
from anchortune.jobs.config import JobConfig
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.landscape.config import BasinConfig
from tests.pages.runner import NOT_RUN, site_hook

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("examples/*/README.md"),
        *ROOT.glob("experiments/*/README.md"),
    ]
)
BLOCK = re.compile(r"^( *)```(\w+)([^\n]*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
#: Made once: it takes a while.
OURS: Any = get_command(app)
#: Programs that are not ours: no test runs them, for the reason beside them.
FOREIGN = {start.split()[0] for start in NOT_RUN}
#: Scripts that a page makes itself or that come from elsewhere.
SCRIPTS = {"script.py", "serve.py", "my_judge.py", "llama.cpp/convert_lora_to_gguf.py"}


def blocks(page: Path, *languages: str) -> Iterator[str]:
    """The text of a page's blocks in one of ``languages``, without their indent."""
    for indent, language, _, text in BLOCK.findall(page.read_text("utf-8")):
        if language in languages:
            yield re.sub(f"^{indent}", "", text, flags=re.MULTILINE)


def commands(page: Path) -> Iterator[list[str]]:
    """Each command of a page in words, without comments and what stands before the program."""
    for block in blocks(page, "bash", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.split(" && "):
                words = shlex.split(part.removeprefix("$ "), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                if words:
                    yield words


def check(words: list[str]) -> None:
    """Raises where a command is not one that its program would take."""
    program, *rest = words
    name = program.rpartition("/")[2]
    if name == "anchortune":
        command: Any = OURS
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        command.make_context("anchortune", rest)  # raises what the parser has to say
    elif name == "make":
        makefile = (ROOT / "Makefile").read_text("utf-8")
        targets = set(
            re.findall(r"^([^\s:=]+):", makefile.replace("$(STAMP)", ".venv/.installed"), re.M)
        )
        assert set(rest) <= targets, f"no such target: {rest}"
    elif name == "python" and rest[0] == "-m":
        assert (ROOT / "src" / (rest[1].replace(".", "/") + ".py")).is_file(), rest
    elif name == "python":
        if rest[0] in SCRIPTS:
            return
        source = (ROOT / rest[0]).read_text("utf-8")
        options = [word for word in rest[1:] if word.startswith("-")]
        assert all(f'"{option}"' in source for option in options), f"{rest[0]}: {options}"
    elif program.startswith(".ci/"):
        assert (ROOT / program).is_file()
    else:
        assert name in FOREIGN, f"{name} is on no list"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_is_one_that_its_program_takes(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except Exception as error:  # whatever a parser raises, with the line beside it
            raise AssertionError(f"{shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_python_compiles_and_imports_what_is_there(page: Path) -> None:
    import ast
    import importlib

    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchortune"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_every_config_of_the_tree_that_a_page_names_is_valid() -> None:
    readers = {
        "run": JobConfig, "train": TrainConfig, "align": AlignConfig, "eval": EvalConfig,
        "mix": MixSection, "sweep": SweepConfig, "basin": BasinConfig,
    }  # fmt: skip
    named = {
        (words[1], words[2])
        for page in PAGES
        for words in commands(page)
        if words[0].endswith("anchortune") and len(words) > 2 and words[1] in readers
    }
    there = [(verb, name) for verb, name in named if name.startswith(("examples/", "experiments/"))]
    assert len(there) >= 4
    for verb, name in there:
        if "$" in name:  # of a loop
            folder = Path(name).parent
            assert list((ROOT / folder).glob(re.sub(r"\$\w+", "*", Path(name).name))), name
        elif verb == "sweep":
            assert (ROOT / name).is_file(), name  # its cells are checked with the sweeps
        else:
            load_config(ROOT / name, readers[verb])


def test_every_symbol_is_held_by_something_that_is_there() -> None:
    import importlib

    rows = re.findall(
        r"\| `(anchortune[\w.]+)` \|$", (ROOT / "docs/symbols.md").read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) >= 20
    for name in rows:
        parts = name.split(".")
        cut = next(i for i, part in enumerate(parts) if not part.islower() or i == len(parts) - 1)
        if not (ROOT / "src" / Path(*parts[:cut]).with_suffix(".py")).is_file():
            cut -= 1
        found: Any = importlib.import_module(".".join(parts[:cut]))
        for part in parts[cut:]:
            found = getattr(found, part)


def test_the_reference_of_the_command_line_has_every_command_and_option() -> None:
    hook = site_hook("generate_cli_reference")
    text = hook.on_page_markdown((ROOT / "docs/cli.md").read_text("utf-8"))
    assert "<!--" not in text
    found = list(hook.commands(get_command(app), "anchortune"))
    assert len(found) >= 25
    for path, command in found:
        section = text.partition(f"## `{path}`\n")[2].partition("\n## ")[0]
        options = [o for p in command.params for o in p.opts if o.startswith("--")]
        assert all(f"`{o}`" in section for o in options if o != "--help"), path


def test_the_faq_names_findings_that_are_explained() -> None:
    named = set(re.findall(r"diagnose\.md#([\w-]+)", (ROOT / "docs/faq.md").read_text("utf-8")))
    told = re.findall(r"^### ([\w-]+)$", (ROOT / "docs/diagnose.md").read_text("utf-8"), re.M)
    assert len(named) > 10
    assert named <= set(told)
