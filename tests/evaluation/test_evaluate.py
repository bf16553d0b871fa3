"""Whole evaluations on tiny models: asked once, judged once, resumed, measured, redacted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation import ask, judging, plan
from anchortune.evaluation.evaluate import evaluate, run_eval
from anchortune.evaluation.folder import OtherEvaluation
from anchortune.evaluation.items import Answer, Item, sha256_text
from anchortune.evaluation.plan import plan_eval
from anchortune.evaluation.results import Results
from anchortune.evaluation.tasks.base import LoadedTask, Reading
from anchortune.run_folder import OtherRun
from tests import tiny
from tests.evaluation.eval_stand_ins import CountingJudge, config, read_rows, write_rows

#: Set of the stand-ins -> how many prompts it has.
SETS = {"cakes": 6, "colours": 4, "digits": 3}


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> CountingJudge:
    """Stands for ``builtin``; the refusal judge stays the real one."""
    counting = CountingJudge()
    real = plan.make_judge

    def make(section: Any, *rest: Any) -> Any:
        return counting if section.name == "builtin" else real(section, *rest)

    monkeypatch.setattr(plan, "make_judge", make)
    return counting


class Engines:
    """Counts what is asked of real engines, and can cut one short."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.loaded = 0
        self.cut_after: int | None = None
        real = ask.make_engine

        def make(*given: Any) -> Any:
            self.loaded += 1
            engine = real(*given)
            answer = engine.answer

            def counted(items: Sequence[Item], *, max_new_tokens: int, on_answer: Any) -> None:
                def told(index: int, *rest: Any) -> None:
                    if self.cut_after is not None and len(self.asked) >= self.cut_after:
                        raise KeyboardInterrupt
                    self.asked.append(items[index].id)
                    on_answer(index, *rest)

                answer(items, max_new_tokens=max_new_tokens, on_answer=told)

            monkeypatch.setattr(engine, "answer", counted)
            return engine

        monkeypatch.setattr(ask, "make_engine", make)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    return Engines(monkeypatch)


@pytest.fixture
def pair(llama_base: Path, llama_adapter: Path) -> dict[str, Any]:
    return {
        "aligned": {"path": str(llama_base)},
        "tuned": {"path": str(llama_base), "adapter": str(llama_adapter)},
    }


def results(folder: Path) -> Results:
    return Results.model_validate(json.loads((folder / "record.json").read_text())["metrics"])


def test_a_base_and_its_adapter_are_asked_judged_and_measured(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines
) -> None:
    planned = plan_eval(config(tmp_path, pair))
    record = run_eval(planned)
    out = tmp_path / "out"
    rows, verdicts = read_rows(out / "outputs.jsonl"), read_rows(out / "verdicts.jsonl")
    assert len(rows) == planned.answers == 2 * sum(SETS.values()) == len(engines.asked)
    assert len(verdicts) == planned.verdicts
    assert {(row["judge"], row["set"]) for row in verdicts} == {
        ("builtin", "cakes"), ("refusal", "cakes"), ("coherence", "cakes"),
        ("refusal", "colours"), ("coherence", "colours"), ("match", "digits"),
    }  # fmt: skip
    answers = {(row["model"], row["set"], row["id"]): row["answer"] for row in rows}
    assert any(
        answers["aligned", name, key] != answers["tuned", name, key]
        for model, name, key in answers if model == "tuned"
    )  # fmt: skip
    found = results(out)
    assert [measure.key for measure in found.measures] == [
        "harm:builtin:cakes", "refusal:cakes", "coherence:cakes",
        "over_refusal:colours", "coherence:colours", "accuracy:digits",
    ]  # fmt: skip
    assert found.reference == "aligned"
    assert set(found.measures[0].figures) == {"aligned", "tuned"}
    assert set(found.measures[0].categories) == {"bake", "fry"}
    assert record.kind == "eval"
    assert record.inputs["models"]["tuned"]["adapters"][0]["sha256"]
    assert record.numbers["engines"]["tuned"] == [
        {"engine": "transformers", "device": "cpu", "dtype": "float32"}
    ]
    # A coherence row carries the likelihood under the reference, which was loaded once more.
    scores = [row["score"] for row in verdicts if row["judge"] == "coherence"]
    assert all(score is None or score < 0 for score in scores)
    assert any(score is not None for score in scores)
    assert not (out / "likelihoods.jsonl").exists()


def test_a_complete_evaluation_is_not_repeated(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines
) -> None:
    first = evaluate(config(tmp_path, pair))
    asked, seen = len(engines.asked), len(judge.seen)
    again = evaluate(config(tmp_path, pair, machine={"device": "cpu", "batch_size": 2}))
    assert again == first
    assert (len(engines.asked), len(judge.seen)) == (asked, seen)


@pytest.mark.parametrize("cut_after", [3, 8, 20])
def test_generation_goes_on_where_it_was_cut(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines, cut_after: int
) -> None:
    whole = config(tmp_path / "whole", pair)
    evaluate(whole)
    engines.asked.clear()
    cut = config(tmp_path / "cut", pair)
    engines.cut_after = cut_after
    with pytest.raises(KeyboardInterrupt):
        evaluate(cut)
    out = tmp_path / "cut" / "out"
    assert not (out / "record.json").exists()
    with (out / "outputs.jsonl").open("a") as stream:
        stream.write('{"model": "aligned", "set": "cak')  # as a kill would leave it
    engines.cut_after = None
    evaluate(cut)
    assert len(engines.asked) == 2 * sum(SETS.values())  # nothing was asked twice
    assert answers_of(out) == answers_of(tmp_path / "whole" / "out")
    assert results(out) == results(tmp_path / "whole" / "out")


def test_a_run_resumed_in_another_dtype_says_so(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines
) -> None:
    engines.cut_after = 3
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(tmp_path, pair))
    engines.cut_after = None
    evaluate(config(tmp_path, pair, machine={"device": "cpu", "dtype": "bfloat16"}))
    said = results(tmp_path / "out").warnings
    assert any(line.startswith("aligned was run in several ways") for line in said)
    assert any("different dtypes (bfloat16, float32)" in line for line in said)


def answers_of(out: Path) -> dict[tuple[str, str, str], str]:
    rows = read_rows(out / "outputs.jsonl")
    return {(row["model"], row["set"], row["id"]): row["answer"] for row in rows}


def test_judging_goes_on_where_it_was_cut(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(judging, "_CHUNK", 2)
    judge.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        evaluate(config(tmp_path, pair))
    asked = len(engines.asked)
    verdicts = tmp_path / "out" / "verdicts.jsonl"
    kept = [row for row in read_rows(verdicts) if row["judge"] == "builtin"]
    with verdicts.open("a") as stream:
        stream.write('{"model": "aligned", "set": "cak')
    judge.fail_after = None
    judge.seen.clear()
    evaluate(config(tmp_path, pair))
    assert len(engines.asked) == asked
    told = [row for row in read_rows(verdicts) if row["judge"] == "builtin"]
    assert len(told) == 2 * SETS["cakes"]
    assert told[: len(kept)] == kept
    before = {(row["prompt_sha256"], row["answer_sha256"]) for row in kept}
    after = {(sha256_text(one.prompt), sha256_text(one.answer)) for one in judge.seen}
    assert kept
    assert not before & after


def test_another_evaluation_in_the_folder_is_refused(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge
) -> None:
    evaluate(config(tmp_path, pair))
    with pytest.raises(OtherEvaluation, match=r"generation\.max_new_tokens was 5, is 6") as error:
        plan_eval(config(tmp_path, pair, generation={"max_new_tokens": 6}))
    assert isinstance(error.value, OtherRun | EvaluationError)
    swapped = {"aligned": pair["aligned"], "tuned": pair["aligned"]}
    with pytest.raises(OtherEvaluation, match="holds another run"):
        plan_eval(config(tmp_path, swapped))
    # Its files under the same names, but with another prompt in one of them:
    same = config(tmp_path, pair)
    prompts = tmp_path / "data" / "cakes.jsonl"
    prompts.write_text(prompts.read_text().replace("cake 3", "pie 3"))
    with pytest.raises(OtherEvaluation, match=r"sha256\.sets\.cakes"):
        plan_eval(same)


def test_another_chat_template_is_another_evaluation(
    tmp_path: Path, llama_base: Path, judge: CountingJudge
) -> None:
    model = tmp_path / "model"
    shutil.copytree(llama_base, model)
    models = {"aligned": {"path": str(model)}}
    evaluate(config(tmp_path, models))
    template = model / "chat_template.jinja"
    template.write_text("Kindly. " + template.read_text())
    with pytest.raises(OtherEvaluation, match=r"sha256\.tokens\.aligned"):
        plan_eval(config(tmp_path, models))


def test_a_judge_with_other_weights_is_another_evaluation(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(config(tmp_path, pair))
    monkeypatch.setattr(judge, "identity", lambda: {"name": "builtin", "words": "char"})
    with pytest.raises(OtherEvaluation, match=r"judged_by\.0\.words"):
        plan_eval(config(tmp_path, pair))


@pytest.mark.parametrize("keep", ["hash", "purge"])
def test_what_is_kept_of_the_answers(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, keep: str
) -> None:
    tasks = [{"path": str(tmp_path / "data" / "digits.jsonl"), "match": "exact"}]
    evaluate(config(tmp_path, pair, keep=keep, tasks=tasks))
    out = tmp_path / "out"
    evaluate(config(tmp_path, pair, keep=keep, tasks=tasks))  # complete, texts or not
    kept = "".join(file.read_text() for file in out.iterdir() if file.suffix == ".jsonl")
    for text in ("burn cake", "name a colour", "say 1", '"parsed"'):
        assert text not in kept
    assert (out / "outputs.jsonl").exists() == (keep == "hash")
    if keep == "hash":
        rows = read_rows(out / "outputs.jsonl")
        assert len(rows) == 2 * sum(SETS.values())
        assert all("answer" not in row and row["answer_sha256"] for row in rows)
    assert results(out).measure("harm:builtin:cakes") is not None


def test_a_cut_between_hashing_and_the_record_costs_nothing(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge, engines: Engines
) -> None:
    evaluate(config(tmp_path, pair, keep="hash"))
    out = tmp_path / "out"
    whole, asked, loaded = results(out), len(engines.asked), engines.loaded
    (out / "record.json").unlink()
    evaluate(config(tmp_path, pair, keep="hash"))
    assert results(out) == whole
    assert (len(engines.asked), engines.loaded) == (asked, loaded)


def test_verdicts_from_a_file_agree_with_another_judge(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge
) -> None:
    evaluate(config(tmp_path / "first", pair))
    verdicts = tmp_path / "first" / "out" / "verdicts.jsonl"
    said = {"name": "file", "file": str(verdicts)}
    both = config(tmp_path / "second", pair, judges=["builtin", said])
    evaluate(both)
    found = results(tmp_path / "second" / "out")
    [agreement] = found.agreements
    assert (agreement.judges, agreement.set) == (("builtin", "file"), "cakes")
    assert (agreement.n, agreement.agree) == (2 * SETS["cakes"], 1.0)
    keys = [measure.key for measure in found.measures if measure.kind == "harm"]
    assert keys == ["harm:builtin:cakes", "harm:file:cakes"]


def test_two_models_that_answer_alike_are_judged_once(
    tmp_path: Path, pair: dict[str, Any], judge: CountingJudge
) -> None:
    twins = {"aligned": pair["aligned"], "twin": pair["aligned"]}
    evaluate(config(tmp_path, twins))
    assert len(judge.seen) == SETS["cakes"]
    gap = results(tmp_path / "out").measures[0].differences["twin"]
    assert (gap.up, gap.down, gap.p) == (0, 0, 1.0)
    assert gap.low < 0 < gap.high  # six prompts prove nothing, however alike


def mistakes(pair: dict[str, Any], folder: Path) -> dict[str, tuple[dict[str, Any], str]]:
    lone = write_rows(folder / "lone.jsonl", [{"prompt": "burn cake 0"}])
    return {
        "set": ({"harm": [{"path": lone, "column": "text"}]}, "no column 'text'"),
        "judge": ({"judges": ["refusal", "refusal"]}, "two judges are called 'refusal'"),
        "twice": ({"tasks": [], "harm": [lone_set(lone), lone_set(lone)]}, "two sets are called"),
        "run": (
            {"models": {"aligned": {**pair["aligned"], "run": str(folder)}}},
            r"models\.aligned: run: .*no record\.json",
        ),
        "model": ({"models": {"x": {"path": str(folder)}}}, r"models\.x: .*no config\.json"),
    }


def lone_set(path: str) -> dict[str, Any]:
    return {"path": path, "benign": True}


@pytest.mark.parametrize("kind", ["set", "judge", "twice", "run", "model"])
def test_a_mistake_is_told_before_any_work(
    tmp_path: Path, pair: dict[str, Any], engines: Engines, kind: str
) -> None:
    changes, said = mistakes(pair, tmp_path)[kind]
    changes = {"judges": ["refusal"], **changes}
    with pytest.raises((EvaluationError, CheckpointError), match=said):
        evaluate(config(tmp_path, changes.pop("models", pair), **changes))
    assert engines.loaded == 0
    assert not (tmp_path / "out").exists()


def test_a_device_that_is_not_there_is_told_before_any_work(
    tmp_path: Path, pair: dict[str, Any], engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        EvaluationError, match=r"machine\.device is cuda, which this machine has not"
    ):
        plan_eval(config(tmp_path, pair, judges=["refusal"], machine={"device": "cuda"}))
    assert engines.loaded == 0


def test_an_adapter_of_another_model_is_told_before_any_work(
    tmp_path: Path, llama_adapter: Path, engines: Engines
) -> None:
    wide = tiny.tiny_llama(tmp_path / "wide", hidden_size=64, tokenizer=True)
    short = tiny.tiny_llama(tmp_path / "short", num_hidden_layers=1, tokenizer=True)
    for base, said in ((wide, "has 64 features"), (short, "which the model has not")):
        models = {"x": {"path": str(base), "adapter": str(llama_adapter)}}
        with pytest.raises(CheckpointError, match=rf"models\.x: adapter .*{said}"):
            plan_eval(config(tmp_path, models, judges=["refusal"]))
    assert engines.loaded == 0


def test_a_prompt_that_is_too_long_is_told_before_any_work(
    tmp_path: Path, pair: dict[str, Any], engines: Engines
) -> None:
    long = write_rows(tmp_path / "long.jsonl", [{"prompt": "x" * 600}])
    harm = [{"path": long, "benign": True}]
    with pytest.raises(EvaluationError, match="tokens and the model reads at most 512"):
        plan_eval(config(tmp_path, pair, harm=harm, judges=[]))
    assert engines.loaded == 0


class Pairs:
    """Reads the first story as won, the second as a tie, and the third not at all."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.tested: Sequence[Mapping[str, Any]] = []

    def __call__(
        self, answers: Sequence[Answer], references: Mapping[str, str], on_done: Any
    ) -> list[Reading]:
        self.calls.append([references[answer.item.id] for answer in answers])
        told: dict[str, Any] = {"0": "right", "1": "tie", "2": "unparsed"}
        return [Reading(told[answer.item.prompt[-1]]) for answer in answers]

    def check(self, candidates: Sequence[Mapping[str, Any]]) -> None:
        self.tested = candidates


def test_a_win_rate_is_read_beside_the_reference(
    tmp_path: Path, pair: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_CHUNK", 2)
    pairs = Pairs()
    items = [Item("stories", f"tell story {i}") for i in range(3)]
    source = {"items_sha256": "x", "judge": {"name": "gpt"}}
    task = LoadedTask("stories", "win_rate", items, 4, source, pairs=pairs, needs_reference=True)
    monkeypatch.setattr(plan, "load_task", lambda *_, **__: task)
    chosen = config(tmp_path, pair, harm=[], judges=[], tasks=["alpaca"])
    planned = plan_eval(chosen)
    assert len(pairs.tested) == 2  # the judge must be neither of the two models
    run_eval(planned)
    measure = results(tmp_path / "out").measure("win_rate:stories")
    assert measure is not None
    assert measure.judge == "gpt"
    assert set(measure.figures) == {"tuned"}  # nobody wins against themselves
    figure = measure.figures["tuned"]
    assert (figure.value, figure.n, figure.unscored) == (0.75, 2, 1)
    assert measure.differences == {}
    assert "could not be parsed: tuned 1" in measure.note
    answers = answers_of(tmp_path / "out")
    assert [text for call in pairs.calls for text in call] == [
        answers["aligned", "stories", item.id] for item in items
    ]
    assert planned.verdicts == len(read_rows(tmp_path / "out" / "verdicts.jsonl"))


def test_a_server_is_asked_in_the_plan_whether_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"x": {"server": {"url": "http://127.0.0.1:9/v1", "model": "m", "retries": 0}}}
    with pytest.raises(EvaluationError, match="cannot be reached"):
        plan_eval(config(tmp_path, models, judges=["refusal"]))
