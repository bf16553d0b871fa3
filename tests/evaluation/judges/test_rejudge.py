"""Old answers judged again: folders, files of others, hashes only; resuming; two judges."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import EvaluationError
from anchortune.evaluation.items import Answer, Item, sha256_text
from anchortune.evaluation.judges.base import Exchange, Verdict
from anchortune.evaluation.judges.file import FileJudge
from anchortune.evaluation.judges.refusal import RefusalJudge
from anchortune.evaluation.judges.rejudge import read_old, rejudge
from anchortune.evaluation.outputs import OutputLog, redact


class Longer:
    """Calls an answer harmful that is longer than so many characters, empty ones unscored."""

    measure = "harmful score"
    indicative = False

    def __init__(self, name: str, than: int) -> None:
        self.name, self.than = name, than
        self.asked: list[Exchange] = []

    def identity(self) -> dict[str, Any]:
        return {"name": self.name}

    def judge(
        self, exchanges: Sequence[Exchange], on_done: Callable[[int], None] | None = None
    ) -> list[Verdict]:
        self.asked += exchanges
        return [
            Verdict("harmful" if len(e.answer) > self.than else "safe", score=0.5)
            if e.answer
            else Verdict("unscored", "empty")
            for e in exchanges
        ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two models' answers to one set, one of them wrapped, and one answer to a task."""
    with OutputLog(tmp_path / "outputs.jsonl") as log:
        for model, answers in (("old", ["I can't.", "abcdef", ""]), ("new", ["abcdef", "ab", "a"])):
            for number, text in enumerate(answers):
                item = Item("advbench", f"wrapped p{number}", goal=f"p{number}")
                log.append(Answer(model, item, text))
        log.append(Answer("old", Item("sst2", "good?", target="positive"), "positive"))
    return tmp_path


def test_an_old_folder_is_judged_by_two_judges(folder: Path) -> None:
    old = read_old(folder)
    assert (len(old.rows), old.tasks, old.hashed, old.models) == (6, 1, False, [])
    three, seven = Longer("three", 3), Longer("seven", 7)
    judges: list[Any] = [three, seven, RefusalJudge()]
    found, both = rejudge(old, judges)
    assert judges == []  # let go of one by one
    table = {(line.model, line.judge): line for line in found}
    assert [(line.model, line.judge) for line in found] == [
        ("old", "three"), ("old", "seven"), ("old", "refusal"),
        ("new", "three"), ("new", "seven"), ("new", "refusal"),
    ]  # fmt: skip
    first = table["old", "three"]
    assert first.figure is not None
    assert (first.figure.value, first.figure.n, first.figure.unscored) == (1.0, 2, 1)
    assert first.reasons == {"empty": 1}
    second = table["new", "three"].figure
    assert second is not None
    assert second.value == pytest.approx(1 / 3)
    refused = table["old", "refusal"]
    assert refused.measure == "refusal rate"
    assert refused.figure is not None
    assert (refused.figure.value, refused.figure.n) == (pytest.approx(1 / 3), 3)
    [agreement] = both  # a refusal is no verdict of harm
    assert (agreement.judges, agreement.set, agreement.n) == (("three", "seven"), "advbench", 5)
    assert agreement.agree == pytest.approx(3 / 5)
    assert {e.prompt for e in three.asked} == {"p0", "p1", "p2"}  # the goals


def test_verdicts_are_written_and_not_asked_for_twice(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "verdicts.jsonl"
    path.parent.mkdir()
    first = Longer("three", 3)
    found, _ = rejudge(read_old(folder), [first], path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 6
    assert lines[0]["judge"] == "three"
    assert {line["prompt_sha256"] for line in lines} == {sha256_text(f"p{i}") for i in range(3)}
    path.write_text("\n".join(path.read_text().splitlines()[:4]) + '\n{"model": "cut')
    again = Longer("three", 3)
    resumed, _ = rejudge(read_old(folder), [again], path)
    assert resumed == found
    assert len(again.asked) == 2
    assert len(path.read_text().splitlines()) == 6


def test_only_the_file_judge_can_look_up_hashes(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "v" / "verdicts.jsonl"
    path.parent.mkdir()
    rejudge(read_old(folder), [Longer("three", 3)], path)
    redact(folder / "outputs.jsonl", "hash")
    old = read_old(folder)
    assert old.hashed
    with pytest.raises(EvaluationError, match=r"holds hashes only .* and three reads texts"):
        rejudge(old, [Longer("three", 3)])
    found, _ = rejudge(old, [FileJudge(str(path))])
    assert [line.figure.n for line in found if line.figure is not None] == [2, 3]


def test_answers_made_elsewhere_are_judged_too(tmp_path: Path) -> None:
    path = tmp_path / "theirs.csv"
    path.write_text("question,response\np,abcdef\nq,a\n", encoding="utf-8")
    found, both = rejudge(read_old(path), [Longer("three", 3)])
    [line] = found
    assert (line.model, line.set, line.answers) == ("theirs", "theirs", 2)
    assert both == []
    lines = tmp_path / "theirs.jsonl"
    lines.write_text('{"prompt": "p", "answer": "abcdef"}\n', encoding="utf-8")
    assert rejudge(read_old(lines), [Longer("three", 3)])[0][0].answers == 1


def test_sets_can_be_picked(folder: Path) -> None:
    assert len(read_old(folder, ["advbench"]).rows) == 6
    with pytest.raises(EvaluationError, match="no set 'advbenhc'; it has advbench"):
        read_old(folder, ["advbenhc"])


def test_models_and_tasks_are_known_from_the_record(folder: Path) -> None:
    models = {"old": {"path": "m", "sha256": "1"}, "new": {}}
    measures = [{"kind": "harm", "set": "advbench"}, {"kind": "accuracy", "set": "sst2"}]
    record = {"metrics": {"models": models, "measures": measures}}
    (folder / "record.json").write_text(json.dumps(record))
    assert read_old(folder).models == [{"path": "m", "sha256": "1"}, {}]
    redact(folder / "outputs.jsonl", "hash")  # takes the target away as well
    assert (len(read_old(folder).rows), read_old(folder).tasks) == (6, 1)
    (folder / "record.json").write_text("[]")
    assert read_old(folder).models == []


def test_what_cannot_be_judged_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="the judge three is given twice"):
        rejudge(read_old(folder), [Longer("three", 3), Longer("three", 3)])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(EvaluationError, match=r"no outputs\.jsonl in it"):
        read_old(empty)
    with pytest.raises(EvaluationError, match="no file of answers"):
        read_old(tmp_path / "none.jsonl")
    tasks = tmp_path / "tasks" / "outputs.jsonl"
    with OutputLog(tasks) as log:
        log.append(Answer("m", Item("sst2", "good?", target="positive"), "positive"))
    with pytest.raises(EvaluationError, match="no answer in it that a judge could look at"):
        read_old(tasks)


def test_verdicts_of_another_judge_of_the_same_name_do_not_count(
    folder: Path, tmp_path: Path
) -> None:
    class Other(Longer):
        def identity(self) -> dict[str, Any]:
            return {"name": self.name, "model": "another"}

    path = tmp_path / "again.jsonl"
    rejudge(read_old(folder), [Longer("guard", 3)], path)
    other = Other("guard", 1)
    found, _ = rejudge(read_old(folder), [other], path)
    assert len(other.asked) == 6
    assert [line.figure.value for line in found if line.figure] == [1.0, pytest.approx(2 / 3)]
    again = Other("guard", 1)
    assert rejudge(read_old(folder), [again], path)[0] == found
    assert again.asked == []


def test_the_mark_of_an_indicative_judge_travels_with_its_verdicts(
    folder: Path, tmp_path: Path
) -> None:
    class Indicative(Longer):
        indicative = True

    path = tmp_path / "again.jsonl"
    found, _ = rejudge(read_old(folder), [Indicative("builtin", 3)], path)
    assert all(line.indicative for line in found)
    judge = FileJudge(str(path))
    assert judge.indicative
    assert judge.identity()["indicative_judges"] == ["builtin"]
    found, _ = rejudge(read_old(folder), [judge])
    assert all(line.indicative for line in found)
    rejudge(read_old(folder), [Longer("builtin", 3)], tmp_path / "sure.jsonl")
    assert not FileJudge(str(tmp_path / "sure.jsonl")).indicative


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("outputs.jsonl", None, "holds the answers themselves"),
        ("verdicts.jsonl", None, "belongs to an evaluation"),
        ("notes.txt", "one line, no end", "holds no verdicts"),
        ("other.jsonl", '{"model": "m", "set": "s", "id": "i"}\n', "holds no verdicts"),
    ],
)
def test_verdicts_are_not_written_into_other_files(
    folder: Path, name: str, text: str | None, said: str
) -> None:
    (folder / "identity.json").write_text("{}")
    target = folder / name
    if text is not None:
        target.write_text(text)
    elif not target.exists():
        target.write_text("")
    before = target.read_bytes()
    judge = Longer("three", 3)
    with pytest.raises(EvaluationError, match=said):
        rejudge(read_old(folder), [judge], target)
    assert target.read_bytes() == before
    assert judge.asked == []
