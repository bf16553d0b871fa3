"""Our parsers, each as a function of bytes: it takes them, or raises an error of ours.

Any other exception is a finding. `run.py` drives them by coverage with atheris, for minutes;
`test_harnesses.py` with a few hundred mutated seeds each, in seconds.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from anchortune.adapter.compose import plain_factors, read_adapter
from anchortune.anchor.format import read_anchor
from anchortune.checkpoints.adapter import AdapterCheckpoint
from anchortune.checkpoints.adapter_config import read_adapter_config
from anchortune.checkpoints.checkpoint import FolderCheckpoint
from anchortune.checkpoints.gguf_file import GgufCheckpoint
from anchortune.checkpoints.names import natural, pair_names, select
from anchortune.checkpoints.tensor_file import FLOAT_DTYPES, read_header, read_tensor
from anchortune.config import AlignConfig, DataSection, TrainConfig
from anchortune.config_io import dump_yaml, load_config
from anchortune.config_mix import MixSection
from anchortune.data.conversations import load_source
from anchortune.data.rows import read_rows
from anchortune.errors import AnchortuneError, sentence
from anchortune.evaluation.config import EvalConfig
from anchortune.evaluation.judges.file import FileJudge
from anchortune.evaluation.outputs import read_answers, read_outputs
from anchortune.evaluation.tasks.match import choice, exact, number, regex
from anchortune.evaluation.tasks.numbers import find_number, show
from anchortune.jobs.config import JobConfig
from anchortune.jobs.sweep_config import SweepConfig
from anchortune.report.load import read_evaluation
from anchortune.report.runs import read_run
from anchortune.sections import RowsSection
from tests.corpus import writers

Harness = Callable[[bytes], None]
_MEMORY = "/dev/shm"
_FOLDER = Path(
    tempfile.mkdtemp(prefix="fuzz", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)
)
atexit.register(shutil.rmtree, _FOLDER, ignore_errors=True)
#: Divides the parts of an input that are written to different places.
CUT = b"\0\0\0\0"


def ours(harness: Harness) -> Harness:
    """``harness`` with our errors taken as an answer, once they can be shown."""

    def call(data: bytes) -> None:
        try:
            harness(data)
        except AnchortuneError as error:
            told = sentence(error)
            if not told.isprintable() or not told:
                raise ValueError(f"cannot be shown: {told!r}") from error

    return call


def _put(name: str, data: bytes) -> Path:
    path = _FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def _wrapped(data: bytes) -> bytes:
    """Raw bytes of a safetensors file; or, after a mark, header and data with an honest length."""
    if not data.startswith(b"{"):
        return data
    header, _, rest = data.partition(CUT)
    return len(header).to_bytes(8, "little") + header + rest


def safetensors(data: bytes) -> None:
    """A weights file, and each of its tensors."""
    path = _put("a.safetensors", _wrapped(data))
    tensors, _ = read_header(path)
    if sum(info.end - info.begin for info in tensors.values()) > len(data):
        raise ValueError("more bytes than there are")
    for info in tensors.values():
        if info.dtype in FLOAT_DTYPES and tuple(read_tensor(info).value.shape) != info.shape:
            raise ValueError("another shape than its own")


def index(data: bytes) -> None:
    """An index of shards, the names in it, and the modules that are chosen among them."""
    folder = _FOLDER / "index"
    _put("index/model.safetensors.index.json", data)
    if not (folder / "a.safetensors").exists():
        _put("index/a.safetensors", writers.safetensors(*writers.weights(1)))
    checkpoint = FolderCheckpoint("fuzz", folder)
    select(checkpoint, ["q_proj"])


def names(data: bytes) -> None:
    """Names of modules, sorted and paired."""
    mine, _, theirs = data.decode("utf-8", errors="surrogateescape").partition("|")
    both = mine.split("\n"), theirs.split("\n")
    sorted((*both[0], *both[1]), key=natural)
    found = pair_names(*both, ("a", "b"))
    if set(found) != set(both[0]) or set(found.values()) != set(both[1]):
        raise ValueError("paired otherwise than by name")


def gguf(data: bytes) -> None:
    """A GGUF file, and each of its tensors."""
    checkpoint = GgufCheckpoint("fuzz", _put("a.gguf", data))
    for name in checkpoint.tensors:
        if checkpoint.read(name).value.numel() > 1 << 24:
            raise ValueError("more numbers than so few bytes hold")


def adapter(data: bytes) -> None:
    """An adapter's config and, after the cut, its weights; to build from, and to mend."""
    config, _, weights = data.partition(CUT)
    folder = _FOLDER / "adapter"
    _put("adapter/adapter_config.json", config)
    read_adapter_config(folder, "fuzz")
    _put("adapter/adapter_model.safetensors", _wrapped(weights))
    checkpoint = AdapterCheckpoint("fuzz", folder)
    for module in checkpoint.select("all-linear"):
        checkpoint.delta(module, transposed=False)
    plain_factors(*read_adapter(folder))


def anchor(data: bytes) -> None:
    """An anchor's metadata and, after the cut, its other entries and data."""
    metadata, cut, rest = data.partition(CUT)
    if not cut:
        read_anchor(_put("anchor.safetensors", data))
        return
    entries, _, values = rest.partition(CUT)
    told = json.dumps({"anchortune_anchor": metadata.decode("utf-8", errors="replace")})
    header = b'{"__metadata__": ' + told.encode() + (b", " if entries else b"") + entries + b"}"
    read_anchor(_put("anchor.safetensors", _wrapped(header + CUT + values)))


def _rows_file(data: bytes) -> Path:
    """The first letter says which kind of file it is."""
    suffix = {b"c": ".csv", b"j": ".json"}.get(data[:1], ".jsonl")
    return _put(f"rows{suffix}", data[1:])


def rows(data: bytes) -> None:
    """A file of rows, and the conversations in them: none is lost uncounted."""
    path = str(_rows_file(data))
    raw = read_rows(RowsSection(path=path))
    if len(raw.rows) != len(raw.places):
        raise ValueError("rows without their places")
    json.dumps(raw.rows).encode()
    for preference in (False, True):
        section = DataSection(path=path, max_bad_frac=1.0)
        try:
            found, report = load_source(section, 0, preference=preference)
        except AnchortuneError:
            continue
        if len(found) + sum(report.dropped.values()) != len(raw.rows) or len(report.line()) > 9000:
            raise ValueError("rows that nobody counted")


def verdicts(data: bytes) -> None:
    """A file of verdicts, of answers, and our own log of answers."""
    path = _rows_file(data)
    for read in (lambda: FileJudge(str(path)).identity(), lambda: read_answers(path)):
        try:
            read()
        except AnchortuneError as error:
            sentence(error)
    read_outputs(path)


def config(data: bytes) -> None:
    """A config of each command; what is taken is written and read back as the same."""
    path = _put("config.yaml", data)
    for kind in (TrainConfig, AlignConfig, MixSection, EvalConfig, JobConfig, SweepConfig):
        try:
            found: Any = load_config(path, kind)
        except AnchortuneError as error:
            sentence(error)
            continue
        again = load_config(_put("again.yaml", dump_yaml(found).encode()), kind)
        if again != found and "nan" not in repr(found):
            raise ValueError(f"{kind.__name__} is read back as another")
        if isinstance(found, SweepConfig):
            found.cells()


_CHOICE = choice({"0": "negative", "1": "positive", "2": "i", "3": "not positive", "4": "ſtraße"})
_PATTERN = regex(r"answer: (\w+)")


def answers(data: bytes) -> None:
    """What a model may say: a number, a class, a word."""
    text = data.decode("utf-8", errors="surrogateescape")
    value = find_number(text).value
    if value is not None and find_number(show(value)).value != value:
        raise ValueError(f"{show(value)} is read back as another number")
    for reading in (_CHOICE(text, "1"), _PATTERN(text, "x"), exact(text, "x"), number(text, "1")):
        if reading.outcome not in ("right", "wrong", "unparsed"):
            raise ValueError("an outcome that there is none of")


def records(data: bytes) -> None:
    """The record of an evaluation, or of a run of a sweep."""
    path = _put("record/record.json", data)
    try:
        read_run(path)
    except AnchortuneError as error:
        sentence(error)
    read_evaluation(path)


HARNESSES: dict[str, Harness] = {
    harness.__name__: ours(harness)
    for harness in (
        safetensors, index, names, gguf, adapter, anchor, rows, verdicts, config, answers, records
    )
}  # fmt: skip
