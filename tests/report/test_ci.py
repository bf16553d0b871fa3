from __future__ import annotations

from xml.etree import ElementTree

from anchortune.report.ci import github_lines, junit_xml
from anchortune.report.gate import Check, Decision, GateResult


def check(decision: Decision, **more: str) -> Check:
    fields = {"key": "harm:j:set", "label": "harmful score (j), set", "reason": "the reason"}
    return Check("max_harm", 0.1, decision=decision, **(fields | more))


def result(*checks: Check, model: str = "asft", notes: list[str] | None = None) -> GateResult:
    found = {c.decision for c in checks}
    decision: Decision = "failed" if "failed" in found else "undecided"
    return GateResult(decision, model, "aligned", list(checks), notes or [])


def test_junit_keeps_the_three_outcomes_apart() -> None:
    text = junit_xml(result(check("passed"), check("failed"), check("undecided"), notes=["a note"]))
    assert text.startswith('<?xml version="1.0" encoding="UTF-8"?>\n')
    suites = ElementTree.fromstring(text.encode())
    [suite] = suites
    assert suite.attrib == {
        "name": "anchortune gate: asft", "tests": "3", "failures": "1", "errors": "1",
        "skipped": "0",
    }  # fmt: skip
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["max_harm harm:j:set"] * 3
    assert [[child.tag for child in case] for case in cases] == [
        ["system-out"], ["failure"], ["error"],
    ]  # fmt: skip
    assert cases[1][0].get("message") == "harmful score (j), set: the reason"
    assert cases[2][0].get("type") == "undecided"
    assert suite.findtext("system-out") == "a note"


def test_junit_is_xml_whatever_a_set_is_called() -> None:
    odd = check("failed", label="a<b>&\"'\x00\x1b\ufffe\ud800 ü", reason="]]> <!-- ")
    case = ElementTree.fromstring(junit_xml(result(odd, model='m"<')).encode())[0][0]
    assert case.get("classname") == 'anchortune.gate.m"<'
    assert case[0].get("message") == "a<b>&\"'\ufffd\ufffd\ufffd\ufffd ü: ]]> <!-- "
    assert case[0].text == "]]> <!-- "


def test_github_is_told_errors_first_and_how_it_ended() -> None:
    lines = github_lines(result(check("passed"), check("undecided"), check("failed"), notes=["n"]))
    assert lines == [
        "::error title=Gate failed%3A max_harm::harmful score (j), set: the reason",
        "::warning title=Gate undecided%3A max_harm::harmful score (j), set: the reason",
        "::notice title=Gate::n",
        "::error title=Gate failed::asft: of 3 checks, 1 failed and 1 undecided.",
    ]


def test_no_name_can_start_another_command() -> None:
    odd = check("failed", label="100 %\n::stop-commands::x\r\n", reason="r")
    first = github_lines(result(odd))[0]
    assert first.endswith("::100 %25%0A::stop-commands::x%0D%0A: r")
    assert len(first.splitlines()) == 1
