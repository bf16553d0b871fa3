"""Records: round trip, refusal of what is none, numbers that JSON has not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from anchortune.errors import DataError
from anchortune.record import Record, now, platform_facts, read_record, versions, write_record


def make(**changes) -> Record:
    values = {
        "kind": "train", "created": now(), "config": {"seed": 1}, "seed": 1, "inputs": {},
        "outputs": {}, "numbers": {}, "timings": {"train_s": 1.5}, "metrics": {"loss": 2.0},
        "versions": versions(), "platform": platform_facts(),
    }  # fmt: skip
    return Record(**(values | changes))


def test_round_trip(tmp_path: Path) -> None:
    record = make()
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_numbers_that_json_has_not_become_null(tmp_path: Path) -> None:
    write_record(tmp_path, make(metrics={"loss": float("nan"), "all": [float("inf"), 1.0]}))
    assert read_record(tmp_path).metrics == {"loss": None, "all": [None, 1.0]}


def test_an_incomplete_run_has_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no record\.json in it, so no complete run"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a readable record"),
        ("[]", "record format None, but this version reads 1"),
        ('{"format_version": 2}', "record format 2, but this version reads 1"),
        ('{"format_version": 1}', "not a record"),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_record(tmp_path)


def test_versions_name_what_computes() -> None:
    assert {"anchortune", "python", "torch", "transformers", "peft", "trl"} <= set(versions())
    assert json.dumps(platform_facts())
