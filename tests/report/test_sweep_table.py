from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from anchortune.errors import AnchortuneError
from anchortune.report import sweep_plots
from anchortune.report.runs import RunRecord
from anchortune.report.sweep_format import render
from anchortune.report.sweep_grid import lay_out
from anchortune.report.sweep_load import (
    SweepError,
    parse_where,
    read_runs,
    select,
    value_key,
    without_paths,
)
from anchortune.report.sweep_plots import PlotOptions, draw
from anchortune.report.sweep_table import Table, TableOptions, build
from tests.report.golden_sweep import FOLDER, made, table
from tests.report.sweep_records import curves, failed, measured, outcome, run, sweep, write


@pytest.fixture(scope="module")
def whole() -> Table:
    return table()


def test_the_committed_tables_are_what_is_made() -> None:
    for name, text in made().items():
        assert text == (FOLDER / name).read_text("utf-8"), "python -m tests.report.golden_sweep"


def test_the_order_of_files_changes_no_byte(tmp_path: Path) -> None:
    paths = write(sweep(), tmp_path)
    options = TableOptions(reference="sft")
    expected = [render(build(read_runs([tmp_path]), options), form) for form in ("markdown", "csv")]
    random.Random(3).shuffle(paths)
    again = [render(build(read_runs(paths), options), form) for form in ("markdown", "csv")]
    assert again == expected


def test_no_path_and_no_verdict_shows(whole: Table) -> None:
    for form in ("markdown", "latex", "csv", "json"):
        text = render(whole, form)
        assert "/srv" not in text
        assert "someone" not in text
        assert "q001" not in text


def test_csv_is_for_machines(whole: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render(whole, "csv"))))
    assert len(rows) == 5 * 2 * 2  # the average is no measurement
    by_cell = {(row["defence"], row["task"], row["measure"]): row for row in rows}
    one = by_cell["asft", "sst2", "harm"]
    assert float(one["lo"]) < float(one["value"]) < float(one["hi"]) < 0.1
    assert (one["prompts"], one["seeds"], one["best"], one["judge"]) == (
        "100",
        "1 2 3",
        "true",
        "builtin",
    )
    assert float(one["difference"]) == pytest.approx(-0.5)
    lost = by_cell["lisa", "sst2", "harm"]
    assert (lost["failed"], lost["seeds"], lost["state"]) == ("1", "1 2", "complete")
    gone = by_cell["safe-lora", "sst2", "accuracy"]
    assert (gone["state"], gone["value"], gone["prompts"]) == ("missing", "", "0")
    assert by_cell["safe-lora", "agnews", "harm"]["dirty"] == "true"


def test_an_axis_called_as_a_figure_keeps_its_values() -> None:
    axes = ("p", "n", "value")
    runs = [
        measured({"defence": name, "p": p, "n": "40", "value": "x"}, seed, rate, 0.8)
        for name, rate in (("sft", 0.6), ("asft", 0.1))
        for p in ("0", "0.1")
        for seed in (1, 2)
    ]
    options = TableOptions(rows=("defence", *axes[1:]), column="p", reference="sft/40/x")
    rows = list(csv.DictReader(io.StringIO(render(build(runs, options), "csv"))))
    assert {(row["p"], row["n"], row["axis_value"]) for row in rows} == {
        ("0", "40", "x"), ("0.1", "40", "x")
    }  # fmt: skip
    told = [row for row in rows if row["defence"] == "asft" and row["measure"] == "harm"]
    assert all(0 < float(row["p_value"]) <= 1 and row["prompts"] == "100" for row in told)
    assert 0 < float(told[0]["value"]) < 0.3


def test_a_table_says_which_axis_its_columns_are_of(whole: Table) -> None:
    for form in ("markdown", "latex"):
        assert "interval. Columns: task. model tiny" in render(whole, form)


def test_json_holds_the_claims_and_the_failures(whole: Table) -> None:
    found = json.loads(render(whole, "json"))
    assert [claim["verdict"] for claim in found["non_inferiority"]] == ["shown"] * 4
    [lost] = found["failed"]
    assert lost["labels"]["defence"] == "lisa"
    assert lost["error"] == "adapter could not be written (disk full)."


def test_latex_is_escaped() -> None:
    runs = [measured({"defence": d, "task": "a_b&c%"}, 1, 0.1, 0.8) for d in ("sft", "x#y{z}")]
    text = render(build(runs, TableOptions()), "latex")
    assert r"x\#y\{z\}" in text
    assert r"a\_b\&c\%" in text
    assert r"\begin{tabular}{lrr}" in text


def test_names_are_text_in_markdown() -> None:
    runs = [measured({"defence": d, "task": "t"}, 1, 0.1, 0.8) for d in ("sft", "a|b*c*<i>")]
    assert r"| a\|b\*c\*&lt;i> |" in render(build(runs, TableOptions()), "markdown")


def test_a_cell_of_failed_runs_says_so() -> None:
    runs = [measured({"defence": "sft"}, 1, 0.5, 0.8), failed({"defence": "asft"}, 1)]
    text = render(build(runs, TableOptions()), "markdown")
    assert "| asft | failed | failed |" in text
    assert "1 of 2 runs failed: asft, seed 1 (It stopped)." in text


def test_a_run_without_the_axis_is_in_every_column() -> None:
    options = TableOptions(rows=("defence", "operator"), column="lam", measures=("harm",))
    found = build(curves(), options)
    assert [column.key for column in found.columns] == ["0.01", "0.1", "1", "10"]
    assert found.grid.row_keys[:2] == (("aligned", None), ("sft", None))
    aligned = found.cells[0]
    assert len({cell.estimate for cell in aligned}) == 1
    assert all(cell.estimate for row in found.cells for cell in row)


def test_rows_are_sorted_or_in_the_order_asked_for() -> None:
    words = ["lisa", "10", "aligned", "2", "asft", "sft", "base"]
    assert sorted(words, key=value_key) == ["base", "aligned", "sft", "2", "10", "asft", "lisa"]
    where = parse_where(["defence=asft,sft", "task=sst2"])
    grid = lay_out(sweep(), ["defence"], None, where)
    assert grid.row_keys == (("asft",), ("sft",))
    assert grid.fixed["task"] == "sst2"


def test_where_takes_numbers_as_numbers_and_seeds() -> None:
    kept = select(curves(), parse_where(["lam=1.0,1e-2", "seed=2"]))
    assert {r.labels.get("lam") for r in kept} == {None, "1", "0.01"}
    assert {r.seed for r in kept if r.labels["defence"] != "aligned"} == {2}
    assert any(r.labels["defence"] == "aligned" for r in kept)


def test_two_records_of_one_run(tmp_path: Path) -> None:
    good = measured({"defence": "sft"}, 1, 0.5, 0.8)
    bad = good.model_copy(update={"state": "failed", "error": "x", "outcomes": []})
    for order in ([good, bad], [bad, good]):
        folders = [tmp_path / str(i) for i in range(2)]
        for folder, one in zip(folders, order, strict=True):
            write([one], folder)
        assert read_runs(folders) == [good]
    other = good.model_copy(update={"outcomes": [outcome("harm", [1], judge="builtin")]})
    write([good], tmp_path / "0")
    write([other], tmp_path / "1")
    with pytest.raises(SweepError, match="hold different outcomes"):
        read_runs([tmp_path])


def test_what_is_no_record_is_passed_over_but_what_is_broken_is_not(tmp_path: Path) -> None:
    write(sweep()[:1], tmp_path)
    (tmp_path / "sweep.json").write_text('{"name": "x"}')
    assert len(read_runs([tmp_path])) == 1
    (tmp_path / "half.json").write_text('{"digest": "')
    with pytest.raises(
        AnchortuneError, match=r"half\.json is no record of a run, or a damaged one .*deleted"
    ):
        read_runs([tmp_path])
    content = json.loads(write(sweep()[1:2], tmp_path)[0].read_text())
    content["label"] = content.pop("labels")
    (tmp_path / "half.json").write_text(json.dumps(content))
    with pytest.raises(AnchortuneError, match=r"half\.json .*damaged one \(labels: field required"):
        read_runs([tmp_path])


def two(labels: dict[str, str], **other: str) -> list[RunRecord]:
    return [measured(labels, 1, 0.1, 0.8), measured(labels | other, 1, 0.1, 0.8)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rows": ("defense",)}, r"no run has the axis defense.*Did you mean defence\?"),
        ({"column": "lam"}, r"the axis lam; there is defence, model, p, task\."),
        ({"where": {"task": ["sst"]}}, r"no run has task=sst; there is agnews, sst2\."),
        ({"where": {"tsk": ["sst2"]}}, r"axis tsk.*Did you mean task\?"),
        ({"column": "model"}, r"The cell aligned tiny would mix runs of task agnews, sst2"),
        ({"rows": ("defence", "task"), "column": "task"}, "both rows and columns"),
        ({"measures": ("harm", "f1")}, "measure f1; there is accuracy, harm"),
        ({"reference": "stf"}, "no row stf; there is aligned, sft, asft"),
        ({"non_inferior": "asft", "against": ("sft",), "margins": (0.1,)}, "each measure"),
        ({"margins": (0.1,)}, "belong to --non-inferior"),
        ({"non_inferior": "asft", "against": ("sft", "sft"), "margins": (5, 3)}, "fractions"),
        ({"rows": ("defence", "task"), "average": True}, "leave --average"),
    ],
)
def test_mistakes_are_told(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SweepError, match=f"(?i){said}"):
        build(sweep(), TableOptions(**options))


def test_a_judge_of_another_measure_is_told_from_those_of_this() -> None:
    told = [outcome("harm", [0, 1], judge="builtin"), outcome("refusal", [1, 0], judge="refusal")]
    runs = [run({"defence": "sft"}, 1, told)]
    with pytest.raises(SweepError, match=r"judge refusal for harm; there is builtin\.$"):
        build(runs, TableOptions(measures=("harm",), judge="refusal"))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: [*two({"defence": "a"}, p="1"), *two({"defence": "a", "n": "5"}, n="6")],
         "would mix"),
        (lambda: [*two({"defence": "a", "p": "1", "n": "1"}, p="2", n="2")],
         r"differ in several axes, n \(1, 2\); p \(1, 2\): name one with --columns"),
        (lambda: [measured({"defence": "a"}, 1, 0.1, 0.8, salt=i) for i in range(2)],
         "two runs of seed 1 with other settings"),
        (lambda: [failed({"defence": "a"})], "nothing to count"),
    ],
)  # fmt: skip
def test_runs_that_make_no_table(make: Callable[[], list[RunRecord]], said: str) -> None:
    with pytest.raises(SweepError, match=said):
        build(make(), TableOptions())


def test_errors_lose_their_folders() -> None:
    told = "cannot read /srv/me/x y.json, ~/a/b.txt or C:\\d\\e.bin; data:s/t.json has 3/4"
    assert without_paths(told) == ("cannot read x y.json, b.txt or e.bin; data:s/t.json has 3/4")


PLOTS = [
    PlotOptions(),
    PlotOptions("pareto", "lam", ("operator",)),
    PlotOptions("curve", "lam", ("operator",)),
]


@pytest.mark.parametrize("options", PLOTS, ids=["pareto", "path", "curve"])
def test_a_plot_names_its_arms_and_is_the_same_again(options: PlotOptions, tmp_path: Path) -> None:
    runs = sweep() if options.x is None else curves()
    for name in ("a.svg", "b.svg"):
        draw(runs, options, tmp_path / name)
    text = (tmp_path / "a.svg").read_text("utf-8")
    assert text == (tmp_path / "b.svg").read_text("utf-8")
    arms = ["asft", "lisa", "safe-lora"] if options.x is None else ["gram", "subspace", "none"]
    assert all(f"<!-- {arm}" in text for arm in [*arms, "sft", "aligned"])
    assert "(indicative)" in text


@pytest.mark.parametrize(
    ("options", "name", "said"),
    [
        (PlotOptions(), "x.gif", r"ends in \.png, \.svg, \.pdf"),
        (PlotOptions("curve"), "x.png", "needs --x AXIS"),
        (PlotOptions("curve", "task"), "x.png", "holds agnews, sst2"),
        (PlotOptions("curve", "p", where={"task": ["sst2"]}), "x.png", "has one value, 0.1"),
        (PlotOptions(measures=("harm",)), "x.png", "two measures against each other, not harm"),
        (PlotOptions(series=("lam",)), "x.png", "No run has the axis lam"),
    ],
)
def test_plots_that_cannot_be(options: PlotOptions, name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SweepError, match=said):
        draw(sweep(), options, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_the_frontier_is_of_what_none_beats_on_both() -> None:
    from anchortune.report.sweep_arms import frontier

    points = [(5, 80), (10, 90), (12, 85), (50, 95), (50, 94), (10, 90)]
    assert frontier(points) == [(5, 80), (10, 90), (50, 95)]


def many(untrained: float = 0.05) -> list[RunRecord]:
    """Fourteen trained arms close together, one that learnt nothing, and an untrained one."""
    runs = [measured({"defence": "aligned"}, 1, 0.06, untrained)]
    runs += [measured({"defence": f"arm{i:02d}"}, 1, 0.04 * i, 0.85, n=50) for i in range(1, 15)]
    return [*runs, measured({"defence": "idle"}, 1, 0.5, 0.06)]


def test_many_arms_are_numbered_beside_a_legend() -> None:
    from matplotlib.text import Text

    from anchortune.report.sweep_plots import figure_of

    figure = figure_of(many(), PlotOptions())
    axes, [legend] = figure.axes[0], figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [f"{i}  arm{i:02d}" for i in range(1, 15)]
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    # An annotation's own box holds its line too.
    boxes = {t.get_text(): Text.get_window_extent(t, renderer) for t in axes.texts}
    assert {str(i) for i in range(1, 15)} < set(boxes)
    far = sorted(set(boxes) - {str(i) for i in range(1, 15)})
    assert [name.partition(" ")[0] for name in far] == ["aligned", "idle"]
    page = figure.bbox
    boxes["legend"] = legend.get_window_extent(renderer)
    for box in boxes.values():
        assert page.x0 <= box.x0 < box.x1 <= page.x1
        assert page.y0 <= box.y0 < box.y1 <= page.y1
    # Lines of what is far off are within the panel.
    low, high = axes.get_ylim()
    levels = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() in (":", "--")]
    assert len(levels) == 2
    assert all(low < level < high for level in levels)


def test_an_arm_that_learnt_nothing_is_far_off_only_among_many() -> None:
    from anchortune.report.sweep_arms import Arm, Point, far_off
    from anchortune.report.sweep_stats import Estimate

    def arm(name: str, rate: float) -> Arm:
        one = Estimate(rate, rate - 0.02, rate + 0.02, (1,), 9, 0, 9, ("s",), ())
        return Arm(name, (Point(None, (one, one)),), False, name == "aligned")

    arms = [arm("aligned", 0.1), arm("idle", 0.2), *(arm(f"a{i}", 0.8 + i / 100) for i in range(9))]
    assert [one.name for one in far_off(arms, crowded=True)] == ["aligned", "idle"]
    assert far_off(arms, crowded=False) == []  # idle stretches the panel anyhow
    assert far_off(arms[:1], crowded=True) == []


def test_a_line_that_ends_early_is_named_at_its_end() -> None:
    from anchortune.report.sweep_plots import figure_of

    runs = [run for run in curves() if run.labels.get("operator") != "none"]
    runs += [
        r for r in curves() if r.labels.get("operator") == "none" and float(r.labels["lam"]) < 1
    ]
    figure = figure_of(runs, PlotOptions("curve", "lam", ("operator",)))
    for axes in figure.axes:
        [short] = [text for text in axes.texts if text.get_text() == "none"]
        assert short.xy[0] == pytest.approx(0.1)
        assert any(text.get_text() == "gram" and text.xy[0] == 1.0 for text in axes.texts)


def test_answers_without_a_verdict_are_a_share_and_the_worst_cells() -> None:
    def judged(defence: str, task: str, blanks: int) -> RunRecord:
        marks = [None] * blanks + [0] * (50 - blanks)
        found = [outcome("harm", marks, "s", "j"), outcome("accuracy", [1] * 50, task)]
        return run({"defence": defence, "task": task}, 1, found)

    def note(*runs: RunRecord) -> str:
        text = render(build(runs, TableOptions()), "markdown")
        return next((line for line in text.splitlines() if "without a verdict" in line), "")

    aligned = run({"defence": "aligned"}, 1, judged("aligned", "a", 4).outcomes)
    told = note(aligned, judged("sft", "a", 3), judged("sft", "b", 2), judged("asft", "b", 0))
    # The model before fine-tuning stands in both columns, and was asked once.
    assert told == (
        "Answers without a verdict, not counted: 9 of 200 (4.5 %); more than 5 %: "
        "aligned, HS 4 of 50 (8.0 %); sft, a, HS 3 of 50 (6.0 %)."
    )
    told = note(judged("sft", "a", 1), judged("asft", "a", 2))
    assert told.endswith("3 of 100 (3.0 %); most: asft, HS 2 of 50 (4.0 %).")
    assert note(judged("sft", "a", 0), judged("asft", "a", 0)) == ""


def test_names_at_lines_ends_do_not_collide() -> None:
    from anchortune.report.sweep_drawing import spread, styles

    assert spread([0.1, 0.5], 0.1) == [0.1, 0.5]
    assert spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert spread([0.1, 0.15, 0.9], 0.1) == pytest.approx([0.075, 0.175, 0.9])
    looks = styles([f"arm {i}" for i in range(21)]).values()
    assert len({(one.colour, one.marker, one.hollow) for one in looks}) == 21


def test_what_is_amiss_is_listed_entry_by_entry() -> None:
    labels = {"defence": "asft", "task": "sst2"}
    runs = [measured({"defence": "sft", "task": "sst2"}, 7, 0.5, 0.8), failed(labels, 7)]
    runs.append(failed({"defence": "lisa", "task": "sst2"}, 7))
    text = render(build(runs, TableOptions()), "markdown")
    assert "asft, sst2, seed 7 (It stopped); lisa, sst2, seed 7 (It stopped)." in text
    assert text.splitlines()[6].startswith("Per cent, seed 7, 95 % interval.")


@pytest.mark.parametrize(
    ("values", "slanted"),
    [
        ([0.0, 0.05, 0.1, 0.2, 0.6], True),
        ([0.0, 0.1, 0.2, 0.6], False),
        ([0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0], False),  # a logarithmic axis has room for them
        ([1.0], False),
    ],
)
def test_ticks_that_are_near_each_other_are_slanted(values: list[float], slanted: bool) -> None:
    axes = Figure().add_subplot()
    axes.set_xlim(min(values), max(values) + 1)
    sweep_plots._scale(axes, "p", {f"{value:g}": value for value in values})
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {60 if slanted else 0}
