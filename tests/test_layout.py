"""The house rules, read off the source: which way imports run, sizes, docstrings, light imports."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "anchortune"

#: Modules and packages from the bottom to the top: each imports only those before it.
ORDER = [
    *(
        "_version",
        "errors",
        "deprecations",
        "untrusted",
        "progress",
        "files",
        "hardware",
        "chat",
        "sections",
        "yaml_text",
        "config_penalty",
        "config_defences",
        "config_mix",
        "config",
        "config_io",
        "record",
        "lock",
    ),
    *(
        "run_folder",
        "maths",
        "checkpoints",
        "anchor",
        "adapter",
        "models",
        "data",
        "defences",
        "training",
        "integrations",
    ),
    *("evaluation", "report", "landscape", "jobs", "setup", "cli"),
]
#: Beyond the order: what a package must not know though it comes later.
APART = {
    "maths": set(ORDER[: ORDER.index("maths")]),
    "evaluation": {"training", "defences"},
    "report": {"torch", "hardware", "checkpoints", "anchor", "adapter", "models", "training"},
}
STAGES = ["checkpoints", "anchor", "training", "adapter", "evaluation", "report"]
MOST_LINES = 400
SOURCES = sorted(SRC.rglob("*.py"))
OWN_TEXT = [
    path
    for folder in ("src", "tests", "docs", "examples", ".ci", ".github")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {"", ".py", ".md", ".yaml", ".yml"} and path.is_file()
] + [path for path in sorted(ROOT.iterdir()) if path.suffix in {".md", ".toml", ".yml", ".yaml"}]


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def unit_of(path: Path) -> str:
    """The package of a source file, or the module where it lies at the top."""
    return path.relative_to(SRC).parts[0].removesuffix(".py")


def imports_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, module) of every import, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "anchortune":  # from anchortune import config: a module, or a public name
                yield from ((node.lineno, f"anchortune.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def wrong_imports(unit: str, source: str) -> list[str]:
    """What a file of ``unit`` imports against the rules, each as one line."""
    found = []
    for line, module in imports_of(source):
        first, _, rest = module.partition(".")
        other = rest.partition(".")[0] if first == "anchortune" else first
        if module.startswith("."):
            found.append(f"line {line}: relative import {module}")
        elif other in APART.get(unit, ()):
            found.append(f"line {line}: {unit} must not know {other}")
        elif first == "anchortune" and other != unit:
            if other not in ORDER:
                found.append(f"line {line}: {module} has no place in the order")
            elif ORDER.index(other) > ORDER.index(unit):
                found.append(f"line {line}: {unit} imports {other}, which comes after it")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_imports_run_one_way(path: Path) -> None:
    if path == SRC / "__init__.py":
        return  # the public names, loaded lazily, come from everywhere
    assert unit_of(path) in ORDER, "give the new package a place in ORDER and in the README's tree"
    assert wrong_imports(unit_of(path), path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    ("unit", "source", "said"),
    [
        ("anchor", "from anchortune.training.seam import attach", "comes after"),
        ("anchor", "def f():\n    import anchortune.cli.app", "comes after"),
        ("config", "from anchortune import record", "comes after"),
        ("maths", "from anchortune.errors import AnchortuneError", "must not know errors"),
        ("report", "import torch.nn", "must not know torch"),
        ("evaluation", "from anchortune.training import data", "must not know training"),
        ("cli", "from anchortune import attach", "has no place"),
        ("cli", "from . import train", "relative import"),
    ],
)
def test_the_rule_sees_what_breaks_it(unit: str, source: str, said: str) -> None:
    [problem] = wrong_imports(unit, source)
    assert said in problem


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_a_source_file_is_short_and_asserts_nothing(path: Path) -> None:
    source = path.read_text("utf-8")
    assert source.count("\n") <= MOST_LINES
    asserts = [n.lineno for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Assert)]
    assert not asserts, "python -O drops asserts: raise an error instead"
    assert ast.get_docstring(ast.parse(source)), "say in its first line what the module is for"


def test_every_folder_of_sources_is_a_package_that_says_what_it_is() -> None:
    folders = {path.parent for path in SOURCES}
    for folder in sorted(folders):
        init = folder / "__init__.py"
        assert init.is_file(), f"{label(folder)} has no __init__.py"
        assert ast.get_docstring(ast.parse(init.read_text("utf-8"))), label(init)


def test_the_stages_are_numbered_in_the_order_of_the_flow() -> None:
    for number, name in enumerate(STAGES, start=1):
        text = ast.get_docstring(ast.parse((SRC / name / "__init__.py").read_text("utf-8"))) or ""
        assert text.startswith(f"Stage {number} of {len(STAGES)}: "), name


def loaded(code: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after ``code``."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_no_torch() -> None:
    heavy = {"torch", "transformers", "peft", "trl", "datasets", "pydantic", "matplotlib"}
    assert not loaded("import anchortune") & heavy


def test_the_report_loads_no_torch() -> None:
    modules = [f"anchortune.report.{path.stem}" for path in (SRC / "report").glob("[!_]*.py")]
    assert modules
    assert "torch" not in loaded(f"import {', '.join(modules)}")


def test_every_public_name_is_there() -> None:
    import anchortune

    assert dir(anchortune) == sorted(anchortune.__all__)
    for name in anchortune.__all__:
        assert getattr(anchortune, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Ancor'"):
        anchortune.Ancor  # noqa: B018


def test_no_text_names_a_place_on_somebodys_machine() -> None:
    somewhere = re.compile(r"(?<![\w.:/~])/(?:home|root|mnt|work|workspace|Users|tmp)/\w+")
    found = [
        f"{label(path)}: {match[0]}"
        for path in OWN_TEXT
        for match in somewhere.finditer(path.read_text("utf-8"))
    ]
    assert not found
