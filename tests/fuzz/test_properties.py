"""What holds of our parsers whatever they are given: nothing lost, nothing else raised."""

from __future__ import annotations

import atexit
import csv
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from anchortune.checkpoints.names import matches, natural, pair_names
from anchortune.checkpoints.tensor_file import read_header, read_tensor
from anchortune.config import TrainConfig
from anchortune.config_io import assign, parse_yaml, validate
from anchortune.data.conversations import load_source
from anchortune.data.rows import read_rows
from anchortune.errors import LONGEST, AnchortuneError, CheckpointError, ConfigError, sentence
from anchortune.evaluation.judges.labels import read_label, read_score
from anchortune.evaluation.tasks.match import choice
from anchortune.evaluation.tasks.numbers import find_number, show
from anchortune.jobs.config import JobConfig
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.sections import DataSection, RowsSection
from anchortune.yaml_text import write_yaml
from tests.corpus.writers import floats, header_of, safetensors

TEXTS = st.text(st.characters(exclude_categories=()), max_size=30)  # halves of characters too
WHOLE = st.text(max_size=30)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
TREES = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)
FOLDER = Path(tempfile.mkdtemp())  # of this process alone: examples share their files
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
FEW = settings(max_examples=60)


def put(name: str, data: bytes) -> str:
    (FOLDER / name).write_bytes(data)
    return str(FOLDER / name)


def shown(error: Exception) -> None:
    """Raises where an error cannot be shown."""
    told = sentence(error)
    assert told
    assert told.isprintable()


@given(TEXTS)
def test_every_sentence_can_be_shown(text: str) -> None:
    told = sentence(text * 200)
    assert told.isprintable()
    assert len(told) <= 11 * LONGEST
    told.encode()


@FEW
@given(
    st.dictionaries(
        WHOLE.filter(lambda name: name != "__metadata__"),
        st.lists(st.integers(0, 3), max_size=3),
        max_size=5,
    ),
    st.randoms(),
)
def test_a_header_is_read_as_it_was_written_in_any_order(shapes: Any, order: Any) -> None:
    header, size = header_of(shapes)
    entries = list(header.items())
    order.shuffle(entries)
    path = Path(put("a.safetensors", safetensors(dict(entries), floats(size // 4, 1))))
    found, _ = read_header(path)
    assert {name: list(info.shape) for name, info in found.items()} == shapes
    for info in found.values():
        assert list(read_tensor(info).value.shape) == shapes[info.name]


@FEW
@given(st.integers(0, 400), st.integers(0, 7))
def test_a_header_with_a_bit_turned_is_refused_or_as_long_as_its_data(at: int, bit: int) -> None:
    header, size = header_of({"a.weight": [2, 3], "b": [5]})
    data = bytearray(safetensors(header, floats(size // 4, 1)))
    data[at % (len(data) - size)] ^= 1 << bit
    try:
        found, _ = read_header(Path(put("b.safetensors", bytes(data))))
    except CheckpointError:
        return
    assert sum(info.end - info.begin for info in found.values()) == size


@given(st.lists(TEXTS, max_size=6))
def test_any_names_can_be_sorted_and_matched(names: list[str]) -> None:
    assert sorted(sorted(names), key=natural) == sorted(sorted(names[::-1]), key=natural)
    assert all(matches(name, [name]) for name in names)


@given(st.sets(WHOLE.map("model.".__add__), min_size=1, max_size=5))
def test_a_prefix_pairs_names_whatever_they_are(names: set[str]) -> None:
    bare = {name.removeprefix("model."): name for name in names}
    assume(not set(bare) & names)
    try:
        found = pair_names(sorted(names), sorted(bare), ("a", "b"))
    except CheckpointError:
        return  # two prefixes would do it
    assert all(found[name] == name.removeprefix("model.") for name in names)


@FEW
@example({"0E0": "5e-5"})
@given(TREES)
def test_what_yaml_writes_is_read_as_it_was(tree: Any) -> None:
    text = write_yaml(tree, allow_unicode=False)
    try:
        found = parse_yaml(text, "it")
    except ConfigError as error:  # halves of characters and 4300 digits are no YAML
        shown(error)
        return
    assert found == tree or "nan" in repr(tree)


@FEW
@given(TREES)
def test_any_tree_is_a_config_or_a_sentence(tree: Any) -> None:
    keys = ("model", "data", "training", "lora", "penalty", "defence", "preset", "axes", "skip")
    for kind in (TrainConfig, JobConfig, SweepConfig):
        for key in keys:
            try:
                validate({"output": "o", "model": {"path": "a"}, key: tree}, kind, "it")
            except ConfigError as error:
                shown(error)


@given(TEXTS)
def test_any_assignment_is_made_or_told(item: str) -> None:
    tree: dict[str, Any] = {"a": [{"b": 1}], "c": None}
    for text in (item, f"a.{item}=1", f"c={item}", f"a.0.b.{item}=2"):
        try:
            assign(tree, text)
        except ConfigError as error:
            shown(error)


@FEW
@given(st.lists(st.dictionaries(WHOLE, TREES, min_size=1, max_size=4), min_size=1, max_size=5))
def test_rows_are_read_as_they_were_written_but_for_halves_of_characters(rows: Any) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    found = read_rows(RowsSection(path=put("rows.jsonl", text.encode())))
    assert len(found.rows) == len(rows)
    if "NaN" not in text and "\\ud" not in text:
        assert found.rows == rows
    json.dumps(found.rows, ensure_ascii=False).encode()  # can be written


@FEW
@given(st.lists(st.tuples(WHOLE, WHOLE), min_size=1, max_size=5))
def test_csv_is_read_as_it_was_written(rows: list[tuple[str, str]]) -> None:
    if sys.version_info < (3, 11):  # its csv can neither write nor read NUL
        assume(not any("\0" in text for row in rows for text in row))
    stream = io.StringIO()
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("prompt", "answer"), *rows])
    found = read_rows(RowsSection(path=put("rows.csv", stream.getvalue().encode())))
    assert [(row["prompt"], row["answer"]) for row in found.rows if row] == rows


@FEW
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["prompt", "completion", "messages", "system"]), TREES),
        min_size=1,
        max_size=6,
    ),
    st.booleans(),
)
def test_every_row_is_used_or_counted(rows: Any, preference: bool) -> None:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    section = DataSection(path=put("counted.jsonl", text.encode()), max_bad_frac=1.0)
    try:
        found, report = load_source(section, 0, preference=preference)
    except AnchortuneError as error:
        shown(error)
        return
    assert len(found) + report.dropped.total() == len(rows)
    assert report.used == len(found)


@given(TREES)
def test_any_label_and_score_is_read_or_told(value: Any) -> None:
    for read in (lambda: read_label(value, "label", "it"), lambda: read_score(value, "it")):
        try:
            read()
        except AnchortuneError as error:
            shown(error)


@given(TEXTS)
def test_a_number_is_shown_as_itself(text: str) -> None:
    found = find_number(text + " 7/3 " + text)
    if found.value is not None:
        assert find_number(show(found.value)).value == found.value


@given(st.lists(WHOLE.filter(str.strip), min_size=2, max_size=4, unique_by=str.casefold), TEXTS)
def test_any_words_can_be_classes_and_any_text_an_answer(words: list[str], text: str) -> None:
    match = choice({str(place): word for place, word in enumerate(words)})
    for answer in (text, f"{text} {words[0]}", words[1].swapcase(), words[0] + words[1]):
        assert match(answer, "0").outcome in ("right", "wrong", "unparsed")


@pytest.mark.parametrize("answer", ["posıtive", "POSİTIVE", "poſitive", "positive"])
def test_letters_that_match_without_their_case_are_a_class(answer: str) -> None:
    match = choice({"0": "negative", "1": "positive"})
    assert match(answer, "1").outcome in ("right", "unparsed")
