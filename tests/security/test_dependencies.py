"""Each dependency has its reason in ``docs/security.md``, and nothing else is imported."""

from __future__ import annotations

import ast
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from anchortune.sections import TrackerName

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
#: Names of packages that are imported by another.
IMPORTED_AS = {"pyyaml": "yaml"}
#: Needed without being imported, as the table says.
UNSEEN: set[str] = set()
#: Tools that load a plug-in of ours, so that they are there where its module is imported.
HOSTS = {path.stem for path in (ROOT / "src/anchortune/integrations").glob("[!_]*.py")}


def names(requirements: list[str]) -> list[str]:
    return [re.match(r"[\w-]+", line)[0].lower() for line in requirements]  # type: ignore[index]


DIRECT = names(PROJECT["dependencies"])
EXTRAS = PROJECT["optional-dependencies"]


def imported() -> set[str]:
    """Every module from outside that the package imports, but a plug-in's own host."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        host = {path.stem} & HOSTS if path.parent.name == "integrations" else set()
        tree = ast.parse(path.read_text("utf-8"))
        typing = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in node.body
        }
        for node in ast.walk(tree):
            if id(node) in typing:  # for type checkers alone
                continue
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names} - host
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found |= {(node.module or "").partition(".")[0]} - host
    return found - set(sys.stdlib_module_names) - {"anchortune", "__future__"}


def test_the_table_names_each_dependency_once_with_its_reason() -> None:
    table = PAGE.split("## Dependencies")[1].split("Extras:")[0]
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", table, flags=re.M)
    assert [name for name, _ in rows] == DIRECT
    assert all(len(reason) > 8 for _, reason in rows)


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    known = {IMPORTED_AS.get(name, name) for name in DIRECT}
    optional = {name for extra in ("server", "ray", "qlora") for name in names(EXTRAS[extra])}
    optional |= set(get_args(TrackerName))  # who names one in a config has it
    assert imported() <= known | optional
    assert known - imported() == UNSEEN


def test_every_direct_dependency_is_pinned() -> None:
    pinned = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().split() if line
    )
    assert set(DIRECT) <= set(pinned)
    assert all(re.fullmatch(r"[\w.]+", version) for version in pinned.values())


def test_the_tools_of_the_audit_are_the_declared_ones() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert EXTRAS["audit"]
    for pin in EXTRAS["audit"] + EXTRAS["fuzz"]:
        assert pin in makefile


@pytest.mark.parametrize(
    ("says", "code", "want"),
    [
        ("", 0, 0),
        ("Found 1 known vulnerability in 1 package", 1, 1),
        ("requests.exceptions.ConnectionError: Max retries exceeded", 1, 3),
        ("ERROR:pip_audit: ServiceError: timed out", 1, 3),
        ("ERROR: torch: not found on PyPI and could not be audited: torch (2.13.0)", 1, 3),
    ],
)
def test_an_audit_that_asked_nobody_is_not_green(
    tmp_path: Path, says: str, code: int, want: int
) -> None:
    tool = tmp_path / "pip-audit"
    tool.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit {code}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    words = ["sh", str(ROOT / ".ci" / "audit"), str(tool), "constraints.txt"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == want
    assert ("not audited" in done.stderr) == (want == 3)
