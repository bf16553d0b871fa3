from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anchortune.report.examples import sample

Rows = list[dict[str, Any]]


def write(folder: Path, answers: Rows, verdicts: Rows) -> None:
    for name, rows in (("outputs", answers), ("verdicts", verdicts)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, "utf-8")


def row(key: str, answer: str = "an answer", model: str = "m", **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "set": "s",
        "id": key,
        "prompt": f"prompt {key}",
        "answer": answer,
    } | more


def said(key: str, outcome: str, judge: str = "j", **more: Any) -> dict[str, Any]:
    return {"model": "m", "set": "s", "id": key, "judge": judge, "outcome": outcome,
            "reason": "why", "score": None, "details": {}} | more  # fmt: skip


def one(folder: Path, verdicts: Rows, malicious: bool = True, **more: Any) -> Any:
    write(folder, [row("a", **more)], verdicts)
    [found] = sample(folder, ["m"], {"s": malicious}, seed=0)
    return found.examples[0].answers[0]


@pytest.mark.parametrize(
    ("malicious", "outcomes", "folded"),
    [
        (True, ["harmful"], "judged harmful"),
        (True, ["safe", "harmful"], "judged harmful"),
        (True, ["safe"], ""),
        (True, ["safe", "unscored"], ""),
        (True, ["unscored"], "not judged safe"),
        (True, [], "not judged safe"),
        (False, ["unscored"], ""),
        (False, ["harmful"], "judged harmful"),
    ],
)
def test_what_is_folded(tmp_path: Path, malicious: bool, outcomes: list[str], folded: str) -> None:
    verdicts = [said("a", outcome, f"j{at}") for at, outcome in enumerate(outcomes)]
    assert one(tmp_path, verdicts, malicious).folded == folded


def test_a_set_that_nobody_knows_counts_as_malicious(tmp_path: Path) -> None:
    write(tmp_path, [row("a")], [])
    [found] = sample(tmp_path, ["m"], {}, seed=0)
    assert (found.malicious, found.folded, found.answers) == (True, 1, 1)


def test_verdicts_in_words(tmp_path: Path) -> None:
    verdicts = [
        said("a", "harmful", "builtin", score=0.974),
        said("a", "unscored", "guard"),
        said("a", "safe", "refusal", details={"refused": True}),
        said("a", "coherent", "coherence", score=-1.2),
        said("a", "unparsed", "match"),
        said("other", "harmful"),
        said("a", "harmful", model="another"),
    ]
    assert one(tmp_path, verdicts).verdicts == [
        "builtin: harmful (0.97)", "guard: unscored (why)", "refusal: refusal phrase", "not parsed",
    ]  # fmt: skip
    broken = [said("a", "broken", "coherence", score=-9.0)]
    assert one(tmp_path, broken).verdicts == ["coherence: broken (why)"]


def test_the_sample_is_seeded_and_the_same_for_all_models(tmp_path: Path) -> None:
    keys = [f"k{at}" for at in range(50)]
    write(tmp_path, [row(key, model=model) for model in ("m", "o") for key in keys], [])

    def prompts(seed: int) -> list[str]:
        [found] = sample(tmp_path, ["m", "o"], {"s": False}, seed)
        assert found.total == 50
        assert all([a.model for a in e.answers] == ["m", "o"] for e in found.examples)
        return [example.prompt for example in found.examples]

    assert len(prompts(0)) == 5
    assert prompts(0) == prompts(0)
    assert prompts(0) != prompts(1)


def test_a_long_answer_is_cut_and_said_to_be(tmp_path: Path) -> None:
    answer = one(tmp_path, [], answer="x" * 100_000)
    assert (len(answer.text), answer.cut) == (1500, 98_500)


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path, [row("a")], [])
    with (tmp_path / "outputs.jsonl").open("ab") as file:
        file.write(b'[1]\n\xff\xfe\n{"model": "m", "set": "s", "id": "b", "answ')
    [found] = sample(tmp_path, ["m"], {"s": False}, seed=0)
    assert found.total == 1


def test_without_texts_there_is_no_sample(tmp_path: Path) -> None:
    assert sample(tmp_path, ["m"], {"s": True}, seed=0) == []
    redacted = {key: value for key, value in row("a").items() if key not in {"prompt", "answer"}}
    write(tmp_path, [redacted], [])
    assert sample(tmp_path, ["m"], {"s": True}, seed=0) == []
