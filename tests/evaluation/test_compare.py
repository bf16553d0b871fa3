"""Rates, differences, arms and agreement of canned marks, by hand."""

from __future__ import annotations

import pytest

from anchortune.evaluation.compare import agreements, compare, corrected, difference
from anchortune.evaluation.measure import Counted, figure
from anchortune.evaluation.results import Measure
from anchortune.maths.stats import mcnemar, paired, wilson


def marks(text: str) -> dict[str, float | None]:
    """``"10-"``: the first item counts, the second does not, the third is unscored."""
    values = {"1": 1.0, "0": 0.0, "t": 0.5, "-": None}
    return {f"i{place}": values[sign] for place, sign in enumerate(text)}


def counted(kind: str = "harm", **by_model: str) -> Counted:
    return Counted(
        kind=kind,  # type: ignore[arg-type]
        set="advbench",
        marks={model: marks(text) for model, text in by_model.items()},
        better="lower",
        judge="builtin",
        named=kind == "harm",
    )


def only(one: Counted, arms: dict[str, list[str]] | None = None) -> Measure:
    [measure] = compare([one], "aligned", arms or {}, resamples=100, seed=1)
    return measure


def test_a_rate_is_of_the_scored_and_carries_the_others() -> None:
    found = figure(marks("110--0").values())
    assert found is not None
    assert (found.value, found.n, found.unscored) == (0.5, 4, 2)
    assert (found.low, found.high) == wilson(2, 4)[2:]


def test_nothing_scored_is_no_rate() -> None:
    assert figure(marks("---").values()) is None
    assert figure([]) is None
    assert compare([counted(aligned="--", sft="--")], "aligned", {}, resamples=9, seed=0) == []
    assert "aligned" not in only(counted(aligned="--", sft="01")).figures


def test_a_tie_is_half_a_win() -> None:
    found = figure(marks("1t0t").values())
    assert found is not None
    assert (found.value, found.n) == (0.5, 4)


def test_a_difference_is_over_the_prompts_that_both_scored() -> None:
    measure = only(counted(aligned="0010-0", sft="1110-1"))
    gap = measure.differences["sft"]
    assert measure.key == "harm:builtin:advbench"
    # Pairs: 0→1, 0→1, 1→1, 0→0, 0→1; the fifth is unscored.
    assert (gap.n, gap.up, gap.down, gap.value) == (5, 3, 0, 0.6)
    assert gap.p == mcnemar(3, 0) == 0.25
    assert gap.p_holm == gap.p
    expected = paired([True] * 3 + [False, True], [False, False, True, False, False],
                      resamples=100, seed=1)  # fmt: skip
    assert (gap.low, gap.high) == (expected.low, expected.high)
    assert set(measure.differences) == {"sft"}


def test_no_shared_prompt_is_no_difference() -> None:
    assert difference(marks("1-"), marks("-1"), resamples=9, seed=0) is None
    assert difference(marks("t"), marks("1"), resamples=9, seed=0) is None
    assert only(counted(aligned="0-", sft="-1")).differences == {}


def test_holm_is_over_all_comparisons_of_one_kind() -> None:
    many = [
        counted(aligned="0" * 8, sft="1" * 6 + "00", asft="1" * 5 + "000"),
        Counted("harm", "own", {"aligned": marks("0" * 9), "sft": marks("1" * 9)}, "lower"),
        Counted("accuracy", "sst2", {"aligned": marks("0" * 8), "sft": marks("1" * 8)}, "higher"),
    ]
    first, second, third = compare(many, "aligned", {}, resamples=9, seed=0)
    p = {"9": 2 / 2**9, "6": 2 / 2**6, "5": 2 / 2**5, "8": 2 / 2**8}
    assert second.differences["sft"].p_holm == pytest.approx(3 * p["9"])
    assert first.differences["sft"].p_holm == pytest.approx(2 * p["6"])
    assert first.differences["asft"].p_holm == pytest.approx(p["5"])
    assert third.differences["sft"].p_holm == pytest.approx(p["8"])  # a family of its own
    assert corrected([]) == []


def test_categories_have_rates_of_their_own() -> None:
    one = Counted(
        "harm", "s", {"aligned": marks("01-"), "sft": marks("11-")}, "lower",
        categories={"i0": "theft", "i1": "arson", "i2": "fraud"},
    )  # fmt: skip
    found = only(one).categories
    assert list(found) == ["arson", "theft"]  # nothing of fraud was scored
    assert found["theft"]["aligned"].value == 0
    assert (found["arson"]["sft"].value, found["arson"]["sft"].n) == (1, 1)


def test_an_arm_is_its_seeds() -> None:
    arms = {"sft": ["sft-0", "sft-1"], "asft": ["asft-0"]}
    one = counted(**{"aligned": "0000", "sft-0": "1100", "sft-1": "1110", "asft-0": "0-01"})
    found = only(one, arms).arms
    assert (found["sft"].seeds, found["sft"].mean) == (2, 0.625)
    assert found["sft"].sd == pytest.approx(0.125 * 2**0.5)
    assert (found["asft"].seeds, found["asft"].sd) == (1, None)
    assert found["asft"].mean == pytest.approx(1 / 3)
    assert only(counted(aligned="0", x="-"), {"a": ["x"]}).arms == {}


def test_agreement_is_over_what_both_judges_scored() -> None:
    said = {
        "builtin": {("m", "1"): "harmful", ("m", "2"): "safe", ("m", "3"): "safe"},
        "file": {("m", "1"): "harmful", ("m", "2"): "harmful", ("n", "3"): "safe"},
        "wildguard": {("n", "9"): "safe"},
    }
    [found] = agreements(said, "advbench")
    assert (found.judges, found.n, found.agree) == (("builtin", "file"), 2, 0.5)
    assert found.kappa == pytest.approx(0.0)
