"""Everything malformed that we could think of, through the command line: exit code 2, one sentence.

The corpus is made by the functions beside this file, the same in every run. A case that fails here
is a traceback, a silent pass, a sentence of several lines or one that does not name the culprit.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from anchortune.anchor.anchor import Anchor
from anchortune.errors import LONGEST
from tests import tiny
from tests.corpus import adapters, anchors, configs, ggufs, judging, models, records, rows, tensors
from tests.corpus.case import Case, World
from tests.corpus.command import call
from tests.corpus.writers import adapter, checkpoint, safetensors, weights

MODULES = (tensors, adapters, anchors, ggufs, rows, configs, judging, records, models)
CASES = [case for module in MODULES for case in module.cases()]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    place = tmp_path_factory.mktemp("world")
    aligned = checkpoint(place / "aligned", safetensors(*weights(1)))
    base = checkpoint(place / "base", safetensors(*weights(2)))
    anchor = place / "anchor.safetensors"
    Anchor.from_checkpoints(aligned, base, rank=4).save(anchor)
    model = tiny.tiny_llama(place / "model", seed=1, tokenizer=True)
    made = tiny.tiny_adapter(place / "model-adapter", model, seed=3)
    return World(base, aligned, adapter(place / "adapter"), anchor, model, made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_it_is_told_in_one_sentence(
    case: Case,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in case.environment.items():
        monkeypatch.setenv(name, value)
    words = [str(word) for word in case.make(tmp_path, world)]
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.chdir(tmp_path)
    code = call(words, monkeypatch)
    told = capsys.readouterr().err.splitlines()
    assert code == case.exit_code, told
    sentences = [line for line in told if line.startswith("anchortune: ")]
    assert len(sentences) == 1, told
    assert sentences[0] == told[-1], "the sentence is the last that is said"
    sentence = sentences[0].removeprefix("anchortune: ")
    assert re.search(case.says, sentence), sentence
    assert sentence.isprintable()
    assert len(sentence) <= 2 * LONGEST
    assert not any("Traceback" in line for line in told)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= before, "it left a file"


def test_the_corpus_is_large_and_names_every_case_once() -> None:
    kinds = Counter(case.kind for case in CASES)
    assert len(CASES) >= 500
    assert len(kinds) >= 15
    assert max(Counter(case.id for case in CASES).values()) == 1


def test_good_things_pass(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside which the bad ones are bad: else a case could be refused for another reason."""
    monkeypatch.chdir(tmp_path)
    good = rows.mixed(rows.put(tmp_path / "a.jsonl", rows.LINE), tmp_path)
    for words in (
        tensors.build(world.aligned, world, tmp_path),
        tensors.build(world.adapter, world, tmp_path),
        ["anchor", "inspect", world.anchor],
        tensors.build(rows.put(tmp_path / "a.gguf", ggufs.GOOD), world, tmp_path),
        [
            "project",
            world.adapter,
            "--method",
            "safe-lora",
            "--anchor",
            world.anchor,
            "-o",
            "mended",
            "--allow-other-start",
        ],
        good,
        models.trained(tmp_path, world.model, adapter=f", adapter: {world.model_adapter}"),
    ):
        assert call([str(word) for word in words], monkeypatch) == 0, words
