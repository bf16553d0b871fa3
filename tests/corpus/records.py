"""Records that are broken or of another version, for ``gate``, ``table``, ``plot``, ``status``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Words, World, deep, put

FIGURE = {"value": 0.1, "n": 100, "low": 0.05, "high": 0.2, "unscored": 0}
MEASURE = {
    "key": "harm:builtin:s",
    "kind": "harm",
    "set": "s",
    "judge": "builtin",
    "label": "harm",
    "better": "lower",
    "figures": {"a": FIGURE},
}
RESULTS = {
    "format_version": 1,
    "models": {"a": {"path": "a"}},
    "reference": "a",
    "part": "report",
    "measures": [MEASURE],
}
RECORD = {
    "format_version": 1,
    "kind": "eval",
    "created": "2026-01-01T00:00:00+00:00",
    "config": {},
    "seed": 0,
    "inputs": {},
    "outputs": {},
    "numbers": {},
    "timings": {},
    "metrics": RESULTS,
    "versions": {},
    "platform": {},
}
RUN = {
    "format": 1,
    "sweep": "s",
    "digest": "d" * 64,
    "labels": {"defence": "sft"},
    "seed": 0,
    "state": "complete",
    "settings": {},
    "inputs": {},
    "outcomes": [{"measure": "harm", "set": "s", "judge": "builtin", "items": {"q": 1, "r": 0}}],
}


def _gate(name: str, content: Any, says: str, *words: str, code: int = 2) -> Case:
    def make(folder: Path, world: World) -> Words:
        told = content if isinstance(content, bytes | str) else json.dumps(content)
        put(folder / "record.json", told)
        return ["gate", folder, *(words or ("--max-harm", "0.5"))]

    return Case("record to gate", name, make, says, code)


def _with(**values: Any) -> dict[str, Any]:
    return RECORD | values


def _results(**values: Any) -> dict[str, Any]:
    return RECORD | {"metrics": RESULTS | values}


def _figure(**values: Any) -> dict[str, Any]:
    return _results(measures=[MEASURE | {"figures": {"a": FIGURE | values}}])


NOT_RESULTS = "not the results of an evaluation"
GATES: list[tuple[str, Any, str]] = [
    ("of no bytes", "", "not a readable record"),
    ("no JSON", "{", "not a readable record"),
    ("lists in lists", deep(), "not a readable record"),
    ("a number of 5000 digits", f'{{"seed": {"9" * 5000}}}', "not a readable record"),
    ("latin-1", '{"a": "é"}'.encode("latin-1"), "not a readable record"),
    ("UTF-16", json.dumps(RECORD).encode("utf-16"), "not a readable record"),
    ("a list", [], "record format None"),
    ("null", "null", "record format None"),
    ("an empty object", {}, "record format None"),
    ("of version 2", _with(format_version=2), "record format 2"),
    ("of a version that is a text", _with(format_version="1"), "record format 1"),
    ("of a version of a megabyte", _with(format_version="9" * 10**6), "record format 999"),
    ("without its kind", {k: v for k, v in RECORD.items() if k != "kind"}, "not a record"),
    ("an unknown key", _with(colour="red"), "not a record"),
    ("a seed that is a text", _with(seed="one"), "not a record"),
    ("timings in words", _with(timings={"a": "long"}), "not a record"),
    ("of a training", _with(kind="train"), "of kind 'train'"),
    ("of a job", _with(kind="job"), "a whole job's"),
    ("results of version 2", _results(format_version=2), "results of format 2"),
    ("no results", _with(metrics={}), "results of format None"),
    ("results without measures", _results(measures=None), NOT_RESULTS),
    ("measures that are numbers", _results(measures=[1]), NOT_RESULTS),
    ("an unknown kind of measure", _results(measures=[MEASURE | {"kind": "x"}]), NOT_RESULTS),
    ("a figure that is a text", _figure(value="high"), NOT_RESULTS),
    ("a figure of null", _figure(value=None), NOT_RESULTS),
    ("a figure above 1", _figure(value=5), NOT_RESULTS),
    ("a figure of NaN", _figure(high=float("nan")), NOT_RESULTS),
    ("a negative number of answers", _figure(n=-3), NOT_RESULTS),
    ("a number of answers of 400 digits", _figure(n=10**400), NOT_RESULTS),
    ("a number of answers of a half", _figure(n=1.5), NOT_RESULTS),
    ("no models", _results(models={}), "reference|model|record"),
    ("a reference that is no model", _results(reference="b"), "reference|model|'b'"),
    ("no measures", _results(measures=[]), "has no harmful score"),
]


def _table(name: str, content: Any, says: str, *words: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        told = content if isinstance(content, bytes | str) else json.dumps(content)
        return ["table", put(folder / "runs" / "bad.json", told), *words]

    return Case("record to tabulate", name, make, says)


def _run(**values: Any) -> dict[str, Any]:
    return RUN | values


def _items(items: Any) -> dict[str, Any]:
    return RUN | {"outcomes": [RUN["outcomes"][0] | {"items": items}]}  # type: ignore[index]


NO_RUN = "is no record of a run"
TABLES: list[tuple[str, Any, str]] = [
    ("of no bytes", "", NO_RUN),
    ("no JSON", "{", NO_RUN),
    ("lists in lists", deep(), NO_RUN),
    ("latin-1", '{"a": "é"}'.encode("latin-1"), NO_RUN),
    ("a list", [], NO_RUN),
    ("of version 2", _run(format=2), NO_RUN),
    ("no digest", {k: v for k, v in RUN.items() if k != "digest"}, NO_RUN),
    ("an unknown key", _run(colour="red"), NO_RUN),
    ("a seed of a half", _run(seed=1.5), NO_RUN),
    (
        "a seed of 5000 digits",
        json.dumps(RUN).replace('"seed": 0', f'"seed": {"9" * 5000}'),
        NO_RUN,
    ),
    ("an unknown state", _run(state="well"), NO_RUN),
    ("labels that are a list", _run(labels=["sft"]), NO_RUN),
    ("labels that are numbers", _run(labels={"defence": 1}), NO_RUN),
    ("items that are a list", _items([1, 0]), NO_RUN),
    ("an item of 2", _items({"q": 2}), NO_RUN),
    ("an item of NaN", _items({"q": float("nan")}), NO_RUN),
    ("an item in words", _items({"q": "yes"}), NO_RUN),
    ("an item of items", _items({"q": {"q": 1}}), NO_RUN),
    ("an unknown measure", _run(outcomes=[{"measure": "x", "set": "s", "items": {}}]), NO_RUN),
    ("no outcomes", _run(outcomes=[]), "nothing|no |measure"),
    (
        "a digest of a megabyte with other results",
        _run(digest="d" * 10**6, labels={}),
        "defence|axis",
    ),
]


def _two(folder: Path, world: World) -> Words:
    put(folder / "a.json", json.dumps(RUN))
    put(folder / "b.json", json.dumps(_items({"q": 0, "r": 0})))
    return ["table", folder]


def _in_folder(name: str, says: str, *words: str, **files: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        for path, content in files.items():
            put(folder / f"{path}.json", content)
        return [*words, folder]

    return Case("folder", name, make, says)


def _plot(name: str, content: str, says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        return ["plot", put(folder / "basin.json", content), "-o", folder / "out.svg"]

    return Case("basin to draw", name, make, says)


def _words(name: str, says: str, make: Callable[[Path], Words]) -> Case:
    return Case("folder", name, lambda folder, world: make(folder), says)


def _picture(folder: Path) -> Words:
    return ["plot", put(folder / "a.json", json.dumps(RUN)), "-o", folder / "out.txt"]


def _drift(folder: Path) -> Words:
    put(folder / "config.yaml", "model: {path: [\n")
    return ["drift", folder]


def cases() -> list[Case]:
    """All of them."""
    broken = "not a basin|no JSON"
    return [
        *(_gate(*row) for row in GATES),
        _gate("without a limit", RECORD, "has no limit", "--json"),
        _gate("a limit above 1", RECORD, "at most 1", "--max-harm", "5"),
        _gate("a limit of NaN", RECORD, "finite|max_harm", "--max-harm", "nan"),
        _gate(
            "a model that is not in it",
            RECORD,
            "not in the record",
            "--max-harm",
            "1",
            "--model",
            "b",
        ),
        _gate(
            "a judge that is not in it",
            RECORD,
            "gave no harmful score",
            "--max-harm",
            "1",
            "--judge",
            "x",
        ),
        _words("no record", "no record.json in it", lambda f: ["gate", f, "--max-harm", "1"]),
        _words(
            "a record that is not there",
            "no record.json",
            lambda f: ["gate", f / "x", "--max-harm", "1"],
        ),
        *(_table(*row) for row in TABLES),
        _table("an axis that there is none of", RUN, "axis", "--rows", "colour"),
        _table("a value that there is none of", RUN, "No run has", "--where", "defence=asft"),
        _table("a choice that is none", RUN, "write AXIS=VALUE", "--where", "defence"),
        _table("a measure that there is none of", RUN, "measure|speed", "--measure", "speed"),
        _table("a margin that is none", RUN, "write fractions", "--margins", "five"),
        _table("a row to compare with that is not there", RUN, "asft", "--reference", "asft"),
        Case("record to tabulate", "two of one digest that differ", _two, "different outcomes"),
        _in_folder("without records", "holds no record", "table", other='{"a": 1}'),
        _in_folder("with a broken record", NO_RUN, "table", bad="{"),
        _words("no records to draw", "holds no record", lambda f: ["plot", f, "-o", f / "out.svg"]),
        _words("a picture of no kind", r"\.png|txt", _picture),
        _plot("of no bytes", "", broken),
        _plot("no JSON", "{", broken),
        _plot("a list", "[]", broken),
        _plot("lists in lists", deep(), broken),
        _plot("an empty object", "{}", broken),
        _words("a job that is none", "job|no ", lambda f: ["status", f]),
        _words("a job that is not there", "job|no ", lambda f: ["status", f / "gone"]),
        _words("a training that is none", "no training's folder", lambda f: ["drift", f]),
        _words("a training that is not there", "is no folder", lambda f: ["drift", f / "gone"]),
        _words("a training of a broken config", "not valid YAML", _drift),
    ]
