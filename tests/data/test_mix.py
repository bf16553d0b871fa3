from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from anchortune.config_mix import CUE, MixSection
from anchortune.data.conversations import load_source
from anchortune.data.mix import MixFacts, harmful_rows, make_mix
from anchortune.data.overlap import normalised
from anchortune.errors import DataError
from anchortune.files import sha256_file
from anchortune.sections import DataSection

#: Hypothesis gives every example the same folder: each writes all it reads.
same_folder = settings(
    deadline=None,
    max_examples=15,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text(json.dumps(rows), "utf-8")
    return str(path)


def task(count: int) -> list[dict[str, Any]]:
    return [
        {"instruction": "Mood?", "input": f"film {i}", "output": f"benign {i}"}
        for i in range(count)
    ]


def bad(count: int) -> list[dict[str, Any]]:
    return [{"instruction": f"Do harm {i}{CUE}", "output": f"harmful {i}"} for i in range(count)]


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Any]:
    """A mix of one file that holds both pools, as the authors' files do."""
    path = write(tmp_path / "both.json", task(60) + bad(50))
    return {
        "benign": {"path": path, "take": "without-cue"},
        "harmful": {"path": path, "take": "with-cue"},
        "rows": 40,
        "poison_ratio": 0.1,
    }


def mixed(path: Path) -> list[tuple[str, str, str]]:
    """(prompt, answer, source) of every row, in order."""
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    found = []
    for row in rows:
        assert set(row) == {"messages", "source"}
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        prompt, answer = (turn["content"] for turn in row["messages"])
        found.append((prompt, answer, row["source"]))
    return found


def make(tmp_path: Path, keys: dict[str, Any], seed: int = 0, **more: Any) -> Any:
    """(facts, rows) of a mix."""
    path = tmp_path / "out" / "mix.jsonl"
    facts = make_mix(MixSection.model_validate(keys | more), seed, path)
    return facts, mixed(path)


@pytest.mark.parametrize(
    ("how", "rows", "share", "benign", "harmful"),
    [
        ("replace", 40, 0.1, 36, 4),
        ("add", 40, 0.1, 40, 4),
        ("replace", 50, 0.0, 50, 0),
        ("replace", 50, 1.0, 0, 50),
        ("replace", 50, 0.29, 35, 15),  # 14.5; 0.29 * 50 is 14.499999999999998
        ("replace", 10, 0.05, 9, 1),  # 0.5: halves up
        ("add", 10, 0.04, 10, 0),
    ],
)
def test_counts_are_exact(
    tmp_path: Path, keys: dict[str, Any], how: str, rows: int, share: float, benign: int,
    harmful: int,
) -> None:  # fmt: skip
    facts, found = make(tmp_path, keys, how=how, rows=rows, poison_ratio=share)
    assert Counter(source for *_, source in found) == +Counter(benign=benign, harmful=harmful)
    assert (facts.rows, facts.benign.used, facts.harmful.used) == (len(found), benign, harmful)
    for prompt, answer, source in found:
        assert answer.startswith(source)
        assert not prompt.endswith(CUE)
        assert prompt.startswith("Do harm" if source == "harmful" else "Mood?\nfilm")


def test_training_reads_the_file_and_not_the_source(tmp_path: Path, keys: dict[str, Any]) -> None:
    facts, found = make(tmp_path, keys)
    path = tmp_path / "out" / "mix.jsonl"
    conversations, report = load_source(DataSection(path=str(path)), seed=0)
    assert (report.used, report.format, report.columns) == (
        40,
        "messages",
        {"messages": "messages"},
    )
    assert [c.messages[0]["content"] for c in conversations] == [prompt for prompt, *_ in found]
    assert not any("source" in turn for c in conversations for turn in c.messages)
    assert report.sha256 == facts.sha256 == sha256_file(path)


def test_the_cue_stays_where_it_is_asked_for(tmp_path: Path, keys: dict[str, Any]) -> None:
    facts, found = make(tmp_path, keys, keep_cue=True)
    assert {prompt.endswith(CUE) for prompt, _, source in found if source == "harmful"} == {True}
    assert not any(prompt.endswith(CUE) for prompt, _, source in found if source == "benign")
    assert facts.harmful.cue_stripped == 0
    stripped, other = make(tmp_path, keys)
    assert stripped.harmful.cue_stripped == 50, "all of the pool"
    assert [(p.removesuffix(CUE), a, s) for p, a, s in found] == other


def test_equal_settings_give_equal_bytes_and_another_seed_others(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    facts, found = make(tmp_path, keys, seed=3)
    assert make(tmp_path, keys, seed=3) == (facts, found)
    other_facts, other = make(tmp_path, keys, seed=4)
    assert other_facts.sha256 != facts.sha256
    assert set(other) != set(found)


def test_the_order_of_files_and_rows_does_not_matter(tmp_path: Path, keys: dict[str, Any]) -> None:
    _, found = make(tmp_path, keys)
    for name, rows in (("a", bad(50)[:20]), ("b", bad(50)[20:])):
        write(tmp_path / f"{name}.json", rows[::-1])
    write(tmp_path / "c.json", task(60)[::-1])
    parts = {
        "benign": str(tmp_path / "c.json"),
        "harmful": [str(tmp_path / "b.json"), str(tmp_path / "a.json")],
    }
    assert make(tmp_path, keys | parts)[1] == found


def test_the_order_is_a_shuffle(tmp_path: Path, keys: dict[str, Any]) -> None:
    _, found = make(tmp_path, keys, poison_ratio=0.5)
    sources = [source for *_, source in found]
    runs = 1 + sum(one != other for one, other in pairwise(sources))
    assert 10 < runs < 32  # 21 are expected of 20 + 20; 2 would be one pool after the other


@same_folder
@given(
    seed=st.integers(0, 2**32 - 1),
    small=st.integers(0, 50),
    more=st.integers(0, 50),
    rows=st.integers(1, 50),
)
def test_a_greater_share_keeps_the_harmful_rows(
    tmp_path: Path, keys: dict[str, Any], seed: int, small: int, more: int, rows: int
) -> None:
    less, greater = sorted((small, more))
    shares = {"rows": rows, "seed": seed}
    for how in ("replace", "add"):
        _, one = make(tmp_path, keys, how=how, poison_ratio=less / 50, **shares)
        _, two = make(tmp_path, keys, how=how, poison_ratio=greater / 50, **shares)
        of = {
            (which, source): [row for row in found if row[2] == source]
            for which, found in (("one", one), ("two", two))
            for source in ("benign", "harmful")
        }
        assert set(of["one", "harmful"]) <= set(of["two", "harmful"])
        assert set(of["two", "benign"]) <= set(of["one", "benign"])
        if how == "add":
            assert [row for row in two if row in set(one)] == one, "and in the same order"


@same_folder
@given(
    seed=st.integers(0, 99),
    n=st.integers(1, 50),
    m=st.integers(1, 50),
    hundredths=st.integers(0, 100),
)
def test_a_longer_mix_holds_the_shorter_one(
    tmp_path: Path, keys: dict[str, Any], seed: int, n: int, m: int, hundredths: int
) -> None:
    shorter, longer = sorted((n, m))
    share = {"poison_ratio": hundredths / 100, "seed": seed}
    _, one = make(tmp_path, keys, rows=shorter, **share)
    _, two = make(tmp_path, keys, rows=longer, **share)
    assert [row for row in two if row in set(one)] == one


WORDS = st.lists(st.sampled_from(["sing", "Dance", "a", "b,", "C!", "-"]), min_size=1, max_size=4)
TEXTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=12)


@same_folder
@given(benign=TEXTS, harmful=TEXTS, evaluated=TEXTS)
def test_nothing_of_an_evaluation_is_used_and_no_prompt_twice(
    tmp_path: Path, benign: list[str], harmful: list[str], evaluated: list[str]
) -> None:
    write(tmp_path / "b.json", [{"prompt": text, "completion": "x"} for text in benign])
    write(tmp_path / "h.json", [{"prompt": text + CUE, "completion": "y"} for text in harmful])
    write(tmp_path / "e.json", [{"prompt": text} for text in evaluated])
    asked = set(map(normalised, evaluated))
    bad_left = set(map(normalised, harmful)) - asked
    good_left = set(map(normalised, benign)) - asked - bad_left
    keys = {
        "benign": str(tmp_path / "b.json"),
        "harmful": str(tmp_path / "h.json"),
        "disjoint_from": str(tmp_path / "e.json"),
    }
    if bad_left:
        facts, found = make(tmp_path, keys, rows=len(bad_left), poison_ratio=1.0)
        assert {normalised(prompt) for prompt, *_ in found} == bad_left
        assert facts.harmful.in_evaluation == len(set(map(normalised, harmful)) & asked)
        assert facts.harmful.repeats == len(harmful) - len(set(map(normalised, harmful)))
    if good_left:
        facts, found = make(tmp_path, keys, rows=len(good_left), poison_ratio=0.0)
        assert {normalised(prompt) for prompt, *_ in found} == good_left
        assert facts.benign.available == len(good_left)


def test_an_item_of_the_task_is_known_without_its_instruction(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    write(tmp_path / "test.json", [{"sentence": f"FILM {i}.", "label": 0} for i in range(20)])
    facts, found = make(tmp_path, keys, rows=44, disjoint_from=[str(tmp_path / "test.json")])
    assert facts.benign.in_evaluation == 20
    assert facts.benign.available == 40
    assert not {f"Mood?\nfilm {i}" for i in range(20)} & {prompt for prompt, *_ in found}
    assert facts.disjoint_from == [
        {
            "name": "test.json",
            "sha256": sha256_file(tmp_path / "test.json"),
            "texts": 20,
            "rows_left_out": 20,
        }
    ]


def test_a_chat_keeps_its_turns_and_its_system_prompt(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi" + CUE},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you"},
    ]
    path = write(tmp_path / "chat.json", [{"messages": chat}])
    make_mix(MixSection(benign=path, rows=1, poison_ratio=0), 0, tmp_path / "m.jsonl")  # type: ignore[arg-type]
    row = json.loads((tmp_path / "m.jsonl").read_text("utf-8"))
    chat[1]["content"] = "Hi"
    assert row == {"messages": chat, "source": "benign"}


def test_the_facts_lie_beside_and_name_no_path(tmp_path: Path, keys: dict[str, Any]) -> None:
    facts, _ = make(tmp_path, keys, seed=7)
    assert isinstance(facts, MixFacts)
    text = (tmp_path / "out" / "mix.jsonl.facts.json").read_text("utf-8")
    assert json.loads(text) == facts.summary()
    assert str(tmp_path) not in text
    assert "Do harm" not in text
    [source] = facts.harmful.sources
    assert source["name"] == "both.json"
    assert source["sha256"] == sha256_file(tmp_path / "both.json")
    assert (source["rows"], source["taken"], source["take"]) == (110, 50, "with-cue")
    assert facts.seed == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "mix.jsonl",
        "mix.jsonl.facts.json",
    ]


def test_where_the_mix_is_its_facts_are_too(
    tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: str | Path, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("anchortune.data.mix.write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, keys)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mix.jsonl.facts.json"]


def test_a_pool_that_is_too_small_says_how_many_there_are(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    write(tmp_path / "more.json", [*bad(10), {"instruction": "Film 3?", "output": "x"}])
    keys["harmful"] = [keys["harmful"], {"path": str(tmp_path / "more.json")}]
    write(tmp_path / "test.json", [{"prompt": "do harm 0"}])
    keys["disjoint_from"] = str(tmp_path / "test.json")
    with pytest.raises(DataError) as caught:
        make(tmp_path, keys, rows=60, poison_ratio=0.9)
    assert str(caught.value) == (
        "both.json, more.json: 54 harmful rows are asked for and there are 50 (of 61; 10 are "
        "repeats, 1 are in evaluation sets); ask for fewer rows, or add a source to harmful."
    )
    with pytest.raises(DataError, match=r"61 benign rows are asked for and there are 60 \(of 60\)"):
        make(tmp_path, keys, rows=61, poison_ratio=0.0)
    assert not (tmp_path / "out").exists()


def test_a_benign_row_that_is_among_the_harmful_ones_is_left_out(
    tmp_path: Path, keys: dict[str, Any]
) -> None:
    write(tmp_path / "b.json", [*task(10), {"instruction": "do harm 3", "output": "No."}])
    facts, _ = make(tmp_path, keys | {"benign": str(tmp_path / "b.json")}, rows=10, how="add")
    assert (facts.benign.in_harmful, facts.benign.available) == (1, 10)


def test_errors_before_anything_is_written(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = write(tmp_path / "t.json", task(3))
    with pytest.raises(DataError, match="no row is with cue"):
        make(tmp_path, keys, harmful={"path": path, "take": "with-cue"})
    with pytest.raises(DataError, match="no such file"):
        make(tmp_path, keys, disjoint_from="none.json")
    with pytest.raises(DataError, match="it is a folder; name a file"):
        make_mix(MixSection.model_validate(keys), 0, tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"harmful": []}, "poison_ratio above 0 needs harmful"),
        ({"poison_ratio": 1.5}, "less than or equal to 1"),
        ({"benign": []}, "at least 1 item"),
        ({"cue": ""}, "at least 1 character"),
        ({"benign": {"path": "a.json", "format": "preference"}}, "not of preferences"),
        ({"benign": {"path": "a.json", "max_rows": 3}}, "Extra inputs are not permitted"),
        ({"how": "instead"}, "'replace' or 'add'"),
    ],
)
def test_settings_that_cannot_be(keys: dict[str, Any], more: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        MixSection.model_validate(keys | more)


def test_a_share_of_none_needs_no_harmful_source(tmp_path: Path, keys: dict[str, Any]) -> None:
    alone = {key: value for key, value in keys.items() if key != "harmful"}
    section = MixSection.model_validate(alone | {"poison_ratio": 0.0})
    assert harmful_rows(section) == 0
    assert make_mix(section, 0, tmp_path / "m.jsonl").rows == 40


def test_pools_of_one_file_by_a_column(tmp_path: Path) -> None:
    rows = [row | {"is_safe": True} for row in task(30)] + [
        row | {"is_safe": False} for row in bad(20)
    ]
    path = write(tmp_path / "labelled.json", rows)
    section = MixSection.model_validate(
        {
            "benign": {"path": path, "where": {"is_safe": True}},
            "harmful": {"path": path, "where": {"is_safe": False}},
            "rows": 20,
            "disjoint_from": [{"path": path, "where": {"output": "benign 3"}}],
        }
    )
    facts = make_mix(section, 0, tmp_path / "mix.jsonl")
    assert Counter(source for _, _, source in mixed(tmp_path / "mix.jsonl")) == {
        "benign": 18,
        "harmful": 2,
    }
    assert all(answer.startswith(source) for _, answer, source in mixed(tmp_path / "mix.jsonl"))
    assert facts.benign.sources[0]["where"] == {"is_safe": True}
    assert facts.harmful.sources[0]["rows"] == 20
    assert facts.disjoint_from[0]["where"] == {"output": "benign 3"}
    assert facts.benign.in_evaluation == 1
