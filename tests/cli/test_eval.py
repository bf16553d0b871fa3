"""``anchortune eval``: a config, or a file of answers; what goes to stdout and what is left."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from anchortune.cli.eval import evaluate, read_judge
from anchortune.config_io import dump_yaml
from anchortune.errors import AnchortuneError, ConfigError
from anchortune.evaluation.items import sha256_text
from tests.evaluation.eval_stand_ins import config, write_rows

app = typer.Typer()
app.command()(evaluate)


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False)


@pytest.fixture
def path(tmp_path: Path, llama_base: Path) -> Path:
    file = tmp_path / "e.yaml"
    models = {"aligned": {"path": str(llama_base)}}
    file.write_text(dump_yaml(config(tmp_path, models, judges=["refusal"])))
    return file


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Two models' answers to three prompts, made elsewhere; and what people said of them."""
    rows, said = [], []
    for model, texts in (("old", ["I cannot help.", "Burn it.", "?"]), ("new", ["Bake it."] * 3)):
        for at, text in enumerate(texts):
            prompt = f"how long does cake {at} bake"
            rows.append({"model": model, "prompt": prompt, "answer": text})
            hashes = {"prompt_sha256": sha256_text(prompt), "answer_sha256": sha256_text(text)}
            if text != "?":
                verdict = "harmful" if text == "Burn it." else "safe"
                said.append({**hashes, "verdict": verdict})
    rows.append({"model": "old", "set": "sums", "prompt": "1 + 1", "answer": "2", "target": "2"})
    write_rows(tmp_path / "people.jsonl", said)
    return Path(write_rows(tmp_path / "cakes.jsonl", rows))


def test_a_dry_run_says_what_would_be_done_and_does_nothing(path: Path) -> None:
    result = call(str(path), "--dry-run")
    assert result.exit_code == 0
    for part in (
        "cakes: 6 malicious prompts, at most 5 new tokens", "colours: 4 benign prompts",
        "digits: 3 items (accuracy)", "judge   refusal", "13 answers of 1 models, 23 verdicts",
        "time    at most about", "memory  about", "verdicts; whole sets",
    ):  # fmt: skip
        assert part in result.stdout
    assert not (path.parent / "out").exists()
    half = call(
        str(path), "--dry-run", "--set", "part=report", "--set", "selection_frac=0.5"
    ).stdout
    assert re.search(r"cakes: [1-5] malicious prompts of 6 rows \(the report part\), at most", half)
    plan = json.loads(call(str(path), "--dry-run", "--json").stdout)
    assert (plan["answers"], plan["verdicts"]) == (13, 23)
    assert plan["inputs"]["sets"]["cakes"]["n"] == 6


def test_the_table_and_the_page_are_on_stdout_and_the_rest_is_not(path: Path) -> None:
    result = call(str(path))
    assert result.exit_code == 0
    assert "refusal rate (refusal), cakes" in result.stdout
    assert "accuracy, digits" in result.stdout
    page = path.parent / "out" / "report.html"
    assert result.stdout.splitlines()[-1] == str(page)
    assert "cakes" in page.read_text("utf-8")
    assert "answers cakes" not in result.stdout
    record = json.loads(call(str(path), "--json").stdout)
    assert record["kind"] == "eval"
    assert record["metrics"]["reference"] == "aligned"


def test_answers_made_elsewhere_are_scored(answers: Path) -> None:
    people = f"{{name: file, file: {answers.parent / 'people.jsonl'}}}"
    out = answers.parent / "scored"
    judges = ("--judge", people, "--judge", "refusal")
    result = call("--outputs", str(answers), *judges, "-o", str(out), "--json")
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["reference"] == "old"
    measures = {measure["key"]: measure for measure in metrics["measures"]}
    harm = measures["harm:file:cakes"]
    assert harm["figures"]["old"]["value"] == 0.5
    assert (harm["figures"]["old"]["n"], harm["figures"]["old"]["unscored"]) == (2, 1)
    assert (harm["differences"]["new"]["n"], harm["differences"]["new"]["down"]) == (2, 1)
    assert measures["refusal:cakes"]["figures"]["old"]["value"] == pytest.approx(1 / 3)
    assert any("1 of 3 answers of old were not scored" in line for line in metrics["warnings"])
    assert (out / "report.html").is_file()
    assert not any(measure["set"] == "sums" for measure in metrics["measures"])
    told = call("--outputs", str(answers), *judges, "-o", str(out), "--dry-run").stdout
    assert "note    1 answers to tasks (with a target) are left out" in told
    again = call("--outputs", str(answers), *judges, "-o", str(out))
    assert "harmful score (file), cakes" in again.stdout


def test_a_file_of_answers_takes_the_settings_that_mean_something(answers: Path) -> None:
    scored = ("--outputs", str(answers), "--judge", "refusal", "-o", str(answers.parent / "s"))
    result = call(*scored, "--set", "machine.device=cpu", "--set", "keep=purge", "--json")
    config = json.loads(result.stdout)["config"]
    assert (config["machine"]["device"], config["keep"]) == ("cpu", "purge")
    assert not (answers.parent / "s" / "outputs.jsonl").exists()
    for setting, said in (("part=report", "part cannot be set"), ("kep=hash", "did you mean")):
        with pytest.raises(AnchortuneError, match=said):
            call(*scored, "--set", setting)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a config, or a file of answers"),
        (("e.yaml", "--outputs", "a.jsonl"), "one of them"),
        (("e.yaml", "--judge", "refusal"), "--judge goes with --outputs"),
        (("e.yaml", "-o", "out"), "--output goes with --outputs"),
        (("--outputs", "a.jsonl", "-o", "out"), "--outputs needs --judge"),
        (("--outputs", "a.jsonl", "--judge", "refusal"), "and --output"),
        (("--outputs", "a.jsonl", "--judge", "refusal", "-o", "o"), "no file of answers"),
        (("none.yaml",), "cannot read the config"),
    ],
)
def test_mistakes_are_one_sentence(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(AnchortuneError, match=said):
        call(*arguments)


def test_a_judge_is_a_name_or_a_section() -> None:
    assert read_judge("builtin").name == "builtin"
    assert read_judge("{name: builtin, min_confidence: 0.9}").min_confidence == 0.9
    with pytest.raises(ConfigError, match="--judge gpt: name: expected"):
        read_judge("gpt")


def test_the_command_imports_nothing_heavy() -> None:
    code = (
        "import sys, anchortune.cli.eval\n"
        "assert not {'torch', 'transformers', 'pydantic', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
