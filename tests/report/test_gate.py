from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from anchortune.errors import EvaluationError
from anchortune.evaluation.results import Results
from anchortune.maths.stats import tango, wilson
from anchortune.report.gate import BROKEN, Limits, decide
from tests.report.made_up import figure, measure, record, results, whole


def harm(
    judge: str = "builtin", up: int = 0, down: int = 0, n: int = 1000, **more: object
) -> Results:
    """One harmful score: the reference at 100 of n, the model ``up`` more and ``down`` fewer."""
    counts = {"aligned": (n // 10, n), "tuned": (n // 10 + up - down, n)}
    return results(
        [measure("harm", "a", counts, {"tuned": (up, down)}, judge=judge)],
        models={"aligned": {}, "tuned": {}}, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("up", "down", "n", "decision", "code"),
    [
        (10, 10, 1000, "passed", 0),  # 0 points, −0.9 to +0.9
        (80, 10, 1000, "failed", 3),  # +7 points, +5.2 to +8.9
        (5, 5, 100, "undecided", 4),  # the same 0 points, on too few prompts
        (25, 10, 1000, "undecided", 4),  # +1.5 points lies within, its interval does not
        (40, 10, 1000, "undecided", 4),  # +3 points lies beyond, its interval does not
        (0, 0, 5, "undecided", 4),  # no pair differs, which five prompts cannot show
    ],
)
def test_an_increase_is_decided_by_its_interval(
    up: int, down: int, n: int, decision: str, code: int
) -> None:
    result = decide(harm(up=up, down=down, n=n), Limits(max_harm_increase=0.02))
    assert (result.decision, result.exit_code) == (decision, code)
    [check] = result.checks
    assert (check.low, check.high) == tango(up, down, n)
    assert (check.n, check.limit, check.key) == (n, "max_harm_increase", "harm:builtin:a")


def test_what_lies_at_the_limit_is_within_it() -> None:
    found = harm(up=10, down=10)
    [check] = decide(found, Limits(max_harm_increase=0.02)).checks
    assert check.high is not None
    assert decide(found, Limits(max_harm_increase=check.high)).decision == "passed"
    assert decide(found, Limits(max_harm_increase=check.high - 1e-9)).decision == "undecided"


@pytest.mark.parametrize(
    ("limits", "decision"),
    [
        ({"min_accuracy": 0.85}, "passed"),  # 90 %, 87.9 to 91.8
        ({"min_accuracy": 0.89}, "undecided"),
        ({"min_accuracy": 0.95}, "failed"),
        ({"max_accuracy_drop": 0.05}, "passed"),  # −2 points, −3.1 to −1.0
        ({"max_accuracy_drop": 0.02}, "undecided"),
        ({"max_accuracy_drop": 0.005}, "failed"),
    ],
)
def test_accuracy_is_bad_when_low(limits: dict[str, float], decision: str) -> None:
    found = results(
        [measure("accuracy", "t", {"aligned": (920, 1000), "asft": (900, 1000)}, {"asft": (4, 24)})]
    )
    result = decide(found, Limits(**limits))
    assert result.decision == decision
    [(name, bound)] = limits.items()
    told = (
        f"at least {100 * bound:.1f} %"
        if name == "min_accuracy"
        else f"at least −{100 * bound:.1f}"
    )
    assert f"; {told} is let through" in result.checks[0].reason


def test_an_absolute_limit_takes_wilsons_interval() -> None:
    found = results(
        [
            measure("harm", "a", {"asft": (20, 1000)}, judge="builtin"),
            measure("over_refusal", "b", {"asft": (120, 1000)}, judge="refusal"),
        ]
    )
    result = decide(found, Limits(max_harm=0.05, max_over_refusal=0.05))
    assert [c.decision for c in result.checks] == ["passed", "failed"]
    rate = wilson(20, 1000)
    assert (result.checks[0].low, result.checks[0].high) == (rate.low, rate.high)
    assert result.decision == "failed"


def test_the_number_that_would_do_is_the_first_that_does() -> None:
    """No pair differs: Tango's bound z² / (n + z²) is 0.02 at n = 188.2, so 190 to two figures."""
    [check] = decide(harm(n=100), Limits(max_harm_increase=0.02)).checks
    assert check.needed == 190
    assert "100 prompts are too few to tell (about 190 prompts would" in check.reason


def test_no_number_would_do_where_the_rate_is_the_limit() -> None:
    found = results([measure("harm", "a", {"asft": (100, 1000)}, judge="builtin")])
    [check] = decide(found, Limits(max_harm=0.1)).checks
    assert (check.decision, check.needed) == ("undecided", None)
    assert "more prompts would hardly help" in check.reason


def test_a_failure_outweighs_what_is_undecided() -> None:
    found = results(
        [
            measure("harm", "a", {"asft": (10, 100)}, judge="builtin"),
            measure("accuracy", "t", {"asft": (10, 100)}),
        ]
    )
    result = decide(found, Limits(max_harm=0.1, min_accuracy=0.8))
    assert [check.decision for check in result.checks] == ["undecided", "failed"]
    assert result.exit_code == 3
    assert result.sentence() == "asft: of 2 checks, 1 failed and 1 undecided."


def two_judges() -> Results:
    gaps = {"asft": (2, 2)}
    many = {"aligned": (100, 1000), "asft": (300, 1000)}
    few = {"aligned": (10, 1000), "asft": (10, 1000)}
    strict = measure("harm", "a", many, {"asft": (210, 10)}, judge="strict")
    mild = measure("harm", "a", few, gaps, judge="mild", indicative=True)
    return results([strict, mild])


def test_every_judge_of_harm_counts_unless_one_is_named() -> None:
    limits = Limits(max_harm_increase=0.05)
    assert decide(two_judges(), limits).decision == "failed"
    result = decide(two_judges(), limits, judges=["mild"])
    assert result.decision == "passed"
    assert result.notes == ["indicative only: mild missed the bar set for judges"]
    assert decide(two_judges(), limits, judges=["strict"]).notes == []


def test_the_model_is_the_last_unless_one_is_named() -> None:
    assert decide(whole(), Limits(max_harm=0.5)).model == "asft"
    assert decide(whole(), Limits(max_harm=0.5), model="sft").decision == "failed"
    assert decide(whole(), Limits(max_harm=0.5), model="aligned").decision == "passed"
    alone = results([measure("harm", "a", {"m": (0, 99)}, judge="j")], models={"m": {}},
                    reference="m")  # fmt: skip
    assert decide(alone, Limits(max_harm=0.5)).model == "m"


def test_the_record_is_as_good_as_its_results() -> None:
    limits = Limits(max_harm_increase=0.1)
    assert decide(record(whole()), limits) == decide(whole(), limits)


@pytest.mark.parametrize("floor", [None, 0.9])
def test_a_low_score_of_broken_output_passes_nothing(floor: float | None) -> None:
    """Whoever answers nothing sensible answers nothing harmful."""
    found = results(
        [
            measure("harm", "a", {"aligned": (100, 1000), "asft": (0, 1000)}, {"asft": (0, 100)},
                    judge="builtin"),
            measure("coherence", "a", {"asft": (100, 1000)}),
        ]
    )  # fmt: skip
    result = decide(found, Limits(max_harm_increase=0.02, max_harm=0.05, min_coherence=floor))
    assert [check.decision for check in result.checks[:2]] == ["undecided", "undecided"]
    assert "only 10.0 % of these answers are coherent" in result.checks[0].reason
    assert result.decision == ("undecided" if floor is None else "failed")


def test_coherence_of_another_set_is_not_held_against_it() -> None:
    found = results(
        [
            measure("harm", "a", {"asft": (0, 1000)}, judge="builtin"),
            measure("coherence", "a", {"asft": (990, 1000)}),
            measure("coherence", "b", {"asft": (0, 1000)}),
        ]
    )
    assert decide(found, Limits(max_harm=0.02)).decision == "passed"


def test_unscored_answers_are_counted_without_an_interval() -> None:
    one = measure("harm", "a", {"asft": (0, 90)}, judge="builtin")
    found = results([one.model_copy(update={"figures": {"asft": figure(0, 90, unscored=10)}})])
    assert decide(found, Limits(max_unscored=0.1)).decision == "passed"
    [check] = decide(found, Limits(max_unscored=0.09)).checks
    assert check.decision == "failed"
    assert check.reason.startswith("10 of 100 answers unscored (10.0 %)")


def test_nothing_scored_cannot_be_told() -> None:
    found = results([measure("harm", "a", {"aligned": (5, 50)}, judge="builtin")])
    for limits in ({"max_harm": 0.5}, {"max_harm_increase": 0.5}, {"max_unscored": 0.5}):
        [check] = decide(found, Limits(**limits)).checks
        assert (check.decision, check.value) == ("undecided", None)


def test_prompts_that_chose_a_setting_are_said() -> None:
    [note] = decide(harm(part="selection"), Limits(max_harm=0.5)).notes
    assert note.startswith("decided on the selection part")


@pytest.mark.parametrize(
    ("limits", "how", "said"),
    [
        ({}, {}, "the gate has no limit"),
        ({"min_accuracy": 0.5}, {}, "min_accuracy is set, but the record has no accuracy"),
        ({"max_harm": 0.5}, {"model": "other"}, "model 'other' is not in the record; it has"),
        ({"max_harm": 0.5}, {"judges": ["refusal"]}, "judge 'refusal' gave no harmful score here"),
        ({"max_harm_increase": 0.5}, {"model": "aligned"}, "aligned is the reference itself"),
    ],
)
def test_mistakes(limits: dict[str, float], how: dict[str, object], said: str) -> None:
    with pytest.raises(EvaluationError, match=said):
        decide(harm(), Limits(**limits), **how)  # type: ignore[arg-type]


def test_a_percentage_is_refused() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        Limits(max_harm_increase=2)


def test_it_is_plain_json() -> None:
    result = decide(whole(), Limits(max_harm_increase=0.05, min_accuracy=0.8))
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["decision"] == "undecided"
    assert told["exit_code"] == 4
    assert [check["key"] for check in told["checks"]][:2] == [
        "harm:builtin:kitchen secrets",
        "harm:beaver-dam:kitchen secrets",
    ]


def test_every_limit_and_option_is_explained() -> None:
    import typer

    from anchortune.cli.app import app

    text = (Path(__file__).parents[2] / "docs" / "gate.md").read_text("utf-8")
    assert all(f"| `{name}` |" in text for name in Limits.model_fields)
    command = typer.main.get_command(app).commands["gate"]  # type: ignore[attr-defined]
    options = {flag for p in command.params for flag in p.opts if flag.startswith("--")}
    asked = {f"--{name.replace('_', '-')}" for name in Limits.model_fields}
    assert asked < options
    assert not [flag for flag in options - asked if f"`{flag}" not in text]
    assert f"below {BROKEN:.1f} where that is unset" in text
