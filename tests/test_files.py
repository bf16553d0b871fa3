"""Files whole or absent: what killed writers leave, and how errors of the disk are told."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from anchortune import files
from anchortune.files import (
    atomic_directory,
    atomic_path,
    beside,
    clear_killed,
    discard,
    explained,
    is_temporary,
    naming,
    write_json,
    write_text,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("name", "temporary"),
    [
        (".record.json.k3y_x.part.json", True),
        (".adapter.k3y.part", True),
        (".adapter.k3y.old.part", True),
        (".log.k3y.part", True),
        ("record.json", False),
        ("a.part.json", False),
        (".gitignore", False),
        (".anchor.safetensors.lock.json", False),
    ],
)
def test_what_is_only_being_written_is_told_by_its_name(name: str, temporary: bool) -> None:
    assert is_temporary(name) == temporary


def test_the_next_writer_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / ".a.json.dead.part.json").write_text("{")
    (tmp_path / ".a.json.dead.part").mkdir()
    (tmp_path / ".a.json.dead.part" / "b").touch()
    (tmp_path / ".other.json.dead.part.json").write_text("{")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == [".other.json.dead.part.json", "a.json"]


def test_what_a_living_writer_writes_stays(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "a.txt") as first:
        first.write_text("first")
        write_text(tmp_path / "a.txt", "second")
        assert first.read_text() == "first"
    assert (tmp_path / "a.txt").read_text() == "first"
    assert names(tmp_path) == ["a.txt"]
    with beside(tmp_path / "d") as half:
        (half / "a").touch()
        with atomic_directory(tmp_path / "d") as other:
            (other / "b").touch()
        assert names(half) == ["a"]
    assert names(tmp_path / "d") == ["b"]
    assert names(tmp_path) == ["a.txt", "d"]


def test_a_writer_whose_new_file_was_taken_for_a_killed_ones_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one moment in which it has no lock yet."""
    real, taken = fcntl.flock, []

    def flock(descriptor: int, how: int) -> None:
        if not taken:
            [path] = tmp_path.iterdir()
            taken.append(path)
            path.unlink()
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    write_text(tmp_path / "a.txt", "whole")
    assert taken
    assert (tmp_path / "a.txt").read_text() == "whole"


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_directory(tmp_path / "d") as folder:
        (folder / "a").write_text(f"new {1 / 0}")
    assert (tmp_path / "d" / "a").read_text() == "old"
    assert names(tmp_path) == ["d"]


def test_a_full_disk_is_told_by_the_files_own_name(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        atomic_directory(tmp_path / "d") as folder,
        atomic_path(folder / "weights") as temporary,
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temporary))
    assert explained(caught.value) == (
        f"{tmp_path / 'd'}: No space left on device; free some room there and run the same "
        "command again, which goes on."
    )
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a")


def test_another_files_error_keeps_its_name(tmp_path: Path) -> None:
    with (
        pytest.raises(FileNotFoundError) as caught,
        atomic_path(tmp_path / "a"),
        (tmp_path / "gone").open(),
    ):
        pass
    assert explained(caught.value) == (
        f"{tmp_path / 'gone'}: No such file or directory; put it there, or name another."
    )


def test_what_libraries_say_of_a_failed_write_becomes_the_systems_error(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    said = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(OSError, match="No space left") as caught, naming(tmp_path / "a"):
        raise SafetensorError(said)
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a"))
    for said in (
        "PytorchStreamWriter failed writing file data/0: file write failed",
        "[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0",
    ):
        with pytest.raises(OSError, match=r"No space left|Input/output"), naming(tmp_path):
            raise RuntimeError(said)
    for error in (SafetensorError("Error while deserializing header"), RuntimeError("shape")):
        with pytest.raises(type(error), match=str(error)), naming(tmp_path / "a"):
            raise error


def test_an_error_without_a_number_is_told_by_its_first_line() -> None:
    assert explained(OSError("no such model\nand so on")) == "no such model"


def test_what_cannot_be_listed_or_cleared_does_not_stop_a_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    left = tmp_path / ".a.json.dead.part.json"
    left.write_text("{")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        write_json(tmp_path / "a.json", 1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_remove", refused)  # another user's, in a folder like /tmp
        clear_killed(tmp_path / "a.json")
    assert names(tmp_path) == [left.name, "a.json"]


def test_a_link_to_a_folder_is_discarded_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "checkpoints").symlink_to("scratch")
    discard(tmp_path / "checkpoints")
    assert names(tmp_path) == ["scratch"]
