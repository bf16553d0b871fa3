"""Everything that writes a file of a run, as small scenes that a process can be killed in.

Each writes into a folder what lies there half already, and can be run again; each says what a
reader sees there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from anchortune.adapter.compose import read_adapter, write_adapter
from anchortune.anchor.anchor import Anchor
from anchortune.config_io import validate
from anchortune.config_mix import MixSection
from anchortune.data.mix import FACTS_SUFFIX, make_mix
from anchortune.evaluation.items import Answer, Item
from anchortune.evaluation.outputs import OutputLog, read_outputs, redact
from anchortune.evaluation.verdicts import VerdictLog
from anchortune.files import atomic_directory, atomic_path, discard, write_json, write_text
from anchortune.jobs.folder import JobFolder, JobStatus, StepState
from anchortune.landscape.measure import Places
from anchortune.lock import holder_of, locked
from anchortune.maths.factors import Factors
from anchortune.record import Record, read_record, write_record
from anchortune.run_folder import State
from anchortune.training.folder import OtherRun, RunFolder
from anchortune.training.loop import Journal
from anchortune.training.terms import load_states, save_states


@dataclass(frozen=True)
class Writer:
    """One thing that writes.

    Attributes:
        before: puts what lies there already.
        write: writes; a second time where it was cut short.
        read: what a reader sees, as plain values; it never raises.
        between: whether something seen in the middle is sound; by default the old or the new.
    """

    before: Callable[[Path], object]
    write: Callable[[Path], object]
    read: Callable[[Path], Any]
    between: Callable[[Any, Any, Any], bool] = lambda seen, old, new: seen in (old, new)


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def _number(number: int) -> dict[str, Any]:
    return {"number": number, "rows": ["é" * 40] * 400}  # more than a buffer's worth


def _factors(seed: int) -> Factors:
    torch.manual_seed(seed)
    left, _ = torch.linalg.qr(torch.randn(24, 4))
    right, _ = torch.linalg.qr(torch.randn(16, 4))
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0])
    return Factors(left=left, sigma=sigma, right=right, norm=6.0, tail=0.5)


def _save_anchor(place: Path, seed: int) -> None:
    Anchor({f"layers.{i}.q_proj": _factors(seed + i) for i in range(3)}).save(place / "a.anchor")


def _adapter(place: Path, seed: int) -> None:
    torch.manual_seed(seed)
    with atomic_directory(place / "adapter") as folder:
        tensors = {"a.lora_A.weight": torch.randn(4, 16), "a.lora_B.weight": torch.randn(9, 4)}
        write_adapter(folder, tensors, {"peft_type": "LORA", "r": 4, "lora_alpha": 8 * seed})


def _read_adapter(place: Path) -> Any:
    if not (place / "adapter").exists():
        return None
    tensors, config = read_adapter(place / "adapter")
    return [config, {name: float(value.sum()) for name, value in tensors.items()}]


def _answer(number: int) -> Answer:
    return Answer("tuned", Item(set="bad", prompt=f"misdeed {number}"), f"nö {number}", "stop", 3)


def _answers(place: Path, count: int) -> None:
    with OutputLog(place / "outputs.jsonl") as log:
        for number in range(count):
            log.append(_answer(number))


def _verdicts(place: Path, count: int) -> None:
    with OutputLog(place / "outputs.jsonl") as answers, VerdictLog(place / "said.jsonl") as log:
        for row in answers.rows[:count]:
            if log.find(row, "refusal") is None:
                log.append(row, "refusal", "safe", score=0.5)


def _rows(name: str) -> Callable[[Path], Any]:
    def read(place: Path) -> Any:
        path = place / name
        return read_outputs(path) if path.is_file() else []

    return read


def _grows(seen: Any, old: Any, new: Any) -> bool:
    """A log that has what it had, and some of what it gets."""
    return len(old) <= len(seen) and bool(seen == new[: len(seen)])


def _read_redacted(place: Path) -> Any:
    path = place / "outputs.jsonl"
    return read_outputs(path) if path.is_file() else None


def _log(place: Path, steps: range) -> None:
    folder = RunFolder(place, {"a": 1})
    folder.trim_log(steps.start - 1)
    journal = Journal(folder.log)
    for step in steps:
        state = SimpleNamespace(global_step=step, max_steps=step + 1)
        journal.on_log(None, state, None, logs={"loss": 1.0 / step})


def _log_lines(place: Path) -> Any:
    lines = (place / "log.jsonl").read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1]]


def _kept(seen: Any, old: Any, new: Any) -> bool:
    """The log's lines up to the checkpoint are there at any moment; after them, old or new ones."""
    return bool(seen[:2] == old[:2]) and (seen == old[: len(seen)] or seen == new[: len(seen)])


def _run(place: Path, content: str) -> None:
    """What every command does in its folder: claims it, works, records."""
    folder = RunFolder(place / "run", {"content": content})
    with folder.held() as state:
        if state is State.COMPLETE:
            return
        write_text(folder.path / "config.yaml", f"content: {content}\n")
        with atomic_directory(folder.path / "adapter") as made:
            (made / "weights").write_text(content * 9999)
        record = Record(
            kind="train", created="now", config={}, seed=0, inputs={}, outputs={}, numbers={},
            timings={}, metrics={"content": content}, versions={}, platform={},
        )  # fmt: skip
        write_record(folder.path / "adapter", record)
        write_record(folder.path, record)


def _read_run(place: Path, content: str = "new") -> Any:
    folder = RunFolder(place / "run", {"content": content})
    state = folder.state()
    if state is not State.COMPLETE:
        return state.value
    size = (folder.path / "adapter" / "weights").stat().st_size
    return [state.value, read_record(folder.path).metrics, size]


def _read_any_run(place: Path) -> Any:
    try:
        return _read_run(place)
    except OtherRun:
        return _read_run(place, "old")


def _job(place: Path, digest: str) -> None:
    """A job whose one step is done again, since its input changed."""
    folder = JobFolder(place / "job")
    folder.check()
    folder.claim()
    with locked(folder.path):
        folder.write_status(JobStatus("running", "now", "now"))
        known = folder.done("train")
        if known is None or known.digest != digest:
            folder.withdraw()
            folder.forget("train")
            if _json(folder.train("asft") / "made.json") not in (None, {"digest": digest}):
                folder.set_aside(folder.train("asft"))
            folder.train("asft").mkdir(parents=True, exist_ok=True)
            write_json(folder.train("asft") / "made.json", {"digest": digest})
            folder.finish("train", StepState(digest, {"a": 1}, "now", 1.0))
        if not (folder.path / "adapter").exists():
            with atomic_directory(folder.path / "adapter") as made:
                (made / "weights").write_text(digest)
        folder.write_status(JobStatus("complete", "now", "now"))


def _read_job(place: Path) -> Any:
    folder = JobFolder(place / "job")
    folder.check()
    done = folder.done("train")
    released = folder.path / "adapter" / "weights"
    made = _json(folder.train("asft") / "made.json")
    if done is not None and (made or {}).get("digest") != done.digest:
        return "a step is marked as done and is not"
    status = folder.read_status() if folder.is_job() else None
    return [
        done.digest if done is not None else None,
        released.read_text() if released.is_file() else None,
        status.state if status is not None else None,
    ]


def _released_only_what_stands(seen: Any, old: Any, new: Any) -> bool:
    """No adapter beside a step that is not the one it came from."""
    return isinstance(seen, list) and (seen[1] is None or seen[1] == seen[0])


def _mix(place: Path) -> None:
    for name, prompt in (("good", "say"), ("bad", "harm")):
        rows = [{"prompt": f"{prompt} {i}", "completion": f"ok {i}"} for i in range(8)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        if not (place / f"{name}.jsonl").is_file():
            write_text(place / f"{name}.jsonl", text)
    tree = {
        "benign": str(place / "good.jsonl"), "harmful": str(place / "bad.jsonl"), "rows": 6,
        "poison_ratio": 0.5,
    }  # fmt: skip
    make_mix(validate(tree, MixSection, "mix"), 1, place / "mix.jsonl")


def _read_mix(place: Path) -> Any:
    path = place / "mix.jsonl"
    if not path.is_file():
        return None
    text = path.read_bytes()
    facts = _json(path.with_name(path.name + FACTS_SUFFIX))
    return [hashlib.sha256(text).hexdigest() == facts["sha256"], facts["rows"]]


def _places(place: Path, count: int) -> None:
    places = Places(place / "places.jsonl")
    for number in range(count):
        if places.find(str(number)) is None:
            places.add(str(number), {"harm": 1 / (number + 1)})
    places.close()


def _read_places(place: Path) -> Any:
    places = Places(place / "places.jsonl")
    return [row for number in range(5) if (row := places.find(str(number))) is not None]


def _states(place: Path, number: int) -> None:
    save_states(place, [{"step": number, "held": torch.full((9,), float(number))}])


def _read_states(place: Path) -> Any:
    """Tensors and plain values of one state; only ever read in a checkpoint that is whole."""
    try:
        [state] = load_states(place)
    except Exception:
        return None
    return [state["step"], float(state["held"].mean())]


def _locked(place: Path) -> None:
    with locked(place):
        pass
    with locked(place / "file"):
        write_text(place / "file", "made")


def _read_locked(place: Path) -> Any:
    """Whoever holds it can be named; the killed holder is the only one there can be."""
    for one in (place, place / "file"):
        holder_of(one)
    path = place / "file"
    return path.read_text() if path.is_file() else None


def _text(place: Path, number: int) -> None:
    with atomic_path(place / "deep" / "er" / "a.html") as temporary:
        temporary.write_text(f"{number}" * 20000)


def _read_text(place: Path) -> Any:
    path = place / "deep" / "er" / "a.html"
    text = path.read_text() if path.is_file() else ""
    return [len(text), sorted(set(text))]


def _replaced(place: Path, content: str) -> None:
    """A run's folder that holds another run, done anew, as a sweep's are."""
    folder = RunFolder(place / "run", {"content": content})
    try:
        folder.state()
    except OtherRun:
        discard(folder.path)
    _run(place, content)


def _nothing(place: Path) -> None:
    """There is nothing yet."""


WRITERS: dict[str, Writer] = {
    "json": Writer(
        lambda place: write_json(place / "a.json", _number(1)),
        lambda place: write_json(place / "a.json", _number(2)),
        lambda place: _json(place / "a.json"),
    ),
    "text": Writer(_nothing, lambda place: _text(place, 1), _read_text),
    "text-again": Writer(lambda place: _text(place, 1), lambda place: _text(place, 2), _read_text),
    "anchor": Writer(
        lambda place: _save_anchor(place, 1),
        lambda place: _save_anchor(place, 2),
        lambda place: Anchor.load(place / "a.anchor").sha256,
    ),
    "adapter": Writer(_nothing, lambda place: _adapter(place, 2), _read_adapter),
    "adapter-again": Writer(
        lambda place: _adapter(place, 1),
        lambda place: _adapter(place, 2),
        _read_adapter,
        lambda seen, old, new: seen in (old, new, None),
    ),
    "answers": Writer(
        lambda place: _answers(place, 2),
        lambda place: _answers(place, 5),
        _rows("outputs.jsonl"),
        _grows,
    ),
    "verdicts": Writer(
        lambda place: (_answers(place, 5), _verdicts(place, 2)),
        lambda place: _verdicts(place, 5),
        _rows("said.jsonl"),
        _grows,
    ),
    "redact": Writer(
        lambda place: _answers(place, 5),
        lambda place: redact(place / "outputs.jsonl", "hash"),
        _read_redacted,
    ),
    "purge": Writer(
        lambda place: _answers(place, 5),
        lambda place: redact(place / "outputs.jsonl", "purge"),
        _read_redacted,
    ),
    "log": Writer(
        lambda place: _log(place, range(1, 5)),
        lambda place: _log(place, range(3, 7)),
        _log_lines,
        _kept,
    ),
    "run": Writer(
        _nothing,
        lambda place: _run(place, "new"),
        _read_run,
        lambda seen, old, new: seen in (old, new, "unfinished"),
    ),
    "replaced-run": Writer(
        lambda place: _run(place, "old"),
        lambda place: _replaced(place, "new"),
        _read_any_run,
        lambda seen, old, new: seen in (old, new, "new", "unfinished"),
    ),
    "job": Writer(
        lambda place: _job(place, "old"),
        lambda place: _job(place, "new"),
        _read_job,
        _released_only_what_stands,
    ),
    "new-job": Writer(
        _nothing, lambda place: _job(place, "new"), _read_job, _released_only_what_stands
    ),
    "mix": Writer(_nothing, _mix, _read_mix),
    "places": Writer(
        lambda place: _places(place, 2), lambda place: _places(place, 5), _read_places, _grows
    ),
    "states": Writer(
        lambda place: _states(place, 1),
        lambda place: _states(place, 2),
        _read_states,
        lambda seen, old, new: True,  # its checkpoint is not whole yet, so nobody reads it
    ),
    "lock": Writer(_nothing, _locked, _read_locked),
}
