"""A text that a model, a file name or a record holds does nothing wherever it is shown."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from anchortune.cli.anchor_tables import print_report
from anchortune.cli.app import app, main
from anchortune.cli.say import say, say_json
from anchortune.errors import AnchortuneError
from anchortune.evaluation.results import Results
from anchortune.record import write_record
from anchortune.report.ci import github_lines, junit_xml
from anchortune.report.examples import sample
from anchortune.report.gate import Limits, decide
from anchortune.report.page import write_page
from anchortune.report.sweep_format import render
from anchortune.report.sweep_plots import PlotOptions, draw
from anchortune.report.sweep_table import TableOptions, build
from anchortune.report.table import results_markdown, results_table
from anchortune.untrusted import cell, drawn, inert, shown
from tests.report import made_up
from tests.report.sweep_records import failed, measured
from tests.report.test_page import Tree
from tests.security.nasty import ACTS, COMMANDS, TEXTS, assert_inert


def hostile() -> Results:
    """An evaluation whose sets, judges, models, notes and warnings are all of ``TEXTS``."""
    models = [f"m{place} {text}" for place, text in enumerate(TEXTS)]
    counts = {name: (1, 4) for name in models}
    gaps = {name: (1, 0) for name in models[1:]}
    measures = [
        made_up.measure("harm", f"set {text}", counts, gaps, judge=f"j{place} {text}", note=text)
        for place, text in enumerate(TEXTS)
    ]
    return made_up.results(
        measures, models={name: {"path": name} for name in models}, reference=models[0],
        warnings=list(TEXTS), judges=[{"name": text, text: {"x": text}} for text in TEXTS],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation whose answers are hostile too, as one holds it that somebody sent."""
    place = tmp_path_factory.mktemp("hostile") / "eval"
    place.mkdir()
    found = Results.model_validate_json(json.dumps(clean(hostile().model_dump(mode="json"))))
    write_record(place, made_up.record(found, output="'; touch it"))
    rows = [
        {"model": model, "set": found.measures[0].set, "id": str(at), "prompt": f"p {text}",
         "target": text, "answer": text, "prompt_sha256": "0", "answer_sha256": "0",
         "finish": "stop"}
        for model in list(found.models)[:2] for at, text in enumerate(map(whole, TEXTS))
    ]  # fmt: skip
    verdicts = [
        {key: row[key] for key in ("model", "set", "id", "prompt_sha256", "answer_sha256")}
        | {"judge": row["answer"], "outcome": "unscored", "reason": row["answer"], "score": None,
           "details": {}}
        for row in rows
    ]  # fmt: skip
    for name, listed in (("outputs", rows), ("verdicts", verdicts)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    return place


def whole(text: str) -> str:
    """As a file in UTF-8 can hold it."""
    return text.encode("utf-8", errors="replace").decode()


def clean(value: Any) -> Any:
    if isinstance(value, dict):
        return {whole(key): clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [clean(one) for one in value]
    return whole(value) if isinstance(value, str) else value


# The functions themselves


@pytest.mark.parametrize("text", TEXTS)
def test_what_acts_is_made_visible(text: str) -> None:
    assert not ACTS.findall(shown(text))
    assert_inert(inert(text))
    assert_inert(inert(f"a\n  {text}"))
    drawn(text).encode("utf-8")


def test_what_does_not_act_is_left() -> None:
    for text in (
        "plain, 12 %",
        "é ü 漢字 ﷽",
        "a\tb\nc",
        "👩\u200d🔬",
        "می\u200cخواهم",
        "a::b",
        "# x",
    ):
        assert inert(text) == text


# The terminal


@pytest.mark.parametrize("text", TEXTS)
def test_commands_print_it_as_text(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"set {text}")
    assert_inert(capsys.readouterr().out)
    say_json({"set": whole(text), "nan": float("nan")})
    told = capsys.readouterr().out
    assert_inert(told)
    assert json.loads(told) == {"set": whole(text), "nan": None}
    stream = io.StringIO()
    console = Console(file=stream, width=400, force_terminal=False)
    console.print(cell(text))
    assert_inert(stream.getvalue())
    for part in ("[red]m[/red]", "[/]"):
        assert (part in text) == (part in stream.getvalue())


def test_an_error_is_one_line_that_orders_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for text in TEXTS:
        for error in (AnchortuneError(f"{text} is none"), OSError(2, "gone", f"{whole(text)}")):

            def fails(*_: Any, found: Exception = error) -> None:
                raise found

            monkeypatch.setattr("anchortune.cli.app.app", fails)
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 2
            told = capsys.readouterr().err
            assert_inert(told)
            assert len(told.splitlines()) == 1


def test_a_file_of_any_name_is_named_harmlessly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through the real command: configs, data and records with names that would act."""
    for place, text in enumerate(TEXTS):
        name = whole(text).replace("/", "").replace("\x00", "")
        every = (
            ["train", f"{tmp_path}/{name}.yaml"],
            ["gate", f"{tmp_path}/{name}", "--max-harm", "0.1"],
            ["status", f"{tmp_path}/{name}"],
            ["table", f"{tmp_path}/{name}"],
            ["mix", "no.yaml", "--set", f"{name}=1", "-o", f"{tmp_path}/{name}/x.jsonl"],
        )
        for words in every if place == 6 else every[:1]:
            monkeypatch.setattr("sys.argv", ["anchortune", *words])
            with pytest.raises(SystemExit) as caught:
                main()
            assert caught.value.code == 2, words
            told = capsys.readouterr()
            assert_inert(told.err + told.out)


def test_the_table_of_an_evaluation(folder: Path) -> None:
    found = hostile()
    console = Console(file=io.StringIO(), width=300, record=True)
    console.print(results_table(found))
    assert not ACTS.findall(console.export_text())
    from anchortune.cli.eval import show_results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdout", stream := io.StringIO())
        show_results(folder)
    assert not ACTS.findall(re.sub(r"\x1b\[[\d;]*m", "", stream.getvalue()))  # rich's own styles
    for text in TEXTS:
        assert "[red]m[/red]" not in text or "[red]m[/red]" in stream.getvalue()


def test_the_gate_on_a_hostile_record(folder: Path, tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    words = ["gate", str(folder), "--max-harm", "0.5", "--junit", str(junit), "--no-github"]
    result = CliRunner().invoke(app, [*words, "--report"])
    assert result.exit_code in (0, 3, 4), result.exception
    assert_inert(result.output)
    assert len(result.output.splitlines()) == 2 + len(TEXTS) + ("note:" in result.output)
    ElementTree.fromstring(junit.read_text("utf-8").encode())


def test_the_anchors_table(capsys: pytest.CaptureFixture[str], llama_base: Path,
                           llama_aligned: Path) -> None:  # fmt: skip
    from dataclasses import replace

    from anchortune.anchor.anchor import Anchor
    from anchortune.anchor.inspect import inspect_anchor

    anchor = Anchor.from_checkpoints(llama_aligned, llama_base, target_modules=["q_proj"], rank=2)
    report = inspect_anchor(anchor)
    one = report.modules[0]
    modules = [replace(one, module=text) for text in TEXTS]
    print_report(replace(report, aligned=TEXTS[0], modules=modules, warnings=list(TEXTS)))
    assert not ACTS.findall(capsys.readouterr().out)


# Pipelines


def test_pipelines_get_one_command_a_line_and_xml() -> None:
    found = hostile()
    result = decide(found, Limits(max_harm=0.5, max_harm_increase=0.1))
    lines = github_lines(result)
    assert len(lines) == len("\n".join(lines).splitlines())
    for line in lines:
        assert re.match(r"::(error|warning|notice) title=[^:,]+::", line)
        assert not ACTS.findall(line)
        assert not COMMANDS.findall(line[2:])
    suites = ElementTree.fromstring(junit_xml(result).encode("utf-8"))
    assert len(suites[0].findall("testcase")) == 2 * len(TEXTS)


# Pages


def test_the_page_of_a_hostile_evaluation_holds_only_our_elements(folder: Path) -> None:
    tame = Tree(write_page(made_up.write(folder.parent / "tame")).read_text("utf-8"))
    html = write_page(folder).read_text("utf-8")
    tree = Tree(html)  # which checks that every element is closed in order
    ours = {tag for tag, _ in tame.seen} | {"strong", "caption"}
    assert {tag for tag, _ in tree.seen} <= ours
    names = {name for _, attributes in tame.seen for name in attributes} | {"title", "dir"}
    assert {name for _, attributes in tree.seen for name in attributes} <= names
    assert not ACTS.findall(html)
    assert not [a for a in tree.all("a") if not (a["href"] or "").startswith("#")]


def test_examples_are_shown(folder: Path) -> None:
    rows = json.loads((folder / "record.json").read_text("utf-8"))["metrics"]
    name = rows["measures"][0]["set"]
    [found] = sample(folder, list(rows["models"]), {name: False}, seed=1, per_set=99)
    assert len(found.examples) == len(TEXTS)
    for example in found.examples:
        told = [example.prompt, example.target]
        for answer in example.answers:
            told += [answer.text, *answer.verdicts]
        assert not ACTS.findall("".join(told))


# Tables and pictures of a sweep


def hostile_runs() -> list[Any]:
    runs = [
        measured({"defence": text, "task": "t"}, 1, 0.1 + place / 50, 0.8)
        for place, text in enumerate(map(whole, TEXTS))
    ]
    return [*runs, failed({"defence": "lost", "task": "t"}, 1, "\n".join(map(whole, TEXTS)))]


def test_markdown_stays_a_table() -> None:
    options = TableOptions(reference=whole(TEXTS[0]), command="anchortune table `x`")
    for text in (render(build(hostile_runs(), options), "markdown"), results_markdown(hostile())):
        assert not ACTS.findall(text)
        lines = [line for line in text.splitlines() if line.startswith("|")]
        cells = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines]
        assert len(set(cells)) == 1
        for line in lines:
            assert not re.search(r"(?<!\\)(?:\\\\)*[\[`]", line), "a link, a picture or code"
            assert not re.search(r"<(?!br)", line), "an element"


def test_latex_holds_no_command_of_theirs() -> None:
    text = render(build(hostile_runs(), TableOptions()), "latex")
    assert not ACTS.findall(text)
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")
    for line in text.splitlines():
        plain = re.sub(r"\\[&%$#_{}]", "", line)
        assert "\\input" not in plain
        assert "\\write" not in plain
        assert not line.startswith(("[", "*")), "the row before would take it for its option"


def test_csv_holds_no_formula() -> None:
    rows = list(csv.reader(io.StringIO(render(build(hostile_runs(), TableOptions()), "csv"))))
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        for value in row:
            number = re.fullmatch(r"-?[\d.e+-]+", value)
            assert number or not value.lstrip().startswith(("=", "+", "-", "@")), value


@pytest.mark.filterwarnings("ignore:Glyph")  # drawn as a box
def test_a_picture_is_drawn_of_any_name(tmp_path: Path) -> None:
    path = tmp_path / "p.svg"
    draw(hostile_runs(), PlotOptions(), path)
    assert path.stat().st_size > 1000
    tree = ElementTree.fromstring(path.read_text("utf-8"))
    assert not [node for node in tree.iter() if node.tag.endswith(("script", "}a"))]


def test_every_command_prints_through_say() -> None:
    """``typer.echo`` prints what it gets; only lines that are ours through and through go there."""
    import anchortune.cli as package

    allowed = {"app.py": 2, "say.py": 2, "gate.py": 1}
    for path in sorted(Path(package.__file__).parent.glob("*.py")):
        source = path.read_text("utf-8")
        assert source.count("typer.echo(") == allowed.get(path.name, 0), path.name
        assert not re.search(r"(?<![.\w])print\(", source), path.name
    assert typer.echo
