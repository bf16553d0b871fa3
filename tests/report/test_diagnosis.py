"""The rules of ``diagnose`` on runs made up: each signature is found, and only where it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anchortune.report.diagnosis.facts import Facts, Measured
from anchortune.report.diagnosis.finding import Finding, Fine, Unseen
from anchortune.report.diagnosis.repeat import differences, least
from anchortune.report.diagnosis.rules import CHECKS, diagnose
from anchortune.report.diagnosis.safety import noise_share
from tests.report.made_up_runs import (
    HEALTHY,
    MEASURES,
    SAME,
    SIGNATURES,
    UNSAFE,
    gap,
    logged,
    lying,
    measure,
    rate,
    trained,
)

DOCS = Path(__file__).parents[2] / "docs/diagnose.md"


def said(facts: Facts, name: str) -> Any:
    [check] = [check for check in CHECKS if check.name == name]
    return check.rule(facts)


def found(facts: Facts, name: str) -> list[Finding]:
    result = said(facts, name)
    assert not isinstance(result, Fine | Unseen), result
    return result if isinstance(result, list) else [result]


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_signature_is_found(case: str) -> None:
    facts, name, level, seen = SIGNATURES[case]
    findings = found(facts, name)
    assert level in [one.level for one in findings]
    assert any(re.search(seen, one.seen) for one in findings), findings
    for one in findings:
        assert one.seen
        assert one.why
        assert one.mend
        assert "None" not in f"{one.seen} {one.why} {one.mend}"
    assert isinstance(said(HEALTHY, name), Fine), "and not in a run that is well"


def test_answers_that_were_broken_before_are_not_laid_to_the_training() -> None:
    for aligned, mend in ((990, "lower training.learning_rate"), (200, "before the training")):
        measures = [measure("coherence", 100, aligned, 990)]
        [finding] = found(replace(HEALTHY, measures=measures), "broken-answers")
        assert mend in finding.mend


def test_every_check_can_find_something() -> None:
    assert {name for _, name, _, _ in SIGNATURES.values()} == {check.name for check in CHECKS}


def test_a_healthy_run_has_no_finding_and_exit_code_0() -> None:
    result = diagnose(HEALTHY)
    assert [(check.name, one.seen) for check, one in result.findings] == []
    assert result.not_looked == []
    assert result.exit_code == 0


def test_nothing_is_said_of_what_is_not_known() -> None:
    """Without any facts every check says that it did not look, and none that all is well."""
    result = diagnose(Facts("runs/nothing", missing={"training": "it is not there"}))
    assert len(result.not_looked) == len(CHECKS)
    assert (result.findings, result.looked, result.exit_code) == ([], [], 0)
    assert all(why for _, why in result.not_looked)


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (
            replace(HEALTHY, measures=None),
            {"harm-rose", "weak-start", "broken-answers", "accuracy-fell", "over-refusal",
             "other-weights-evaluated", "small-sample", "one-seed", "uncertain-judge",
             "evaluation-warns"},
        ),
        (
            replace(HEALTHY, lie=None, missing={"lie": "the anchor's file is gone"}),
            {"modules-without-anchor", "anchor-without-direction", "went-backwards",
             "penalty-without-effect"},
        ),
        (trained(start="unverified"), {"anchor-of-another-model"}),
        (trained(harmful=None), {"harmful-data"}),
        (trained(log=[]), {"probe-fell", "lambda-too-high", "unhealthy-training"}),
        (trained(data=None), {"labels-cut"}),
        (replace(HEALTHY, gradients=None), {"gradients-in-conflict"}),
        (replace(HEALTHY, other=None), {"differs-from-the-other"}),
        (replace(HEALTHY, checked=0), {"files-changed"}),
        (replace(HEALTHY, asked=None), {"other-weights-evaluated"}),
        (replace(HEALTHY, warnings=None), {"evaluation-warns"}),
        (
            replace(HEALTHY, measures=[replace(one, indicative=None) for one in MEASURES]),
            {"uncertain-judge"},
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_not_looked_at(facts: Facts, names: set[str]) -> None:
    result = diagnose(facts)
    assert {check.name for check, _ in result.not_looked} == names
    assert result.findings == []


def test_kept_safety_makes_cautions_of_what_could_explain_its_loss() -> None:
    for facts in (
        trained(start="other"), lying(along=-1.4), logged(**{"asft/penalised_share": 0.86})
    ):  # fmt: skip
        assert diagnose(facts).faults == 0
        assert any(one.level == "caution" for _, one in diagnose(facts).findings)
    assert isinstance(
        said(logged(**{"asft/penalised_share": 0.001}), "lost-in-the-free-part"), Fine
    )


def test_faults_come_first_and_the_text_and_the_json_say_the_same() -> None:
    result = diagnose(replace(UNSAFE, warnings=["cut\nanswers"], here={"torch": "9"}))
    levels = [one.level for _, one in result.findings]
    assert levels == sorted(levels, key=lambda level: level != "fault")
    assert result.exit_code == 3
    told = result.to_json()
    assert told["faults"] == levels.count("fault")
    text = "\n".join(result.lines())
    assert text.startswith("runs/job: 2 faults, 2 cautions; ")
    for one in told["findings"]:
        assert f"{one['level'].upper()} {one['check']} ({one['symptom']})" in text
        assert one["docs"] == f"docs/diagnose.md#{one['check']}"
        assert one["seen"].replace("\n", " ") in text
    for key in ("looked", "not_looked"):
        assert all(one["check"] in text for one in told[key])
    assert len(result.lines()) == text.count("\n") + 1


def test_every_check_has_its_part_in_the_documentation() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    headings = re.findall(r"^### (\S+)$", DOCS.read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted(names)


@pytest.mark.parametrize("shape", [(32, 32), (48, 32), (64, 200)])
def test_noise_is_told_from_a_direction(shape: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        noise = generator.standard_normal(shape)
        planted = noise / np.linalg.norm(noise) + 2 * np.outer(
            *(v / np.linalg.norm(v) for v in map(generator.standard_normal, shape))
        )
        for rank in (1, 3):
            kept = [
                float((np.linalg.svd(m, compute_uv=False)[:rank] ** 2).sum() / (m**2).sum())
                for m in (noise, planted)
            ]
            assert kept[0] <= noise_share(shape, rank) < kept[1]


def test_the_least_difference_is_the_half_width_of_the_interval() -> None:
    alone = Measured("harm", "bad", rate(12, 117))
    share = 12 / 117
    assert least(alone) == pytest.approx(1.95996 * (2 * share * (1 - share) / 117) ** 0.5, rel=1e-4)
    assert least(replace(alone, gap=gap(0.1, half=0.03))) == pytest.approx(0.03)
    assert least(Measured("harm", "bad", rate(0, 100))) > 0


def test_an_evaluation_that_only_one_side_has_is_no_difference() -> None:
    asked = {"settings": {"evaluate.seed": 0}, "inputs": {"prompts of bad": "e" * 64}}
    for mine, theirs in ((asked, {}), ({}, asked)):
        facts = replace(HEALTHY, decides=mine, other=("o", SAME, theirs))
        assert isinstance(said(facts, "differs-from-the-other"), Fine)
    facts = replace(HEALTHY, decides=asked, other=("o", SAME, {"settings": {"evaluate.seed": 1}}))
    assert any("evaluate.seed 0 (1)" in one.seen for one in found(facts, "differs-from-the-other"))
    facts = replace(HEALTHY, training=None, decides=asked, other=("o", SAME, {}))
    assert isinstance(said(facts, "differs-from-the-other"), Unseen)


def test_differences_name_what_one_side_lacks_and_hide_secrets() -> None:
    told = differences({"a": 1, "b": 2, "url": "https://me:pass@host/"}, {"b": 2, "c": 3})
    assert told == ["a 1 (–)", "c – (3)", "url https://***@host/ (–)"]
