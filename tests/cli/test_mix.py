from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from anchortune.cli.app import app
from anchortune.errors import ConfigError, DataError
from anchortune.files import sha256_file


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mix whose sources go by ``data:`` names."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("ANCHORTUNE_DATA", str(data))
    for name in ("benign", "harmful"):
        lines = [json.dumps({"prompt": f"{name} {i}", "completion": "x"}) for i in range(20)]
        (data / f"{name}.jsonl").write_text("\n".join(lines), "utf-8")
    path = tmp_path / "mix.yaml"
    path.write_text("benign: data:benign.jsonl\nharmful: [data:harmful.jsonl]\nrows: 10\n", "utf-8")
    return path


def mix(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["mix", *map(str, arguments)])


def test_a_mix_is_written_and_told(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "out" / "mix.jsonl"
    result = mix(config, "-o", output, "--seed", "3", "--set", "poison_ratio=0.2")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        str(output),
        "10 rows, 2 of them harmful (seed 3)",
        "benign: 8 of 20 (of 20)",
        "harmful: 2 of 20 (of 20)",
        f"sha256 {sha256_file(output)}",
    ]
    facts = json.loads((tmp_path / "out" / "mix.jsonl.facts.json").read_text("utf-8"))
    assert [source["name"] for source in facts["harmful"]["sources"]] == ["data:harmful.jsonl"]
    assert str(tmp_path) not in json.dumps(facts)
    told = mix(config, "-o", output, "--seed", "3", "--set", "poison_ratio=0.2", "--json")
    assert json.loads(told.stdout) == facts


def test_mistakes(config: Path, tmp_path: Path) -> None:
    output = tmp_path / "mix.jsonl"
    for override, kind, said in (
        ("rows=200", DataError, "180 benign rows are asked for and there are 20"),
        ("benign=data:none.jsonl", DataError, "data:none.jsonl: no such file under ANCHORTUNE"),
        ("poison=0.1", ConfigError, "did you mean 'poison_ratio'?"),
        ("how=both", ConfigError, "how: expected replace, add, found the text 'both'."),
        ("benign.0.take=some", ConfigError, "take: expected all, with-cue, without-cue"),
        ("harmful=[]", ConfigError, "poison_ratio above 0 needs harmful"),
    ):
        if override.startswith("benign.0"):
            text = config.read_text("utf-8").replace(
                "data:benign.jsonl", "[{path: data:benign.jsonl}]"
            )
            config.write_text(text, "utf-8")
        result = mix(config, "-o", output, "--set", override)
        assert isinstance(result.exception, kind), result.exception
        assert said in str(result.exception)
    assert not output.exists()
