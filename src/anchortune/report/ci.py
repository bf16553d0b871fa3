"""A gate's result for the machines that run pipelines: JUnit XML and GitHub's annotations."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from anchortune.report.gate import Check, GateResult
from anchortune.untrusted import inert

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, not even escaped."""
_LEVELS = {"passed": "notice", "failed": "error", "undecided": "warning"}


def junit_xml(result: GateResult) -> str:
    """A test suite with a case for each check.

    JUnit knows no third outcome: an undecided check is an ``<error>`` of type ``undecided``, a
    failed one a ``<failure>``, so both stop a pipeline and remain two things.
    """
    counts = {
        decision: sum(check.decision == decision for check in result.checks)
        for decision in ("failed", "undecided")
    }
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"anchortune gate: {result.model}"),
        tests=str(len(result.checks)),
        failures=str(counts["failed"]),
        errors=str(counts["undecided"]),
        skipped="0",
    )
    for check in result.checks:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=_xml(f"anchortune.gate.{result.model}"),
            name=_xml(f"{check.limit} {check.key}"),
            time="0",
        )
        if check.decision == "passed":
            ElementTree.SubElement(case, "system-out").text = _xml(check.reason)
        else:
            tag = "failure" if check.decision == "failed" else "error"
            problem = ElementTree.SubElement(
                case, tag, type=check.decision, message=_xml(_line(check))
            )
            problem.text = _xml(check.reason)
    if result.notes:
        ElementTree.SubElement(suite, "system-out").text = _xml("\n".join(result.notes))
    suites = ElementTree.Element("testsuites")
    suites.append(suite)
    ElementTree.indent(suites)
    text = ElementTree.tostring(suites, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def github_lines(result: GateResult) -> list[str]:
    """GitHub workflow commands, one a line: errors, then warnings, then how it ended."""
    order = ("failed", "undecided")
    checks = sorted(
        (check for check in result.checks if check.decision in order),
        key=lambda check: order.index(check.decision),
    )
    lines = [
        _command(_LEVELS[check.decision], f"Gate {check.decision}: {check.limit}", _line(check))
        for check in checks
    ]
    lines += [_command("notice", "Gate", note) for note in result.notes]
    title = f"Gate {result.decision}"
    return [*lines, _command(_LEVELS[result.decision], title, result.sentence())]


def _line(check: Check) -> str:
    return f"{check.label}: {check.reason}"


def _xml(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)


def _command(level: str, title: str, message: str) -> str:
    """One workflow command; nothing in it can end the line or start another command."""
    text = _escaped(message)
    name = _escaped(title).replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{text}"


def _escaped(text: str) -> str:
    return inert(text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A"))
