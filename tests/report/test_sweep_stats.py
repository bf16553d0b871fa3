from __future__ import annotations

import pytest

from anchortune.maths.stats import holm, mcnemar, over_seeds, paired, wilson
from anchortune.report.runs import RunRecord
from anchortune.report.sweep_load import SweepError
from anchortune.report.sweep_stats import (
    Contrast,
    Group,
    Spec,
    best_of,
    contrast,
    corrected,
    estimate,
    judge_margin,
    specs_of,
)
from tests.report.sweep_records import outcome, run

HARM = Spec("harm", judge="j")


def harm(defence: str, seed: int, marks: list[int | None]) -> RunRecord:
    return run({"defence": defence}, seed, [outcome("harm", marks, judge="j")])  # type: ignore[arg-type]


def group(defence: str, *seeds: list[int | None]) -> Group:
    return Group(tuple(harm(defence, seed, marks) for seed, marks in enumerate(seeds, 1)))


def test_one_seed_has_wilsons_interval() -> None:
    found = estimate(group("sft", [1, 1, 1, 0, 0, 0, 0, 0, 0, None]), HARM)
    assert found is not None
    rate = wilson(3, 9)
    assert (found.value, found.low, found.high) == (rate.value, rate.low, rate.high)
    assert (found.seeds, found.n, found.unscored) == ((1,), 9, 1)
    assert (found.sets, found.judges) == (("s",), ("j",))


def test_several_seeds_are_clustered() -> None:
    seeds: list[list[int | None]] = [[1, 1, 0, 0, 1], [1, 0, 0, None, 1], [1, 0, 0, 0, 0]]
    found = estimate(group("sft", *seeds), HARM)
    rate = over_seeds(seeds)
    assert found is not None
    assert found.value == pytest.approx((3 / 5 + 2 / 4 + 1 / 5) / 3)
    assert (found.low, found.high) == (rate.low, rate.high)
    assert (found.seeds, found.n, found.unscored) == ((1, 2, 3), 5, 1)


def test_nothing_scored_is_missing_and_such_a_seed_does_not_count() -> None:
    assert estimate(group("sft", [None, None]), HARM) is None
    assert estimate(Group(()), HARM) is None
    found = estimate(group("sft", [None, None], [1, 0]), HARM)
    assert found is not None
    assert (found.value, found.seeds, found.unscored) == (0.5, (2,), 2)


def test_a_difference_is_paired_by_seed_and_item() -> None:
    first = Group((harm("a", 1, [0, 0, 0, 0, None, 1]), harm("a", 5, [1, 1, 1, 1, 1, 1])))
    second = Group((harm("b", 1, [1, 1, 1, 0, 1, None]), harm("b", 6, [0] * 6)))
    found = contrast(first, second, HARM)
    assert found is not None
    assert found.value == -3 / 4
    assert found.p == mcnemar(0, 3)
    one = paired([False] * 4, [True, True, True, False])
    assert (found.low, found.high) == (one.low, one.high)
    assert (found.seeds, found.pairs) == (1, 4)


def test_an_untrained_model_stands_beside_every_seed() -> None:
    aligned = Group((run({"defence": "aligned"}, 0, [outcome("harm", [0, 0, 0, 1], judge="j")]),))
    tuned = group("asft", [1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 0, 1])
    found = contrast(tuned, aligned, HARM)
    assert found is not None
    assert found.value == pytest.approx((1 + 0 + 2) / 12)
    assert (found.seeds, found.pairs) == (3, 12)
    back = contrast(aligned, tuned, HARM)
    assert back is not None
    assert back.value == -found.value
    once = Group((run({"defence": "sft"}, 0, [outcome("harm", [0, 0, 0, 1], judge="j")]),))
    assert contrast(tuned, once, HARM) is None  # one seed of a trained one is another seed


def test_ties_of_a_win_rate_count_half_and_pair_with_nothing() -> None:
    def won(marks: list[float]) -> Group:
        return Group((run({"defence": "a"}, 1, [outcome("win_rate", marks)]),))  # type: ignore[arg-type]

    found = estimate(won([1, 0.5, 0, 0.5]), Spec("win_rate"))
    assert found is not None
    assert found.value == 0.5
    gap = contrast(won([1, 0.5, 0, 1]), won([0, 1, 0, 0.5]), Spec("win_rate"))
    assert gap is not None
    assert (gap.value, gap.pairs) == (0.5, 2)


def test_holm_is_over_what_is_there() -> None:
    def gap(p: float) -> Contrast:
        return Contrast(-0.1, -0.2, -0.05, p, None, 1, 100)

    family = corrected([gap(0.03), None, gap(0.01), gap(0.04)])
    adjusted = [one.p_holm for one in family if one is not None]
    assert adjusted == holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert [one.shown for one in family if one is not None] == [False, True, False]
    assert corrected([None]) == [None]


def test_the_best_must_beat_every_other_one() -> None:
    safe, middle, broken = [0] * 38 + [1] * 2, [0] * 20 + [1] * 20, [1] * 40
    near = [0] * 37 + [1] * 3
    aligned = Group((run({"defence": "aligned"}, 0, [outcome("harm", [0] * 40, judge="j")]),))
    cells = [group("sft", broken), aligned, group("asft", safe), group("lisa", middle), Group(())]
    assert best_of(cells, HARM) == 2
    assert best_of([*cells, group("bea", near)], HARM) is None
    assert best_of(cells[:2], HARM) is None  # nothing to beat
    accuracy = Spec("accuracy")
    skilled = [
        Group((run({"defence": d}, 1, [outcome("accuracy", marks)]),))
        for d, marks in (("a", safe), ("b", broken), ("c", middle))
    ]
    assert best_of(skilled, accuracy) == 1


@pytest.mark.parametrize(
    ("measure", "low", "high", "verdict"),
    [
        ("harm", -0.02, 0.04, "shown"),
        ("harm", -0.02, 0.06, "undecided"),
        ("harm", 0.06, 0.2, "refuted"),
        ("harm", -0.3, -0.1, "shown"),
        ("accuracy", -0.04, 0.02, "shown"),
        ("accuracy", -0.06, 0.02, "undecided"),
        ("accuracy", -0.2, -0.06, "refuted"),
    ],
)
def test_non_inferiority_is_read_off_the_interval(
    measure: str, low: float, high: float, verdict: str
) -> None:
    gap = Contrast((low + high) / 2, low, high, 0.5, None, 3, 300)
    assert judge_margin(gap, Spec(measure), 0.05) == verdict
    assert judge_margin(None, Spec(measure), 0.05) == "missing"


def two_tasks(task: str | None, labelled: bool) -> Group:
    outcomes = [outcome("accuracy", [1, 1], "sst2"), outcome("accuracy", [0, 1], "agnews")]
    labels = {"defence": "sft"} | ({"task": str(task)} if labelled else {})
    return Group((run(labels, 1, outcomes),), task)


@pytest.mark.parametrize("labelled", [True, False])
def test_accuracy_is_that_of_the_cells_task(labelled: bool) -> None:
    cells = [two_tasks("sst2", labelled), two_tasks("agnews", labelled)]
    assert specs_of(cells, ["accuracy"], None) == [Spec("accuracy")]
    rates = [estimate(cell, Spec("accuracy")) for cell in cells]
    assert [rate and rate.value for rate in rates] == [1.0, 0.5]


def test_of_several_sets_each_has_its_column() -> None:
    cells = [two_tasks(None, False)]
    assert specs_of(cells, ["accuracy"], None) == [
        Spec("accuracy", "agnews"),
        Spec("accuracy", "sst2"),
    ]
    assert specs_of(cells, ["accuracy:sst2"], None) == [Spec("accuracy", "sst2")]


def test_the_skill_of_a_task_without_accuracy_is_its_win_rate() -> None:
    cells = [
        Group((run({"task": "sst2"}, 1, [outcome("accuracy", [1, 0], "sst2")]),)),
        Group((run({"task": "alpaca"}, 1, [outcome("win_rate", [1, 1], "alpaca", "rubric")]),)),
    ]
    [spec] = specs_of(cells, ["accuracy"], None)
    found = [estimate(cell, spec) for cell in cells]
    assert [one and (one.value, one.judges) for one in found] == [(0.5, ()), (1.0, ("rubric",))]


def test_judges_are_told_apart() -> None:
    both = [outcome("harm", [1, 0], judge="builtin"), outcome("harm", [0, 0], judge="guard")]
    cells = [Group((run({"defence": "sft"}, 1, both),))]
    [spec] = specs_of(cells, ["harm"], "builtin")
    assert spec.indicative
    found = estimate(cells[0], spec)
    assert found is not None
    assert found.value == 0.5
    with pytest.raises(SweepError, match=r"Several judged harm \(builtin, guard\): .*--judge"):
        specs_of(cells, ["harm"], None)


@pytest.mark.parametrize(
    ("wanted", "judge", "said"),
    [
        ("hram", None, r"no.* measure hram; there is harm\. Did you mean harm\?"),
        ("harm:x", None, r"harm on x; there is s\."),
        ("harm", "jj", r"judge jj .*; there is j\. Did you mean j\?"),
    ],
)
def test_what_is_not_there_is_told(wanted: str, judge: str | None, said: str) -> None:
    with pytest.raises(SweepError, match=f"(?i){said}"):
        specs_of([group("sft", [1, 0])], [wanted], judge)
