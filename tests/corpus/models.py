"""Models that run, with one file broken, and rows that leave nothing to learn, for ``train``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.corpus.case import Case, Words, World, deep, jsonl, put
from tests.corpus.writers import LORA, adapter, safetensors

ROWS = jsonl(*({"prompt": f"say {n}", "completion": f"ok {n}"} for n in range(4)))


def trained(
    folder: Path, model: Path, rows: str = ROWS, more: str = "", adapter: str = ""
) -> Words:
    """The dry run of a training."""
    put(folder / "rows.jsonl", rows)
    config = put(
        folder / "c.yaml",
        f"model: {{path: {model}{adapter}}}\ndata: {{path: {folder}/rows.jsonl}}\n"
        f"output: {folder}/out\nmachine: {{device: cpu, dtype: float32}}\n{more}",
    )
    return ["train", config, "--dry-run"]


def _model(name: str, change: Callable[[Path], object], says: str) -> Case:
    def make(folder: Path, world: World) -> Words:
        model = folder / "bad"
        shutil.copytree(world.model, model)
        change(model)
        return trained(folder, model)

    return Case("model", name, make, says)


def _file(file: str, content: bytes | str) -> Callable[[Path], object]:
    return lambda model: put(model / file, content)


def _config(**values: Any) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        path = model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def _template(text: str) -> Callable[[Path], object]:
    return lambda model: put(model / "chat_template.jinja", text)


def _cut(model: Path) -> None:
    path = sorted(model.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-7])


def _without(pattern: str) -> Callable[[Path], object]:
    def change(model: Path) -> None:
        for path in model.glob(pattern):
            path.unlink()

    return change


def _shardless(model: Path) -> None:
    sorted(model.glob("model-*.safetensors"))[0].unlink()


def _elsewhere(model: Path) -> None:
    path = model / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {k: f"../bad/{v}" for k, v in index["weight_map"].items()}
    path.write_text(json.dumps(index))


REFUSES = "the chat template refuses it"
MODELS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "a config that is no JSON",
        _file("config.json", "{"),
        "bad: cannot be loaded",
    ),
    (
        "a config that is a list",
        _file("config.json", "[]"),
        "bad: cannot be loaded",
    ),
    (
        "a config of lists in lists",
        _file("config.json", deep()),
        "bad: cannot be loaded",
    ),
    (
        "a config in UTF-16",
        _file("config.json", "{}".encode("utf-16")),
        "bad: cannot be loaded",
    ),
    ("a config without a kind", _file("config.json", "{}"), "bad: cannot be loaded"),
    ("an unknown kind", _config(model_type="magic"), "bad: cannot be loaded"),
    ("a kind that is a list", _config(model_type=["llama"]), "bad: cannot be loaded"),
    ("a width in words", _config(hidden_size="wide"), "bad: cannot be loaded"),
    ("a width of 0", _config(hidden_size=0), "by its config.json|cannot be loaded"),
    ("a negative width", _config(hidden_size=-32), "bad: cannot be loaded"),
    ("heads that do not divide", _config(num_attention_heads=5, head_dim=None), "bad: "),
    ("a billion layers", _config(num_hidden_layers=10**9), "claims 1000000000 num_hidden_layers"),
    ("layers that are a list", _config(num_hidden_layers=[2]), "bad: cannot be loaded"),
    ("a vocabulary of 0", _config(vocab_size=0), "bad: "),
    ("weights cut short", _cut, "whole safetensors file"),
    ("no weights", _without("*.safetensors*"), "neither model.safetensors nor"),
    ("a shard that is missing", _shardless, "is missing"),
    ("an index out of its folder", _elsewhere, "points out of its folder"),
    ("an index that is no JSON", _file("model.safetensors.index.json", "{"), "as JSON"),
    ("no tokenizer", _without("tokenizer*"), "there is no tokenizer in it"),
    ("a tokenizer that is no JSON", _file("tokenizer.json", "{"), "bad: cannot be loaded"),
    ("a tokenizer that is a list", _file("tokenizer.json", "[]"), "bad: cannot be loaded"),
    ("a tokenizer of lists in lists", _file("tokenizer.json", deep()), "bad: cannot be loaded"),
    (
        "a tokenizer's config that is no JSON",
        _file("tokenizer_config.json", "{"),
        "cannot be loaded",
    ),
    ("a template that is no Jinja", _template("{% for %}"), REFUSES),
    ("a template without its end", _template("{% if true %}x"), REFUSES),
    ("a template that refuses", _template("{{ raise_exception('no\\nway') }}"), f"{REFUSES}.*no"),
    ("a template that divides by 0", _template("{{ 1 / 0 }}"), REFUSES),
    (
        "a template that counts too far",
        _template("{% for i in range(10**9) %}{% endfor %}"),
        REFUSES,
    ),
    (
        "a template that calls itself",
        _template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        REFUSES,
    ),
    (
        "a template that looks behind",
        _template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
        REFUSES,
    ),
    ("a template that imports", _template("{% import 'os' as os %}{{ os }}"), REFUSES),
    ("a template that reads a file", _template("{% include '/etc/passwd' %}"), REFUSES),
    ("a template that changes messages", _template("{{ messages.append(1) }}"), REFUSES),
    ("a template without the answer", _template("hello"), "leaves the answer out"),
]


def _adapted(name: str, make: Callable[[Path, World], Path], says: str) -> Case:
    def words(folder: Path, world: World) -> Words:
        return trained(folder, world.model, adapter=f", adapter: {make(folder / 'a', world)}")

    return Case("model's adapter", name, words, says)


def _copied(change: Callable[[Path], object]) -> Callable[[Path, World], Path]:
    def make(folder: Path, world: World) -> Path:
        shutil.copytree(world.model_adapter, folder)
        change(folder)
        return folder

    return make


ADAPTERS: list[tuple[str, Callable[[Path, World], Path], str]] = [
    ("not there", lambda f, w: f / "gone", "is no folder with"),
    ("a model", lambda f, w: w.model, "has no adapter_config.json"),
    ("cut short", _copied(_cut), "whole safetensors file"),
    ("pickled", _copied(_without("*.safetensors")), "has no adapter_model.safetensors"),
    ("a config that is no JSON", _copied(_file("adapter_config.json", "{")), "as JSON"),
    (
        "a config that hangs",
        _copied(_file("adapter_config.json", json.dumps(LORA | {"target_modules": "(.*)*q_proj"}))),
        "take for ever",
    ),
    (
        "no tensors",
        _copied(_file("adapter_model.safetensors", safetensors({}, b""))),
        "so it does nothing",
    ),
    ("of another model", lambda f, w: adapter(f), "trained on"),
]


def _rows(name: str, rows: str, says: str, more: str = "") -> Case:
    def make(folder: Path, world: World) -> Words:
        return trained(folder, world.model, rows, more)

    return Case("rows to train on", name, make, says)


LONG = jsonl(*({"prompt": "a" * 600, "completion": f"b {n}"} for n in range(4)))
SHORT = "training: {max_length_tokens: 16}\n"


def cases() -> list[Case]:
    """All of them."""
    return [
        *(_model(*row) for row in MODELS),
        *(_adapted(*row) for row in ADAPTERS),
        _rows("no label left after the cut", LONG, "4 x no answer token within 16 tokens", SHORT),
        _rows("a limit of one token", ROWS, "at least 2", "training: {max_length_tokens: 1}\n"),
        _rows(
            "a limit above the model's",
            ROWS,
            "at most 512",
            "training: {max_length_tokens: 9999}\n",
        ),
        _rows(
            "a cue that is nobody's, and no answers",
            jsonl({"prompt": "a", "completion": ""}),
            "empty",
        ),
        _rows("rows of both kinds", ROWS + jsonl({"prompt": "a"}), "1 of 5 rows cannot be used"),
    ]
