"""What stands round the package: the container file, the bounds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.test_layout import ORDER

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


# The container file


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]  # type: ignore[misc]


def test_the_image_copies_what_is_there_and_sent_to_the_builder() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        word
        for name, rest in instructions()
        if name == "COPY" and not rest.startswith("--from")
        for word in rest.split()[:-1]
    }
    assert copied == sent
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {project["readme"], *project["license-files"]} <= copied, "the build reads them"


def test_the_image_keeps_the_rules_of_images() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert "ADD" not in names
    assert [rest for name, rest in found if name == "USER"] == ["1000"], "not as root"
    assert dict(found)["ENTRYPOINT"] == '["anchortune"]'
    bases = [rest for name, rest in found if name == "ARG" and rest.startswith("BASE=")]
    assert len(bases) == 1
    assert re.fullmatch(r"BASE=python:3\.\d+-slim-\w+", bases[0]), "a release, never `latest`"
    installs = [rest for name, rest in found if name == "RUN" and "pip install" in rest]
    assert installs
    for line in installs:
        assert "--no-cache-dir" in line
        assert "--constraint constraints.txt" in line


# The bounds


def bounds() -> dict[str, str]:
    """Package -> the lowest version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    pairs = [re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", line) for line in wanted]
    assert all(pairs), wanted
    return {pair[1].lower(): pair[2] for pair in pairs if pair}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {
        n.lower(): v
        for n, _, v in (line.partition("==") for line in lines if line and line[0] != "#")
    }


def test_the_lowest_pins_are_the_bounds_and_the_pins_keep_them() -> None:
    lowest, pinned = bounds(), pins("constraints.txt")
    assert pins("constraints-lowest.txt") == lowest

    def parts(version: str) -> list[int]:
        return [int(part) for part in version.split(".")]

    assert not {n for n, v in lowest.items() if parts(pinned[n]) < parts(v)}


def test_ci_runs_every_python_that_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {c.rsplit(" ", 1)[1] for c in project["classifiers"] if ":: 3." in c}
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    matrix = jobs["versions"]["strategy"]["matrix"]["include"]
    run = {*jobs["ci"]["strategy"]["matrix"]["python"], *(entry["python"] for entry in matrix)}
    assert run == declared
    assert all(not entry["pins"] or (ROOT / entry["pins"]).is_file() for entry in matrix)


def test_contributing_tells_the_order_of_imports() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("before it in this list:\n\n```\n")[1].split("```")[0]
    assert [name for name in re.split(r"[,→\s]+", block) if name] == [
        name for name in ORDER if name != "cli"
    ] + ["cli"]


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    from anchortune import __version__

    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert "2506.08473" in json.dumps(citation["references"])


# The Makefile


def test_a_python_too_old_for_the_pins_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    pretend = "import platform, sys; sys.version_info = (3, 11, 2)"
    old = tmp_path / "python3"
    old.write_text(
        f"""#!/bin/sh
[ "$1" = -c ] || exit 9
exec {sys.executable} -c "{pretend}
platform.python_version = lambda: '3.11.2'
$2"
""",
        encoding="utf-8",
    )
    old.chmod(0o755)
    # What a make around the tests was given is not for this one.
    theirs = ("MAKE", "PINS", "VENV", "PYTHON")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(theirs)}

    def make(*given: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "test", f"VENV={tmp_path / 'venv'}", f"PYTHON={old}", *given]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = make()
    assert done.returncode == 2
    assert not (tmp_path / "venv").exists()
    assert "Python 3.11.5 or later is needed here" in done.stderr
    assert f"{old} is 3.11.2: name another, as in make test PYTHON=python3.12" in done.stderr
    # Without the pins, what the package itself asks for is enough.
    done = make("PINS=")
    assert "Setting up" in done.stdout
    assert "is needed here" not in done.stderr
