"""What every command has: --json, a way to go on after Ctrl-C, the nearest name, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from anchortune.cli import app as root
from anchortune.cli.app import app
from tests.cli.test_app import COMMANDS, PLAIN
from tests.report.sweep_records import sweep, write

#: The root and its groups, which do nothing themselves.
GROUPS = {path[:depth] for path in COMMANDS for depth in range(len(path))}
LEAVES = [path for path in COMMANDS if path not in GROUPS]


def call(*words: str | Path, environment: dict[str, str] | None = None) -> Result:
    """The command in this process, with what it prints apart."""
    return CliRunner().invoke(app, [str(word) for word in words], env=PLAIN | (environment or {}))


@pytest.mark.parametrize("command", LEAVES, ids=" ".join)
def test_every_command_has_json(command: tuple[str, ...]) -> None:
    assert "--json" in call(*command, "--help").stdout


def test_a_table_and_a_picture_as_json(tmp_path: Path) -> None:
    write(sweep(), tmp_path / "r")
    results = tmp_path / "r"
    asked = ("table", results, "--columns", "task", "--judge", "builtin")
    told = call(*asked, "--json")
    assert json.loads(told.stdout)["figures"]
    assert call(*asked, "--format", "json").stdout == told.stdout
    written = json.loads(call(*asked, "--format", "csv", "-o", tmp_path / "t.csv", "--json").stdout)
    assert written == {"table": str(tmp_path / "t.csv"), "format": "csv"}
    assert (tmp_path / "t.csv").is_file()
    refused = call(*asked, "--format", "csv", "--json")
    assert "--json is not --format csv" in str(refused.exception)
    drawn = call("plot", results, "-o", tmp_path / "p.png", "--json")
    assert json.loads(drawn.stdout) == {"pictures": [str(tmp_path / "p.png")]}
    assert drawn.stderr == ""


@pytest.mark.parametrize(
    ("words", "place", "said"),
    [
        (("status", "x"), "anchortune.jobs.status.read_any", "run the same command again"),
        (("train", "x"), "anchortune.cli.stage.run", "the same command goes on from what is done"),
        (("anchor", "inspect", "x"), "anchortune.anchor.anchor.Anchor.load", "run the same"),
    ],
)
def test_ctrl_c_says_how_to_go_on(
    words: tuple[str, ...], place: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, stop)
    result = call(*words)
    assert result.exit_code == 130
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("anchortune: stopped by hand; ")
    assert said in line


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (("trainn",), "train"),
        (("anchor", "bbuild"), "build"),
        (("train", "c.yaml", "--dryrun"), "--dry-run"),
    ],
)
def test_a_misspelt_name_is_told_the_nearest(words: tuple[str, ...], meant: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert meant in result.stderr.splitlines()[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_other_libraries_draw_bars_on_a_terminal_only(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in root._NO_BARS:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setattr(root, "on_terminal", lambda: terminal)
    monkeypatch.setattr(root, "app", lambda: None)
    root.main()
    assert {name in os.environ for name in root._NO_BARS} == {not terminal}


def complete(line: str, shell: str = "bash", between: str = " ") -> list[str]:
    """What a shell is told to offer for the last word of ``line``."""
    words = line.split(" ")
    asked = {"COMP_WORDS": between.join(words), "COMP_CWORD": str(len(words) - 1)}
    asked |= {
        "_ANCHORTUNE_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    runner = CliRunner()
    result = runner.invoke(app, [], prog_name="anchortune", env=asked)
    return result.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("anchortune tra", ["train"]),
        ("anchortune anchor in", ["inspect"]),
        ("anchortune train c.yaml --dr", ["--dry-run"]),
        ("anchortune project a --method s", ["safe-lora", "subspace"]),
        ("anchortune screen d.jsonl --judge built", ["builtin"]),
        ("anchortune init --judge built", ["builtin"]),
        ("anchortune anchor build --device ", ["auto", "cpu", "cuda"]),
        ("anchortune train c.yaml --set penalty.lam", ["penalty.lam=", "penalty.lam_inside="]),
        (
            "anchortune train c.yaml --set machine.dty",
            [f"machine.dtype={name}" for name in ("auto", "float32", "bfloat16", "float16")],
        ),
        ("anchortune align c.yaml --set method=", ["method=sft", "method=dpo", "method=grpo"]),
        ("anchortune run j.yaml --set limits.max_harm_in", ["limits.max_harm_increase="]),
        ("anchortune train c", []),  # a file: the shell's own
    ],
)
def test_tab_completes(line: str, offered: list[str]) -> None:
    assert complete(line) == offered


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("align c.yaml --set method =", ["sft", "dpo", "grpo"]),
        ("align c.yaml --set method = d", ["dpo"]),
        (
            "train c.yaml --set penalty.lam = auto --set seed = --set machine.dtype = b",
            ["bfloat16"],
        ),
        ("align c.yaml --set method=d", ["method=dpo"]),  # without = in COMP_WORDBREAKS
        ("screen d.jsonl --judge = built", ["builtin"]),
        ("align c.yaml --set = method = d", ["dpo"]),
        ("align c.yaml --set method = dpo --dry", ["--dry-run"]),
        ("align c.yaml --set method = dpo --set learn_som", []),
    ],
)
def test_bash_takes_words_apart_at_an_equals_sign(words: str, offered: list[str]) -> None:
    assert complete(f"anchortune {words}", between="\n") == offered


def test_typers_script_for_bash_completes_a_setting(tmp_path: Path) -> None:
    """In the bash that is here, called as readline calls it."""
    program = tmp_path / "anchortune"
    code = "from anchortune.cli.app import main; main()"
    program.write_text(f"#!{sys.executable}\n{code}\n", encoding="utf-8")
    program.chmod(0o755)
    script = """eval "$(anchortune --show-completion bash)"
        COMP_WORDS=(anchortune align c.yaml --set method = d); COMP_CWORD=6
        _anchortune_completion anchortune; printf '%s\\n' "${COMPREPLY[@]}" """
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    done = subprocess.run(
        ["bash", "--norc", "-c", script], capture_output=True, text=True, check=True,
        env=os.environ | named | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.stdout == "dpo\n"


def test_tab_completes_in_zsh_and_fish() -> None:
    assert "train" in " ".join(complete("anchortune tra", "zsh"))
    assert complete("anchortune train c", "zsh") == ["_files"]
    assert complete("anchortune tra", "fish")[:1] == ["train"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell_is_printed(shell: str) -> None:
    # Without this variable typer looks at the process above for the shell's name.
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    code = "import sys; sys.argv[0] = 'anchortune'; from anchortune.cli.app import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "--show-completion", shell],
        capture_output=True, text=True, check=True, env=os.environ | named,
    )  # fmt: skip
    assert f"_ANCHORTUNE_COMPLETE=complete_{shell}" in done.stdout
