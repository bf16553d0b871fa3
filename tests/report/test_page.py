from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from anchortune.errors import DataError, EvaluationError
from anchortune.record import write_record
from anchortune.report import page as module
from anchortune.report import view
from anchortune.report.gate import Limits, decide
from anchortune.report.page import write_page
from anchortune.report.summary import summary
from anchortune.report.view import groups
from tests.report import made_up

TEMPLATES = Path(module.__file__).parent / "templates"
_VOID = {"meta", "link", "br", "col", "img", "line", "circle", "polyline"}


class Tree(HTMLParser):
    """The elements of a page, checked for being closed in order, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += f" {data}"

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.seen if name == tag]


def made(tmp_path: Path, **config: object) -> str:
    return write_page(made_up.write(tmp_path / "eval", **config)).read_text("utf-8")


def plain(html: str) -> str:
    return " ".join(Tree(html).text.split())


def test_it_asks_nothing_of_the_network_and_runs_nothing(tmp_path: Path) -> None:
    html = made(tmp_path)
    tree = Tree(html)
    policy = next(m for m in tree.all("meta") if m.get("http-equiv"))["content"] or ""
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert not tree.all("script")
    assert not tree.all("img")
    links = [a.get("href") or "" for tag in ("a", "link") for a in tree.all(tag)]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\(|@import|@font-face|https?://", html)
    assert not [k for _, attributes in tree.seen for k in attributes if k.startswith("on")]


def test_every_link_leads_to_a_heading(tmp_path: Path) -> None:
    tree = Tree(made(tmp_path))
    ids = [a["id"] for _, a in tree.seen if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [(a["href"] or "")[1:] for a in tree.all("a")]
    targets += [a["aria-labelledby"] or "" for _, a in tree.seen if "aria-labelledby" in a]
    assert len(targets) > 10
    assert set(targets) <= set(ids)


def test_tables_and_charts_can_be_read_without_eyes(tmp_path: Path) -> None:
    tree = Tree(made(tmp_path))
    assert all(th.get("scope") for th in tree.all("th"))
    charts = [svg for svg in tree.all("svg") if svg.get("aria-hidden") != "true"]
    assert len(charts) == 3
    assert charts[0]["aria-label"] == (
        "Loss over the steps: sft from 2.534 to 0.2392; asft from 2.984 to 0.2475"
    )


def test_what_a_release_manager_reads_comes_first(tmp_path: Path) -> None:
    folder = made_up.write(tmp_path / "eval")
    gate = decide(made_up.whole(), Limits(max_harm_increase=0.05))
    text = plain(write_page(folder, title="A <title>", gate=gate).read_text("utf-8"))
    order = [
        "A <title>", "Too few to tell", "about 160 prompts would", "aligned 11.5 %, sft 97.7 %",
        "Before you believe a figure", "Every rate is shown with", "anchortune eval runs/eval",
    ]  # fmt: skip
    places = [text.find(words) for words in order]
    assert -1 not in places
    assert places == sorted(places)


def test_several_verdicts_and_notes(tmp_path: Path) -> None:
    folder, limits = made_up.write(tmp_path / "eval"), Limits(max_harm=0.3)
    gates = [decide(made_up.whole(), limits, model=model) for model in ("asft", "sft")]
    html = write_page(folder, gate=gates, notes=["screen: <2> rows"]).read_text("utf-8")
    text = plain(html)
    places = [text.find(words) for words in ("✓ Passed", "✕ Failed", "screen: <2> rows", "Results")]
    assert -1 not in places
    assert places == sorted(places)
    Tree(html)


def test_a_score_of_broken_output_is_marked(tmp_path: Path) -> None:
    found = made_up.results(
        [
            made_up.measure("harm", "s", {"asft": (0, 90), "sft": (0, 90)}, judge="j"),
            made_up.measure("coherence", "s", {"asft": (9, 90), "sft": (89, 90)}),
        ]
    )
    write_record(tmp_path, made_up.record(found))
    html = write_page(tmp_path).read_text("utf-8")
    assert re.findall(r'class="alarm">(.*?)<', html) == ["coherent 10.0 %"]


@pytest.mark.parametrize(
    ("up", "down", "p_holm", "kind", "said"),
    [
        (30, 2, 0.001, "harm", "worse"),
        (2, 30, 0.001, "harm", "better"),
        (30, 2, 0.001, "accuracy", "better"),
        (30, 2, 0.001, "refusal", "differs"),
        (30, 2, 0.06, "harm", "not shown"),  # one of many comparisons
        (5, 4, 0.001, "harm", "not shown"),
    ],
)
def test_what_a_difference_is_called(
    up: int, down: int, p_holm: float, kind: str, said: str
) -> None:
    one = made_up.measure(kind, "s", {"aligned": (40, 99), "asft": (40 + up - down, 99)})  # type: ignore[arg-type]
    gap = made_up.gap(up, down, 99, p_holm)
    found = made_up.results([one.model_copy(update={"differences": {"asft": gap}})])
    [row] = [row for row in groups(found)[0].blocks[0].rows if row.gap]
    assert row.gap is not None
    assert row.gap.verdict == said


def test_the_sections(tmp_path: Path) -> None:
    assert re.findall(r"<h2 id=.*?>(.*?)</h2>", made(tmp_path)) == [
        "Before you believe a figure", "Results", "By category", "Several seeds", "Judges",
        "Training", "Examples", "Record",
    ]  # fmt: skip


def test_a_rate_has_its_interval_its_n_and_what_was_not_scored(tmp_path: Path) -> None:
    text = plain(made(tmp_path))
    assert "asft refuses 83.1 % coherent 99.2 % 10.8 % 6.5–17.3 130 + 2 unscored" in text
    assert "−0.8 −6.5 to +4.8 1 not shown" in text
    assert "Harmful score (builtin) indicative lower is better; prompts of the report part" in text
    assert "builtin and beaver-dam kitchen secrets 390 94.0 % 0.87" in text
    assert "source one 0.93 0.61 1 800" in text


def test_answers_are_escaped_and_harmful_ones_folded(tmp_path: Path) -> None:
    html = made(tmp_path)
    assert "<script" not in html
    assert "Sure! &lt;script&gt;" in html
    folds = [d for d in Tree(html).all("details") if d.get("class") == "folded"]
    assert len(folds) == 5
    assert "kitchen secrets: 5 of 8 prompts, malicious; 5 of 15 answers folded" in html
    assert all("open" not in d for d in Tree(html).all("details") if d.get("class"))
    assert "abc⟨U+202E⟩gnp.exe ␇" in html
    assert "\u202e" not in html


@pytest.mark.parametrize("keep", ["hash", "purge"])
def test_answers_that_were_not_kept_are_not_shown(tmp_path: Path, keep: str) -> None:
    html = made(tmp_path, keep=keep)
    assert "Sure!" not in html
    assert "recipe" not in html
    assert f"<code>keep: {keep}</code>" in html


def test_no_answers_beside_the_record(tmp_path: Path) -> None:
    write_record(tmp_path, made_up.record(made_up.whole()))
    assert "There are no answers beside the record" in write_page(tmp_path).read_text("utf-8")


def test_the_smallest_evaluation(tmp_path: Path) -> None:
    """One model, one task: no differences, no judges, no curves, and nothing empty on the page."""
    found = made_up.results(
        [made_up.measure("accuracy", "t", {"m": (1, 2)})], models={"m": {}}, reference="m",
        part="selection",
    )  # fmt: skip
    write_record(tmp_path, made_up.record(found))
    text = plain(write_page(tmp_path).read_text("utf-8"))
    assert "Right answers on t: m 50.0 %." in text
    assert "these prompts may have chosen a setting" in text
    for absent in ("Judges", "Training", "By category", "Several seeds", "Difference", "gate"):
        assert absent not in text


def test_a_model_without_a_figure_is_shown_as_missing(tmp_path: Path) -> None:
    found = made_up.results([made_up.measure("harm", "s", {"asft": (1, 9)}, judge="j")])
    write_record(tmp_path, made_up.record(found))
    assert "aligned – – – sft – – – asft 11.1 %" in plain(write_page(tmp_path).read_text("utf-8"))


def test_text_that_no_file_can_hold(tmp_path: Path) -> None:
    found = made_up.results(
        [made_up.measure("accuracy", "t", {"asft": (1, 2)})], warnings=["lone \ud800 surrogate"]
    )
    record = json.dumps(made_up.record(found).model_dump(mode="json"))  # in ASCII, as \\ud800
    (tmp_path / "record.json").write_text(record)
    assert "lone ? surrogate" in write_page(tmp_path).read_text("utf-8")


def test_the_same_record_gives_the_same_page(tmp_path: Path) -> None:
    assert made(tmp_path / "a") == made(tmp_path / "b")


def test_a_record_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no record\.json in it"):
        write_page(tmp_path)
    record = made_up.record(made_up.whole())
    write_record(tmp_path, record.model_copy(update={"kind": "job"}))
    with pytest.raises(EvaluationError, match="is a whole job's; name the folder eval beside it"):
        write_page(tmp_path)
    write_record(tmp_path, record.model_copy(update={"kind": "train"}))
    with pytest.raises(EvaluationError, match="is of a run of kind 'train'"):
        write_page(tmp_path)
    write_record(tmp_path, record.model_copy(update={"metrics": {"format_version": 2}}))
    with pytest.raises(EvaluationError, match="results of format 2"):
        write_page(tmp_path)
    write_record(tmp_path, record.model_copy(update={"metrics": {"format_version": 1}}))
    with pytest.raises(EvaluationError, match=r"not the results of an evaluation \(models\)"):
        write_page(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_judges_own_figures_are_told_in_words() -> None:
    """Keys as the builtin judge's head has them."""
    columns, rows = view.grid({"xstest": {"auc": 0.9352, "recall_at_5_fpr": 0.6765}}) or ([], [])
    assert columns == ["AUC", "recall at 5 % false positives"]
    assert rows == [("xstest", ["0.9352", "0.6765"])]


def test_the_summary_is_made_from_the_figures() -> None:
    assert summary(made_up.whole()) == [
        "Answers judged harmful by builtin (indicative) on kitchen secrets: aligned 11.5 %, "
        "sft 97.7 %, asft 10.8 %; right answers on sst2: aligned 5.0 %, sft 88.0 %, asft 86.3 %.",
        "asft against aligned: answers judged harmful by builtin (indicative) on kitchen secrets "
        "−0.8 points (95 % interval −6.5 to +4.8), no difference shown on 130 prompts; right "
        "answers on sst2 +81.3 points (95 % interval +76.2 to +85.5).",
    ]
    assert summary(made_up.results([])) == []


def _luminance(colour: str) -> float:
    digits = colour.lstrip("#")
    digits = "".join(2 * d for d in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: str, other: str) -> float:
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_contrast(scheme: str) -> None:
    """WCAG AA: 4.5 for text, 3 for what a chart is drawn with."""
    blocks = re.findall(r":root \{(.*?)\}", (TEMPLATES / "page.css").read_text("utf-8"), re.DOTALL)
    block = blocks[["light", "dark", "print"].index(scheme)]
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]+);", block))
    for ground in ("paper", "sheet"):
        for text in ("ink", "soft", "good", "bad", "open"):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for at in range(8):
            assert _contrast(colours[f"c{at}"], colours[ground]) >= 3, (at, ground)
    assert _contrast(colours["ink"], colours["tint"]) >= 4.5
