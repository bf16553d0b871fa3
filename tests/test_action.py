"""``action.yml``: its steps, run in order as GitHub runs a composite action's."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.jobs.conftest import FAILS, OPEN, PASSES, job_tree
from tests.report import made_up

ROOT = Path(__file__).parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.write(tmp_path_factory.mktemp("action") / "eval")


class Done(NamedTuple):
    """What a use of the action leaves: its outputs as a workflow reads them, the run's summary."""

    code: int
    outputs: dict[str, str]
    summary: str
    told: str


def act(folder: Path, **inputs: str) -> Done:
    """Every step whose condition holds, until one fails; ``folder`` is the workflow's workspace."""
    tools = folder / ".tools"
    tools.mkdir(exist_ok=True)
    for name, program in (
        ("anchortune", f"#!{sys.executable}\nfrom anchortune.cli.app import main\nmain()\n"),
        ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        (tools / name).write_text(program, encoding="utf-8")
        (tools / name).chmod(0o755)
    assert set(inputs) <= set(ACTION["inputs"])
    given = {name: inputs.get(name, spec["default"]) for name, spec in ACTION["inputs"].items()}
    outputs: dict[str, str] = {}
    code, told, summary = 0, "", tools / "summary"
    summary.write_text("")
    for number, step in enumerate(ACTION["runs"]["steps"]):
        condition = re.fullmatch(r"inputs\.(\w+) != ''", step.get("if", "inputs.install != ''"))
        assert condition, step["if"]
        if code or ("if" in step and not given[condition[1]]):
            continue
        written, script = tools / f"output-{number}", tools / f"step-{number}.sh"
        written.touch()
        script.write_text(step["run"], encoding="utf-8")
        values = {
            name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda m: given[m[1]], text)
            for name, text in step["env"].items()
        }
        environment = os.environ | values | {
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(written),
            "GITHUB_STEP_SUMMARY": str(summary),
            "PATH": f"{tools}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT / "src"),
        }  # fmt: skip
        assert step["shell"] == "bash"
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            env=environment, cwd=folder, capture_output=True, text=True,
        )  # fmt: skip
        code = done.returncode
        told += done.stdout + done.stderr
        for line in written.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            outputs[f"steps.{step['id']}.outputs.{name}"] = value
    seen = {
        name: outputs.get(spec["value"].removeprefix("${{ ").removesuffix(" }}"), "")
        for name, spec in ACTION["outputs"].items()
    }
    return Done(code, seen, summary.read_text(encoding="utf-8"), told)


@pytest.mark.parametrize(
    ("limits", "code", "decision"),
    [
        ("--max-harm-increase 0.1", 0, "passed"),
        ("--max-harm 0.5\n--model sft\n", 3, "failed"),
        ("--max-harm-increase 0.02", 4, "undecided"),
        ("--max-harm 7; touch hacked", 2, "mistake"),
    ],
)
def test_the_action_ends_as_the_gate_decided(
    tmp_path: Path, record: Path, limits: str, code: int, decision: str
) -> None:
    done = act(tmp_path, record=str(record), limits=limits, junit="gate.xml")
    assert done.code == code, done
    assert done.outputs == {"decision": decision}
    heading, empty, *told = done.summary.splitlines()
    assert heading == f"### anchortune: {decision}"
    assert empty == ""
    assert told
    assert all(line.startswith("    ") and "::" not in line[:8] for line in told)
    assert (tmp_path / "gate.xml").is_file() == (code != 2)
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "inputs", [{}, {"job": "a.yaml", "record": "b"}, {"limits": "--max-harm 1"}]
)
def test_the_action_wants_a_record_or_a_job(tmp_path: Path, inputs: dict[str, str]) -> None:
    done = act(tmp_path, **inputs)
    assert (done.code, done.outputs) == (2, {"decision": "mistake"})
    assert "give record with limits, or job alone" in done.told


def test_a_job_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    done = act(tmp_path, job="no-such.yaml")
    assert (done.code, done.outputs) == (2, {"decision": "mistake"})
    assert "no-such.yaml: cannot read the config" in done.summary


def test_where_nothing_can_be_installed_nothing_is_decided(tmp_path: Path, record: Path) -> None:
    done = act(tmp_path, install="--no-index ./no-such.whl", record=str(record))
    assert done.code not in (0, 3, 4)
    assert (done.outputs, done.summary) == ({"decision": ""}, "")


def wheel(folder: Path) -> Path:
    """A package that pip installs without an index: one empty module."""
    place = folder / "inert-1.0-py3-none-any.whl"
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: inert\nVersion: 1.0\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    with zipfile.ZipFile(place, "w") as file:
        file.writestr("inert.py", "")
        for name, text in info.items():
            file.writestr(f"inert-1.0.dist-info/{name}", text)
    return place


@pytest.mark.slow
def test_the_action_runs_a_whole_job(tmp_path: Path, llama_base: Path, llama_adapter: Path) -> None:
    """Installed, trained, evaluated and let through; stopped and left open by other limits."""
    tree = job_tree(tmp_path, llama_base, llama_adapter)
    job, here = tmp_path / "job.yaml", tmp_path / "job"
    install = f"--no-index --no-deps\n--target installed\n./{wheel(tmp_path).name}\n"
    for limits, code, decision in (
        (PASSES, 0, "passed"),
        (FAILS, 3, "failed"),
        (OPEN, 4, "undecided"),
    ):
        job.write_text(json.dumps(tree | {"limits": limits}), encoding="utf-8")
        done = act(tmp_path, job="job.yaml", install=install)
        assert (done.code, done.outputs) == (code, {"decision": decision}), done
        assert (tmp_path / "installed" / "inert.py").is_file()
        assert done.summary.startswith(f"### anchortune: {decision}\n")
        told = done.summary.splitlines()[2:]
        assert any("accuracy" in line for line in told)
        assert all(line.startswith("    ") for line in told)
        assert (here / "adapter").is_dir() == (code == 0)
        assert (here / "rejected").is_dir() == (code != 0)
        assert (
            json.loads((here / "record.json").read_text())["metrics"]["gate"]["decision"]
            == decision
        )


def test_no_input_is_pasted_into_a_script() -> None:
    assert not [step for step in ACTION["runs"]["steps"] if "${{" in step["run"]]
