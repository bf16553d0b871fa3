"""The root of the command line: light, helpful, and one line for a user's mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from anchortune import __version__
from anchortune.cli.app import app
from tests.warm import run_command


def _below(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in sorted(getattr(group, "commands", {}).items()):
        yield from _below(command, (*path, name))


#: The root first, then every command that there is.
COMMANDS = list(_below(get_command(app)))
HEAVY = {"torch", "numpy", "transformers", "peft", "trl", "datasets", "pandas", "matplotlib"} | {
    *("safetensors", "tokenizers", "huggingface_hub", "accelerate", "jinja2", "yaml"),
    "pydantic",  # which typer loads to read an option that is given, a help's own aside
    *("rich", "pygments", "markdown_it"),  # they take as long as all the rest of --help
}
CONFIG = "model: {path: m}\ndata: {path: d.jsonl}\noutput: out\n"


#: The width does not depend on the terminal.
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1"}
Result = subprocess.CompletedProcess[str]


def run(*arguments: str | Path, cwd: Path | None = None) -> Result:
    """The installed command in a process of its own."""
    return run_command(*arguments, cwd=cwd, environment=PLAIN)


def run_cold(*arguments: str | Path, cwd: Path | None = None) -> Result:
    """By a fresh interpreter: what the imports say is to be seen too."""
    return subprocess.run(
        [sys.executable, "-c", "from anchortune.cli.app import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **PLAIN},
    )


def mistake(*arguments: str | Path, cwd: Path, by: Callable[..., Result] = run) -> str:
    """What a mistake says, after checking how it ends: code 2, one line, stdout empty."""
    result = by(*arguments, cwd=cwd)
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    [line] = result.stderr.splitlines()
    assert line.startswith("anchortune: ")
    return line


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Usage: " in result.stdout
    assert "--help" in result.stdout


def test_help_names_every_command() -> None:
    top, anchor = run("-h").stdout, run("anchor", "-h").stdout
    assert all(name in top for name in ("train", "align", "anchor"))
    assert all(name in anchor for name in ("build", "inspect", "push"))


def test_help_tells_the_whole_of_what_a_command_does() -> None:
    told = run_command("--help", environment={**PLAIN, "COLUMNS": "60"}).stdout
    assert "exit 0 yes, 3 no, 4 too few to tell." in " ".join(told.split())
    assert "..." not in told.partition("Commands:")[2]


@pytest.fixture(scope="module")
def loaded() -> dict[tuple[str, ...], set[str]]:
    """What each command's help loads that none before it did, all in one fresh process.

    A module that two of them load is the first one's; stderr holds these lists and nothing else.
    """
    code = (
        "import json, sys\nfrom anchortune.cli.app import app\nseen = set()\n"
        f"for command in {COMMANDS}:\n"
        "    app([*command, '--help'], standalone_mode=False)\n"
        "    print(json.dumps(sorted(set(sys.modules) - seen)), file=sys.stderr)\n"
        "    seen = set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    tops = [{name.partition(".")[0] for name in names} for names in found]
    return dict(zip(COMMANDS, tops, strict=True))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_nothing_heavy(
    loaded: dict[tuple[str, ...], set[str]], command: tuple[str, ...]
) -> None:
    assert "anchortune" in loaded[()]
    assert not loaded[command] & HEAVY


def test_the_first_help_loads_few_modules_of_our_own() -> None:
    code = (
        "import sys\nfrom anchortune.cli.app import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "names = [n for n in sys.modules if n.startswith('anchortune')]\n"
        "print(*names, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    allowed = {"anchortune", "anchortune._version", "anchortune.errors", "anchortune.files"}
    # How every command prints, and names that go away.
    allowed |= {"anchortune.untrusted", "anchortune.progress", "anchortune.deprecations"}
    ours = {name for name in done.stderr.split() if not name.startswith("anchortune.cli")}
    assert ours <= allowed  # what a command does is imported when it is run


def test_version() -> None:
    result = run_cold("--version")
    assert (result.returncode, result.stdout) == (0, f"anchortune {__version__}\n")


@pytest.mark.parametrize("command", ["train", "align"])
def test_a_missing_config_is_one_line(tmp_path: Path, command: str) -> None:
    line = mistake(command, "gone.yaml", cwd=tmp_path)
    assert "gone.yaml: cannot read the config (No such file or directory)" in line


def test_an_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG + "trainig: {epochs: 1}\n")
    assert "unknown key 'trainig'; did you mean 'training'?" in mistake(
        "train", "c.yaml", cwd=tmp_path
    )
    (tmp_path / "c.yaml").write_text(CONFIG)
    assert "unknown key 'lora.rnk'; did you mean 'rank'?" in mistake(
        "train", "c.yaml", "--set", "lora.rnk=4", cwd=tmp_path
    )


def test_a_missing_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG.replace("path: m", "path: ./m"))
    assert "./m" in mistake("train", "c.yaml", "--dry-run", cwd=tmp_path, by=run_cold)
    assert not (tmp_path / "out").exists()


def test_an_anchor_that_is_none(tmp_path: Path) -> None:
    assert "gone.safetensors is no file" in mistake(
        "anchor", "inspect", "gone.safetensors", cwd=tmp_path
    )


@pytest.mark.parametrize(
    ("output", "reason"),
    [("folder", "it is a folder; name a file"), ("file/a.safetensors", "file is no folder")],
)
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, output: str, reason: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    parents = ("--aligned", "./gone", "--base", "./gone")
    line = mistake("anchor", "build", *parents, "-o", output, cwd=tmp_path)
    assert line.endswith(reason)


def test_an_error_of_the_system_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    from anchortune.cli import app as root

    def ends(error: Exception) -> int:
        def fail() -> None:
            raise error

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(root, "app", fail)
            with pytest.raises(SystemExit) as stopped:
                root.main()
        return int(stopped.value.code or 0)

    assert ends(PermissionError(13, "Permission denied", "out/record.json")) == 2
    assert capsys.readouterr().err == (
        "anchortune: out/record.json: Permission denied; change its rights, or name another "
        "place.\n"
    )
    assert ends(OSError("first\nsecond")) == 2
    assert capsys.readouterr().err == "anchortune: first\n"
    with pytest.raises(BrokenPipeError):
        ends(BrokenPipeError(32, "Broken pipe"))


def test_an_unknown_option_ends_with_two(tmp_path: Path) -> None:
    result = run("train", "c.yaml", "--dryrun", cwd=tmp_path)
    assert result.returncode == 2
    assert "--dry-run" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_command_shows_the_help() -> None:
    result = run_cold()
    assert result.returncode == 2
    assert "Usage: " in result.stdout + result.stderr
