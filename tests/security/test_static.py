"""What the source must not do, read off it: unpickle, run text, trust code, load YAML's objects."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACES = ("src", "examples", "experiments", "benchmarks", "docs")
SOURCES = [path for place in PLACES for path in sorted((ROOT / place).rglob("*.py"))]

#: Modules that read objects out of bytes, or run what they are given.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "dbm", "code",
           "runpy", "telnetlib", "xmlrpc"}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "torch.load", "np.load", "numpy.load", "yaml.load", "yaml.load_all", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_yaml", "os.system", "os.popen", "jinja2.Template", "Template",
    "tarfile.open", "shutil.unpack_archive", "ElementTree.parse", "ElementTree.fromstring",
}  # fmt: skip
#: Where a name that looks like a call above is another thing.
OWN = {"Template": re.compile(r"anchortune")}
#: Who may start processes, and why: git's commit for a record; benchmarks measure themselves.
PROCESSES = {"src/anchortune/jobs/sweep_record.py", "benchmarks/anchor.py", "benchmarks/job.py"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def problems(source: str, place: str = "") -> Iterator[str]:
    """What a file does against the rules, each as one line."""
    tree = ast.parse(source)
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anchortune")
        for alias in node.names
    } | {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.partition(".")[0] in MODULES:
                    yield f"line {node.lineno}: imports {module}"
                if module == "subprocess" and place not in PROCESSES:
                    yield f"line {node.lineno}: starts processes"
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in BUILTINS or (name in CALLS and name not in ours):
            yield f"line {node.lineno}: calls {name}"
        for word in node.keywords:
            value = getattr(word.value, "value", None)
            if (word.arg, value) in {
                ("trust_remote_code", True), ("allow_pickle", True), ("weights_only", False),
                ("shell", True), ("autoescape", False), ("verify", False),
                ("use_safetensors", False), ("allow_all_kernels", True),
            }:  # fmt: skip
                yield f"line {node.lineno}: {word.arg}={value}"
        if name.endswith("Loader") and name not in {"_Loader", "FileSystemLoader", "DataLoader"}:
            yield f"line {node.lineno}: another YAML loader, {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_source_file_runs_nothing_that_it_reads(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    assert list(problems(path.read_text("utf-8"), place)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "eval('1')",
        "import torch\ntorch.load('x', weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "jinja2.Template(text)",
        "import subprocess",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_rule_sees_what_breaks_it(source: str) -> None:
    assert list(problems(source, "src/x.py"))


def test_trust_goes_through_whole_and_is_never_set() -> None:
    """Every ``trust_remote_code`` that is passed on is the section's own value."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                for word in node.keywords:
                    if word.arg == "trust_remote_code":
                        assert dotted(word.value).endswith(".trust_remote_code"), path
