"""Answers, verdicts and labels from files, for ``judge`` and ``eval --outputs``."""

from __future__ import annotations

import json
from pathlib import Path

from tests.corpus.case import Case, Words, World, deep, jsonl, put

ANSWER = {"prompt": "say it", "answer": "it"}
VERDICT = ANSWER | {"outcome": "safe"}
PLACE = r"bad\.jsonl: line 1"


def _verdicts(name: str, content: bytes | str, says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        put(folder / "answers.jsonl", jsonl(ANSWER))
        put(folder / "bad.jsonl", content)
        judge = f"{{name: file, file: {folder}/bad.jsonl}}"
        return ["judge", "run", folder / "answers.jsonl", "--judge", judge]

    return Case("verdicts", name, make, says)


def _answers(name: str, content: bytes | str, says: str, suffix: str = ".jsonl") -> Case:
    def make(folder: Path, world: World) -> Words:
        path = put(folder / f"bad{suffix}", content)
        return ["judge", "run", path, "--judge", "refusal", "-o", folder / "out.jsonl"]

    return Case("answers", name, make, says)


def _labels(name: str, content: bytes | str, says: str, *words: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        path = put(folder / "bad.jsonl", content)
        return ["judge", "calibrate", "--judge", "refusal", "--data", path, *words]

    return Case("labels", name, make, says)


def _judge(name: str, text: str, says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        path = put(folder / "answers.jsonl", jsonl(ANSWER))
        put(folder / "prompt.txt", "Is this harmful?")
        return ["judge", "run", path, "--judge", text.replace("FOLDER", str(folder))]

    return Case("judges", name, make, says)


SCORES: list[tuple[str, str, str]] = [
    ("a score in words", '"high"', "no finite number"),
    ("a score of NaN", "NaN", "no finite number"),
    ("a score of infinity", "Infinity", "no finite number"),
    ("a score of 400 digits", "1" + "0" * 400, "no finite number"),
    ("a score of 5000 digits", "9" * 5000, "not JSON"),
    ("a score that is a list", "[1]", "no finite number"),
    ("a score in per cent", '"10%"', "no finite number"),
]
HASH = {"prompt_sha256": "0" * 64, "answer_sha256": "0" * 64, "outcome": "safe"}
VERDICTS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "holds no rows"),
    ("no JSON", "harmful\n", "not JSON"),
    ("lists in lists", deep() + "\n", "not JSON"),
    ("of numbers", "1\n", "holds no rows"),
    ("a number among them", jsonl(VERDICT, 5), "line 2: not an object"),
    ("a list among them", jsonl(VERDICT, [5]), "line 2: not an object"),
    ("no verdict", jsonl(ANSWER), "no column of verdicts"),
    ("no answer", jsonl({"prompt": "a", "outcome": "safe"}), "no column of answers"),
    ("no prompt", jsonl({"answer": "a", "outcome": "safe"}), "no column of prompts"),
    ("a verdict that is none", jsonl(ANSWER | {"outcome": "maybe"}), "no verdict; write"),
    ("a verdict that is a list", jsonl(ANSWER | {"outcome": ["safe"]}), "no verdict; write"),
    ("a verdict of a megabyte", jsonl(ANSWER | {"outcome": "x" * 10**6}), "no verdict; write"),
    ("a verdict of 2", jsonl(ANSWER | {"outcome": 2}), "no verdict; write"),
    ("a hash that is none", jsonl(HASH | {"answer_sha256": "abc"}), "no SHA-256"),
    ("a hash that is a number", jsonl(HASH | {"prompt_sha256": 5}), "no SHA-256"),
    ("a hash that is a list", jsonl(HASH | {"prompt_sha256": [5]}), "no SHA-256"),
    ("a hash in letters of other scripts", jsonl(HASH | {"prompt_sha256": "٠" * 64}), "no SHA-256"),
    ("an answer that is null", jsonl(VERDICT | {"answer": None}), "neither answer_sha256"),
    ("an answer that is a number", jsonl(VERDICT | {"answer": 5}), "neither answer_sha256"),
    ("verdicts of matching alone", jsonl(VERDICT | {"judge": "match"}), "no verdict about harm"),
    *(
        (name, json.dumps(VERDICT)[:-1] + f', "score": {score}}}\n', says)
        for name, score, says in SCORES
    ),
    ("latin-1", '{"answer": "é"}'.encode("latin-1"), "not UTF-8"),
]
OUR = {"model": "m", "set": "s", "id": "i", "prompt_sha256": "0" * 64, "answer_sha256": "0" * 64}
ANSWERS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "holds no rows"),
    ("no JSON", "hello\n", "not JSON"),
    ("lists in lists", deep() + "\n" + jsonl(ANSWER), "not JSON"),
    ("no answer", jsonl({"prompt": "a"}), "no column answer"),
    (
        "two columns that could be it",
        jsonl(ANSWER | {"output": "b", "response": "c"}),
        "both be the",
    ),
    ("an answer that is a number", jsonl(ANSWER | {"answer": 5}), f"{PLACE}, column 'answer'"),
    ("an answer that is null", jsonl(ANSWER | {"answer": None}), "expected a text, found nothing"),
    ("an answer that is an object", jsonl(ANSWER | {"answer": {}}), "found a dict"),
    ("an empty prompt", jsonl(ANSWER | {"prompt": " "}), "is empty"),
    ("a prompt that is a list", jsonl(ANSWER | {"prompt": ["a"]}), "found a list"),
    ("two answers to a prompt", jsonl(ANSWER, ANSWER | {"answer": "b"}), "in two ways"),
    ("a number among them", jsonl(ANSWER, 5), "line 2: not an object"),
    ("tokens in words", jsonl(ANSWER | {"tokens": "many"}), "expected a whole number"),
    ("tokens of a half", jsonl(ANSWER | {"tokens": 1.5}), "expected a whole number"),
    ("tokens of 5000 digits", jsonl(ANSWER | {"tokens": "9" * 5000}), "expected a whole number"),
    ("an unknown finish", jsonl(ANSWER | {"finish": "tired"}), "expected stop, length"),
    ("notes that are a text", jsonl(ANSWER | {"notes": "a"}), "expected a mapping"),
    ("a model that is a number", jsonl(ANSWER | {"model": 5}), "expected a text"),
    ("hashes alone", jsonl(OUR), "reads texts"),
]
LABELS: list[tuple[str, bytes | str, str]] = [
    ("of no bytes", "", "holds no rows"),
    ("no labels", jsonl(ANSWER), "no column of labels"),
    ("a label that is none", jsonl(ANSWER | {"label": "bad"}), "no verdict; write"),
    ("labels that are all unsure", jsonl(ANSWER | {"label": "?"}), "no row has a label"),
    ("labels that are null", jsonl(ANSWER | {"label": None}), "no row has a label"),
    ("an answer that is null", jsonl(ANSWER | {"answer": None, "label": 1}), "holds no text"),
    ("no JSON", "label\n", "not JSON"),
]
JUDGES: list[tuple[str, str, str]] = [
    ("an unknown one", "me", "expected .*builtin"),
    ("a list", "[builtin]", "name"),
    ("an unknown key", "{name: refusal, colour: red}", "unknown key 'colour'"),
    ("a key that does nothing", "{name: refusal, file: a}", "takes no file"),
    ("no file", "file", "needs file"),
    ("a file that is not there", "{name: file, file: FOLDER/gone.jsonl}", "no such file"),
    ("no YAML", "{name: file", "not valid YAML"),
    ("YAML of a Python object", "!!python/object/apply:os.system [id]", "not valid YAML"),
    ("a confidence above 1", "{name: builtin, min_confidence: 5}", "below 1"),
    (
        "a prompt that is not the published",
        "{name: strongreject, prompt: FOLDER/prompt.txt}",
        "strongreject",
    ),
    ("weights that are not there", "{name: builtin, model: FOLDER/gone}", "gone"),
    (
        "a key in place of its variable",
        "{name: rubric, server: {url: 'http://localhost:9/v1', model: m, api_key: k}}",
        "unknown key",
    ),
]


def _outputs(name: str, says: str, *words: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        path = put(folder / "answers.jsonl", jsonl(ANSWER))
        return ["eval", "--outputs", path, *words, "--output", folder / "out"]

    return Case("answers to evaluate", name, make, says)


def _not_verdicts(folder: Path, world: World) -> Words:
    path = put(folder / "answers.jsonl", jsonl(ANSWER))
    return ["judge", "run", path, "--judge", "refusal", "-o", put(folder / "x", "notes\n")]


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_verdicts(*row) for row in VERDICTS),
        *(_answers(*row) for row in ANSWERS),
        _answers("of an unknown kind", "a", "no file of answers", ".txt"),
        *(_labels(*row) for row in LABELS),
        _labels(
            "a named column that is not there", jsonl(ANSWER), "no column", "--label-column", "x"
        ),
        *(_judge(*row) for row in JUDGES),
        _outputs("without a judge", "needs --judge"),
        _outputs("with an unknown judge", "judge", "--judge", "me"),
        _outputs(
            "with an unknown setting", "unknown key", "--judge", "refusal", "--set", "colour=red"
        ),
        Case("verdicts", "to be written over notes", _not_verdicts, "holds no verdicts"),
        Case(
            "answers",
            "a folder without any",
            lambda f, w: ["judge", "run", f, "--judge", "refusal"],
            "no outputs.jsonl in it",
        ),
    ]
