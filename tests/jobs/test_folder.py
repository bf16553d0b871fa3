"""A job's folder: whose it is, what is moved aside, and that nothing is ever half taken away."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anchortune.errors import JobError
from anchortune.jobs.folder import JobFolder, StepState, count_lines, digest_of


def test_a_folder_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(JobError, match="holds files that are no job's"):
        JobFolder(tmp_path).check()
    with pytest.raises(JobError, match="is a file; name a folder"):
        JobFolder(tmp_path / "mine.txt").check()
    with pytest.raises(JobError, match=r"cannot be written: .*mine.txt is no folder"):
        JobFolder(tmp_path / "mine.txt" / "job").check()
    folder = JobFolder(tmp_path / "new")
    folder.check()
    folder.claim()
    (folder.path / "more.txt").write_text("")
    folder.check()


def test_states_of_steps(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert folder.done("anchor") is None
    state = StepState(digest_of({"a": 1}), {"sha256": "x"}, "2026-01-01T00:00:00+00:00", 1.5)
    folder.finish("anchor", state)
    assert folder.done("anchor") == state
    (folder.steps / "anchor.json").write_text("{")
    assert folder.done("anchor") is None


def test_what_is_moved_aside_is_kept_under_a_number(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert folder.set_aside(folder.eval) is None
    for number in (1, 2):
        folder.eval.mkdir()
        (folder.eval / "x").write_text(str(number))
        place = folder.set_aside(folder.eval)
        assert place is not None
        assert place.name == f"eval-{number}"
        assert (place / "x").read_text() == str(number)
    assert not folder.eval.exists()


def test_withdrawing_takes_all_of_it_and_clears_what_a_kill_left(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    left = (".withdrawn.x", ".withdrawn.adapter/y", ".adapter.abc.part", ".model.abc.part")
    for name in ("adapter", "adapter-on-base", "rejected/adapter", *left, "train/asft"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "record.json").write_text("{}")
    assert folder.withdraw()
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert not folder.withdraw()


def test_a_full_disk_keeps_nothing_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobFolder(tmp_path)
    (tmp_path / "adapter").mkdir()

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "mkdir", full)
    assert folder.withdraw()
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_only_whole_lines_count(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("a\nb\nc")
    assert count_lines(tmp_path / "x") == 2
    assert count_lines(tmp_path / "none") == 0
