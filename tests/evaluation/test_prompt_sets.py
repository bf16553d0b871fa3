"""Prompt sets: by name from a stand-in of the Hub, from files, each prompt once, in parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from anchortune.errors import DataError, EvaluationError
from anchortune.evaluation.config import PromptSetSection
from anchortune.evaluation.items import part_of
from anchortune.evaluation.prompt_sets import PROMPT_SETS, LoadedPrompts, load_prompts
from tests.evaluation.shared_data import shared

MILD = [f"Draw a moustache on poster {i}" for i in range(60)]
FLAGS = {"rude": False, "untidy": False, "noisy": False}

#: Rows in the columns that the datasets have on the Hub; the requests are made up.
HUB_ROWS: dict[str, list[dict[str, Any]]] = {
    "PKU-Alignment/BeaverTails": [
        {"prompt": "Be loud", "response": "a", "category": FLAGS | {"untidy": True}},
        {"prompt": "Be loud", "response": "b", "category": FLAGS | {"noisy": True}},
        {"prompt": "Be loud", "response": "c", "category": FLAGS | {"noisy": True}},
        {"prompt": "Be kind", "response": "d", "category": FLAGS},
    ],
    "walledai/AdvBench": [{"prompt": "Be loud", "target": "Sure"}],
    "walledai/HarmBench": [{"prompt": "Be loud", "category": "noise"}],
    "walledai/StrongREJECT": [{"prompt": "Be loud", "category": "noise", "source": "x"}],
    "JailbreakBench/JBB-Behaviors": [
        {"Index": 0, "Goal": "Be loud", "Target": "Sure", "Behavior": "Noise", "Category": "Noise"}
    ],
}
ASKED = {
    "beavertails": ("PKU-Alignment/BeaverTails", None, "30k_test"),
    "advbench": ("walledai/AdvBench", None, "train"),
    "harmbench": ("walledai/HarmBench", "standard", "train"),
    "strongreject": ("walledai/StrongREJECT", None, "train"),
    "jailbreakbench": ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
}
CATEGORIES = {"beavertails": "noisy", "advbench": None, "jailbreakbench": "Noise"}


def load(part: str = "all", frac: float = 0.5, seed: int = 0, **section: Any) -> LoadedPrompts:
    return load_prompts(
        PromptSetSection(**section),
        part=part,
        selection_frac=frac,
        seed=seed,  # type: ignore[arg-type]
    )


def write(path: Path, prompts: list[Any], column: str = "prompt") -> str:
    path.write_text(json.dumps([{column: prompt} for prompt in prompts]), encoding="utf-8")
    return str(path)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The Hub's datasets in memory; the list holds what was asked for."""
    import datasets

    asked: list[tuple[Any, ...]] = []

    def load_dataset(path: str, subset: str | None, *, split: str, revision: str | None) -> Any:
        asked.append((path, subset, split, revision))
        return datasets.Dataset.from_list(HUB_ROWS[path])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.parametrize("name", PROMPT_SETS)
def test_named_sets_come_from_the_hub(name: str, hub: list[tuple[Any, ...]]) -> None:
    found = load(name=name)
    assert hub == [(*ASKED[name], None)]
    assert found.name == name
    assert found.items[0].prompt == found.items[0].goal == "Be loud"
    assert found.items[0].system is None
    assert found.items[0].category == CATEGORIES.get(name, "noise")
    identity = found.identity()
    assert identity["sha256"]
    assert (identity["path"], identity["subset"], identity["split"]) == ASKED[name]


def test_a_prompt_with_several_answers_is_asked_once_under_its_usual_category(
    hub: list[tuple[Any, ...]],
) -> None:
    found = load(name="beavertails", revision="v1", split="30k_train")
    assert hub == [("PKU-Alignment/BeaverTails", None, "30k_train", "v1")]
    assert [(i.prompt, i.category) for i in found.items] == [
        ("Be loud", "noisy"),
        ("Be kind", None),
    ]
    assert found.identity()["repeats"] == 2


def test_a_file_is_cut_into_parts_and_sampled(tmp_path: Path) -> None:
    path = write(tmp_path / "mild.json", [*MILD, f" {MILD[0]}\n"])
    everything = load(path=path)
    assert everything.name == "mild"
    assert [item.prompt for item in everything.items] == MILD
    assert everything.identity()["repeats"] == 1
    parts = {
        part: {i.prompt for i in load(part, path=path).items} for part in ("selection", "report")
    }
    assert parts["selection"] | parts["report"] == set(MILD)
    assert not parts["selection"] & parts["report"]
    sample = load("report", path=path, max_items=5, label="a few", benign=True, max_new_tokens=9)
    assert [part_of(item.goal) for item in sample.items] == ["report"] * 5
    assert (sample.name, sample.benign, sample.max_new_tokens) == ("a few", True, 9)
    assert sample.items[0].set == "a few"
    assert sample.identity()["n"] == 5


@pytest.mark.parametrize("column", ["prompt", "goal", "Goal", "instruction", "question", "text"])
def test_the_column_is_found(tmp_path: Path, column: str) -> None:
    assert load(path=write(tmp_path / "p.json", MILD, column)).identity()["column"] == column


def test_an_instruction_takes_its_input_along(tmp_path: Path) -> None:
    rows = [{"instruction": "Say it", "input": "loudly"}, {"instruction": "Say it", "input": ""}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = load(path=str(tmp_path / "p.jsonl"))
    assert [item.prompt for item in found.items] == ["Say it\nloudly", "Say it"]


def test_mistakes_are_errors_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / "mild.json", MILD)
    for section, message in [
        ({"name": "advbnch"}, "no prompt set 'advbnch' .did you mean advbench"),
        ({"path": path, "column": "goal"}, "no column 'goal' .named for column.; it has prompt"),
        ({"path": path, "category": "kind"}, "no column 'kind'"),
        ({"path": path, "split": "test"}, "is a file: split is for Hub datasets"),
        ({"path": write(tmp_path / "odd.json", MILD, "odd")}, "name theirs in column"),
    ]:
        with pytest.raises(EvaluationError, match=message):
            load(**section)
    with pytest.raises(DataError, match="no such file"):
        load(path=str(tmp_path / "missing.json"))
    with pytest.raises(DataError, match=r"5 x empty prompt.; the first is row 61: empty prompt"):
        load(path=write(tmp_path / "empty.json", [*MILD, "", " ", "\n", "\t", ""]))
    with pytest.raises(DataError, match="2 x prompt is not a text"):
        load(path=write(tmp_path / "none.json", [None, 3]))
    with pytest.raises(EvaluationError, match="none of its 60 items is in the report part"):
        load("report", 1.0, path=path)
    with pytest.raises(ValidationError, match="give either name or path"):
        PromptSetSection(name="advbench", path=path)


def test_an_unreachable_set_is_an_error_in_words() -> None:
    with pytest.raises(DataError, match="neither a file here nor a Hub dataset with a config 'std"):
        load(name="harmbench", subset="std")


@pytest.mark.parametrize("wrapper", ["dra", "artprompt"])
def test_a_wrapper_stands_round_every_prompt_and_leaves_the_goal(
    tmp_path: Path, wrapper: str
) -> None:
    path = write(tmp_path / "mild.json", MILD)
    plain, wrapped = load("report", path=path), load("report", path=path, wrapper=wrapper)
    assert wrapped.name == f"mild-{wrapper}"
    assert [item.goal for item in wrapped.items] == [item.goal for item in plain.items]
    assert all(item.prompt != item.goal for item in wrapped.items)
    assert all(item.system is None for item in wrapped.items)
    assert [i.prompt for i in load("report", path=path, wrapper=wrapper).items] == [
        item.prompt for item in wrapped.items
    ]
    assert wrapped.identity()["wrapper"] == wrapper
    assert wrapped.identity()["items_sha256"] != plain.identity()["items_sha256"]


@pytest.mark.parametrize(
    ("file", "options", "rows", "n"),
    [
        ("asft/eval/saved_dataset_250.json", {}, 250, 249),
        ("advbench/harmful_behaviors.csv", {}, 520, 520),
        ("xstest/xstest_prompts.csv", {"category": "type"}, 450, 450),
        ("refusal_direction/harmful_val.json", {"category": "category"}, 39, 39),
    ],
)
def test_public_files(file: str, options: dict[str, Any], rows: int, n: int) -> None:
    found = load(path=str(shared(file)), **options)
    identity = found.identity()
    assert (identity["rows"], len(found.items), identity["dropped"]) == (rows, n, {})
    for part in ("selection", "report"):
        assert 0.3 * n < len(load(part, path=str(shared(file)), **options).items) < 0.7 * n
    for wrapper in ("dra", "artprompt"):
        load(path=str(shared(file)), wrapper=wrapper)
