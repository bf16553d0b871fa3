"""``anchortune anchor``: results on stdout, mistakes in one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from anchortune.anchor.anchor import Anchor
from anchortune.cli.anchor import parse_rank, parse_target_modules
from anchortune.errors import AnchorError
from tests.warm import run_command


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run_command("anchor", *arguments)


def run_cold(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """By a fresh interpreter: what the imports say is to be seen too."""
    command = [sys.executable, "-c", "from anchortune.cli.app import main; main()", "anchor"]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, llama_aligned: Path, llama_base: Path) -> Path:
    path = tmp_path_factory.mktemp("cli") / "anchor.safetensors"
    Anchor.from_checkpoints(llama_aligned, llama_base, rank=4).save(path)
    return path


def test_build_and_inspect(tmp_path: Path, llama_aligned: Path, llama_base: Path) -> None:
    path, plot = tmp_path / "a.safetensors", tmp_path / "a.svg"
    result = run_cold(
        *("build", "--aligned", llama_aligned, "--base", llama_base, "--rank", "3"),
        *("--target-modules", "q_proj,up_proj", "-o", path, "--json"),
    )
    assert result.returncode == 0, result.stderr
    data = json.loads(result.stdout)
    anchor = Anchor.load(path)
    assert data["sha256"] == anchor.sha256
    assert (data["modules"], data["rank_max"], data["bytes"]) == (4, 3, path.stat().st_size)
    assert data["base"]["id"] == "llama-base"
    result = run("inspect", path, "--plot", plot, "--json")
    assert result.returncode == 0, result.stderr
    assert len(json.loads(result.stdout)["modules"]) == 4
    assert plot.read_bytes().startswith(b"<?xml")


def test_inspect_prints_a_table_and_warnings(built: Path) -> None:
    result = run("inspect", built)
    assert result.returncode == 0, result.stderr
    for text in ("stable rank", "subspace2", "0.self_attn.q_proj", "selectivity", "∞"):
        assert text in result.stdout


def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, llama_base: Path, built: Path
) -> None:
    out = tmp_path / "a.safetensors"
    same = ("build", "--aligned", llama_base, "--base", llama_base, "-o", out)
    for arguments, text in [
        (same, "identical weights"),
        (("build", "--aligned", "gone", "--base", llama_base, "-o", out), "gone is no folder"),
        (
            ("build", "--aligned", "gone", "--base", "x", "-o", out, "--rank", "many"),
            "--rank many is neither a number above 0 nor 'full'",
        ),
        (("inspect", llama_base / "config.json"), "is not a whole safetensors file"),
        (("inspect", built, "--plot", tmp_path / "p.bmp"), "a plot ends in .png"),
        (("push", tmp_path / "none.safetensors", "org/x"), "is no file"),
    ]:
        result = (run_cold if arguments is same else run)(*arguments)
        assert result.returncode == 2, result.stderr
        assert text in result.stderr
        assert result.stderr.strip().count("\n") == 0
        assert "Traceback" not in result.stderr
    assert not out.exists()


def test_harmful_and_compare(tmp_path: Path, llama_aligned: Path, built: Path) -> None:
    rows = [{"ask": f"do {i}", "reply": f"sure {i}", "safe": i > 4} for i in range(9)]
    data, made = tmp_path / "harm.jsonl", tmp_path / "h.safetensors"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ("--set", "columns.prompt=ask", "--set", "columns.completion=reply")
    bare = ("harmful", "--model", llama_aligned, "--data", data, "-o", made)
    asked = (*bare, *named, "--set", "where.safe=false")
    result = run(*asked, "--pairs", "4", "--method", "gradient", "--rank", "3", "--json")
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["harmful"]["pairs"], told["harmful"]["method"], told["rank_max"]) == (
        *(4, "gradient"),
        3,
    )
    assert "sure" not in result.stdout + result.stderr
    result = run("compare", built, made, "--plot", tmp_path / "c.svg", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found["modules"]) == 4
    assert "proves nothing" in found["reading"]
    assert (tmp_path / "c.svg").read_bytes().startswith(b"<?xml")
    for arguments, text in [
        ((*asked, "--method", "magic"), "method: expected tune, gradient"),
        ((*asked, "--method", "gradient", "--epochs", "2"), "epochs is for method tune"),
        (bare, "fit no format (messages: messages; instruction"),
        ((*bare, "--set", "wear.safe=false"), "--set: unknown key 'wear'; did you mean 'where'?"),
        ((*asked, "--pairs", "9"), "holds 5 usable pairs of 5 rows, and 9 are asked for"),
    ]:
        result = run(*arguments)
        assert result.returncode == 2, result.stderr
        assert text in result.stderr
        assert "Traceback" not in result.stderr


def test_help_of_every_command() -> None:
    for command in ((), ("build",), ("inspect",), ("push",), ("harmful",), ("compare",)):
        result = run(*command, "--help")
        assert result.returncode == 0
        assert "Usage" in result.stdout


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("q_proj,v_proj", ["q_proj", "v_proj"]),
        (" q_proj , v_proj", ["q_proj", "v_proj"]),
        ("q_proj", ["q_proj"]),
        ("all-linear", "all-linear"),
        (r".*layers\.[0-3]\..*proj", r".*layers\.[0-3]\..*proj"),
    ],
)
def test_target_modules_by_comma_or_pattern(text: str, value: list[str] | str) -> None:
    assert parse_target_modules(text) == value


def test_ranks() -> None:
    assert (parse_rank(None), parse_rank("full"), parse_rank("8")) == (None, "full", 8)
    for bad in ("0", "-1", "1.5", ""):
        with pytest.raises(AnchorError, match="neither a number"):
            parse_rank(bad)
