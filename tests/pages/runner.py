"""Runs the commands of a page, in order, in the folder it is called in: what every page's test has.

A page's test prepares a scene, the files and models that the page speaks of, and calls `run_page`,
which runs each command of the page that is not in `NOT_RUN`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r'^( *)```(\w+)(?: title="([^"]+)")?[^\n]*\n(.*?)^ *```$', re.MULTILINE | re.DOTALL
)
#: How a command begins that no test runs, and why not. Their options are still held against their
#: parser where they are ours: tests/test_docs_commands.py.
NOT_RUN = {
    "vllm ": "needs a GPU",
    "llama-cli ": "a program in C++ that is built elsewhere",
    "python llama.cpp/": "a script of another project; tests/adapter runs it where it is there",
    "ollama ": "a server",
    "lm_eval ": "needs the Hub",
    "inspect ": "needs the Hub",
    "hf ": "logs in to the Hub",
    "accelerate ": "several devices; tests/training runs two processes of torch itself",
    "torchrun ": "several devices",
    "pip ": "installs packages",
    "export ": "of the shell",
    "source ": "of the shell",
    "ls ": "of the shell; tests/test_readme.py looks for the files",
    "tail ": "of the shell",
    "for ": "of the shell",
    "done": "of the shell",
    "make ": "a target: `make full` has the slow ones, .ci/run the others",
    ".ci/run": "what runs these tests",
}


def parts(page: Path) -> Iterator[tuple[str, str, str]]:
    """(kind, name, text) in the page's order: a ``file`` with its name, or a ``command``.

    A file is a block with a ``title="name"``, or of YAML or Python whose first line is its name as
    a comment. Commands are the lines of ``bash``, and those after a ``$`` of ``console``.
    """
    for indent, language, title, block in BLOCK.findall(page.read_text("utf-8")):
        text = re.sub(f"^{indent}", "", block, flags=re.MULTILINE)
        named = re.match(r"# ([\w./-]+\.(?:yaml|yml|py))\n", text)
        if title or named:
            yield "file", title or named[1], text  # type: ignore[index]
        elif language in ("bash", "console"):
            for line in text.replace("\\\n", " ").splitlines():
                start, _, rest = line.partition("$ ")
                if language == "console" and start:
                    continue  # what the command printed
                for command in (rest if language == "console" else line).split(" && "):
                    if command.strip() and not command.startswith("#"):
                        yield "command", "", re.sub(r"^([A-Z_]+=\S* )*", "", command.strip())


def run_command(text: str, more: Collection[str] = (), code: int | tuple[int, ...] = 0) -> str:
    """Runs one command, one of ours in this process, and returns what it printed.

    Args:
        text: The command as a page has it.
        more: ``key=value`` pairs that make it small, each given by ``--set``, or options.
        code: The exit code that it must end in, or those that it may.
    """
    from typer.testing import CliRunner

    from anchortune.cli.app import app

    wanted = code if isinstance(code, tuple) else (code,)
    program, *words = shlex.split(text, comments=True)
    for word in more:
        words += [word] if word.startswith("-") else ["--set", word]
    if program.rpartition("/")[2] == "anchortune":
        result = CliRunner().invoke(app, words)
        assert result.exit_code in wanted, f"{text}\n{result.output}\n{result.exception!r}"
        return result.stdout
    assert program.rpartition("/")[2] == "python", f"{text}: nothing here runs it"
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    assert done.returncode in wanted, f"{text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _longest(table: Mapping[str, object], text: str) -> str:
    """The longest key that ``text`` begins with."""
    return max((start for start in table if text.startswith(start)), key=len, default="")


def run_page(
    name: str,
    *,
    files: bool = False,
    smaller: Mapping[str, Collection[str]] | None = None,
    codes: Mapping[str, int | tuple[int, ...]] | None = None,
    instead: Mapping[str, str] | None = None,
    left_out: Mapping[str, str] | None = None,
) -> list[str]:
    """Runs a page's commands from top to bottom in the current folder; returns their output.

    Args:
        name: The page's path from the repository's root.
        files: Whether the page's files are written when its order comes to them.
        smaller: By the beginning of a command, what `run_command` adds; the longest that fits.
        codes: By the beginning of a command, its exit code where that is not 0.
        instead: Words of a command that stand for what a reader has, and what stands here.
        left_out: By the beginning of a command, why this page's test does not run it.
    """
    printed = []
    used = set()
    for kind, path, text in parts(ROOT / name):
        if kind == "file":
            if files:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                Path(path).write_text(text, "utf-8")
            continue
        skipped = [start for start in {**NOT_RUN, **(left_out or {})} if text.startswith(start)]
        used.update(skipped)
        if skipped:
            continue
        for word, real in (instead or {}).items():
            text = re.sub(rf"(?<=\s){re.escape(word)}(?=\s|$)", real, text)
        more, code = _longest(smaller or {}, text), _longest(codes or {}, text)
        printed.append(run_command(text, (smaller or {}).get(more, ()), (codes or {}).get(code, 0)))
    assert printed, f"no command of {name} was run"
    assert set(left_out or {}) <= used, f"{name} has no such command: {left_out}"
    return printed


def site_hook(name: str) -> ModuleType:
    """A hook of the site, ``docs/NAME.py``, which is no module of a package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
