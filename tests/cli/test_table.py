"""``anchortune table`` and ``anchortune plot`` as a person runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from anchortune.cli.app import app
from anchortune.errors import AnchortuneError
from tests.report.sweep_records import sweep, write


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    write(sweep(), folder)
    return folder


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [str(word) for word in arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_a_table_goes_to_stdout_or_into_a_file(results: Path, tmp_path: Path) -> None:
    asked = ("--rows", "defence", "--columns", "task", "--where", "defence=sft,asft",
             "--non-inferior", "asft", "--against", "sft,sft", "--margins", "0.05,0.03",
             "--judge", "builtin")  # fmt: skip
    text = call("table", results, *asked)
    assert "FA of asft against sft, sst2: +1.3 points" in text
    assert (
        "`anchortune table RESULTS --columns task --judge builtin --where defence=sft,asft" in text
    )
    assert str(results) not in text
    assert call("table", results, *asked, "-o", tmp_path / "t" / "table.md") == ""
    assert (tmp_path / "t" / "table.md").read_text("utf-8") == text
    assert call("table", results, "--format", "csv").startswith("defence,task,measure,set,judge")


def test_a_plot_is_written(results: Path, tmp_path: Path) -> None:
    assert call("plot", results, "-o", tmp_path / "pareto.png") == ""
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--where", "task"), "write AXIS=VALUE"),
        (("--margins", "5%"), "write fractions"),
        (("--format", "csv", "--non-inferior", "asft"), "no place in CSV"),
        (("--judge", "nobody"), "No run has the judge nobody for accuracy, harm; there is builtin"),
    ],
)
def test_mistakes(results: Path, arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(AnchortuneError, match=said):
        CliRunner().invoke(app, ["table", str(results), *arguments], catch_exceptions=False)


def test_a_place_without_records(tmp_path: Path) -> None:
    with pytest.raises(AnchortuneError, match="holds no record of a run"):
        CliRunner().invoke(app, ["table", str(tmp_path)], catch_exceptions=False)
    with pytest.raises(AnchortuneError, match="is not there"):
        CliRunner().invoke(app, ["table", str(tmp_path / "x")], catch_exceptions=False)
    with pytest.raises(AnchortuneError, match="it is a folder"):
        CliRunner().invoke(
            app, ["plot", str(tmp_path), "-o", str(tmp_path)], catch_exceptions=False
        )


def test_a_basin_is_drawn_whatever_its_file_is_called(tmp_path: Path) -> None:
    basin = Path(__file__).parents[2] / "results/basin/small.json"
    done = CliRunner().invoke(app, ["plot", str(basin), "-o", str(tmp_path / "curves.svg")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "curves.svg").is_file()
