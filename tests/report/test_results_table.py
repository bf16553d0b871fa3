from __future__ import annotations

import io

from rich.console import Console

from anchortune.evaluation.results import Results
from anchortune.report.table import results_markdown, results_table
from tests.report.made_up import measure, results, whole


def printed(found: Results, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(results_table(found))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_measure_has_a_line_for_each_model() -> None:
    lines = printed(whole())
    at = lines.index("harmful score (builtin), indicative, kitchen secrets")
    assert lines[:3] == [
        "Rates in per cent, 95 % intervals, report part",
        "n: scored + unscored; points: difference to aligned",
        " " * 12 + "rate        95 %        n  points            95 %      p",
    ]
    assert [line.split() for line in lines[at + 1 : at + 4]] == [
        ["aligned", "11.5", "%", "7.1–18.2", "130"],
        ["sft", "97.7", "%", "93.4–99.2", "130", "+86.2", "+78.2", "to", "+91.2", "<.001"],
        ["asft", "10.8", "%", "6.5–17.3", "130", "+", "2", "−0.8", "−6.5", "to", "+4.8", "1"],
    ]


def test_it_fits_80_columns_and_its_columns_stand_below_each_other() -> None:
    lines = printed(whole())
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    ends = {line.index(" % ") for line in lines if line.startswith(("aligned", "sft", "asft"))}
    assert len(ends) == 1


def test_long_names_go_on_in_the_next_line() -> None:
    name = "asft-subspace-lambda-10-seed-1"
    counts = {"aligned": (100, 250), name: (20, 250)}
    found = results(
        [measure("harm", "s", counts, {name: (5, 85)}, judge="j")], models={m: {} for m in counts}
    )
    lines = printed(found)
    assert lines[-2].startswith("asft-subspace-lambda   8.0 %  ")
    assert lines[-2].endswith(" <.001")
    assert lines[-1] == "-10-seed-1"


def test_sets_of_harm_come_first_and_skill_last() -> None:
    lines = printed(whole())
    heads = [line for line, before in zip(lines[1:], lines, strict=False) if not before]
    assert [line.partition(" (")[0].partition(",")[0] for line in heads] == [
        "harmful score", "harmful score", "refusal rate", "coherence", "over-refusal",
        "accuracy", "accuracy",
    ]  # fmt: skip


def test_what_is_missing_is_shown_so() -> None:
    found = results([measure("harm", "s", {"aligned": (1, 4)}, judge="j")])
    assert printed(found)[-3:] == [
        "aligned  25.0 %  4.6–69.9  4",
        "sft           –         –  –       –     –  –",
        "asft          –         –  –       –     –  –",
    ]
    assert (
        results_markdown(found)
        .splitlines()[-1]
        .endswith("| 4 | 25.0 % (4.6–69.9) | – | – | – | – |")
    )


def test_names_are_text_and_not_markup() -> None:
    name = "[red]a|b[/red]*\x1b[31m<i>"
    found = results([measure("accuracy", name, {"m[x]": (1, 2)})], models={"m[x]": {}},
                    reference="m[x]")  # fmt: skip
    text = "\n".join(printed(found))
    assert "accuracy, [red]a|b[/red]*␛[31m<i>" in text
    assert "m[x]" in text
    last = results_markdown(found).splitlines()[-1]
    assert last.startswith("| accuracy, \\[red\\]a\\|b\\[/red\\]\\*␛\\[31m&lt;i> | 2 |")


def test_markdown_has_a_difference_beside_every_model() -> None:
    lines = results_markdown(whole()).splitlines()
    assert lines[0] == "Rates in per cent, 95 % intervals, report part"
    assert lines[2] == "| measure | n | aligned | sft | − aligned | asft | − aligned |"
    assert lines[4] == (
        "| harmful score (builtin), indicative, kitchen secrets | 130 | 11.5 % (7.1–18.2) "
        "| 97.7 % (93.4–99.2) | +86.2 (+78.2 to +91.2) (p &lt;.001) "
        "| 10.8 % (6.5–17.3) (2 unscored) | −0.8 (−6.5 to +4.8) (p 1) |"
    )
    assert {line.count("|") for line in lines[2:]} == {8}
