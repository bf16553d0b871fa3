"""One job at a time in a folder, and a dead one does not hold it for ever."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from anchortune import lock
from anchortune.errors import JobError
from anchortune.lock import Holder, holder_of, is_alive, locked, refuse_if_held


def held_by(folder: Path, holder: Holder) -> None:
    (folder / lock.LOCK_FILE).write_text(json.dumps(asdict(holder)))


def test_it_is_held_and_let_go(tmp_path: Path) -> None:
    with locked(tmp_path) as dead:
        assert dead is None
        held = holder_of(tmp_path)
        assert held is not None
        assert held.pid == os.getpid()
        assert is_alive(held, tmp_path)
        with pytest.raises(JobError, match=rf"in use \(process {os.getpid()} on .*, since "):
            locked(tmp_path).__enter__()
        assert holder_of(tmp_path) == held
    assert holder_of(tmp_path) is None


def test_it_is_let_go_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    assert holder_of(tmp_path) is None


def test_a_dead_process_is_taken_over_from(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal; from pathlib import Path\n"
        "from anchortune.lock import locked\n"
        f"held = locked(Path({str(tmp_path)!r})); held.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    left = holder_of(tmp_path)
    assert left is not None
    assert not is_alive(left, tmp_path)
    with locked(tmp_path) as dead:
        assert dead == left
        held = holder_of(tmp_path)
        assert held is not None
        assert held.pid == os.getpid()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_process_number_given_out_again_is_not_the_holder(tmp_path: Path) -> None:
    held_by(tmp_path, replace(Holder.here(), process="1"))
    with locked(tmp_path) as dead:
        assert dead is not None


def test_another_machine_is_believed_while_it_touches_the_file(tmp_path: Path) -> None:
    held_by(tmp_path, Holder(1, "elsewhere", "2026-01-01T00:00:00+00:00"))
    with pytest.raises(JobError, match="process 1 on elsewhere"):
        locked(tmp_path).__enter__()
    path = tmp_path / lock.LOCK_FILE
    os.utime(path, (path.stat().st_mtime - 600,) * 2)
    with locked(tmp_path) as dead:
        assert dead is not None


def test_the_holder_touches_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(lock, "_BEAT_S", 0.01)
    path = tmp_path / lock.LOCK_FILE
    with locked(tmp_path):
        os.utime(path, (0, 0))
        for _ in range(6000):
            if path.stat().st_mtime > 0:
                break
            time.sleep(0.01)
        assert path.stat().st_mtime > 0


def test_a_foreign_lock_file_is_named(tmp_path: Path) -> None:
    (tmp_path / lock.LOCK_FILE).write_text("{}")
    with pytest.raises(JobError, match=r"lock\.json is no lock file .* delete it"):
        locked(tmp_path).__enter__()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_killed_process_that_nobody_has_asked_about_is_gone(tmp_path: Path) -> None:
    """In a container without an init, it stays a zombie for ever."""
    ready = tmp_path / "ready"
    child = os.fork()
    if child == 0:
        with locked(tmp_path):
            ready.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    try:
        left = holder_of(tmp_path)
        assert ready.exists()
        assert left is not None
        assert left.pid == child
        assert not is_alive(left, tmp_path)
    finally:
        os.waitpid(child, 0)


def test_a_file_is_held_by_a_lock_beside_it(tmp_path: Path) -> None:
    output = tmp_path / "new" / "anchor.safetensors"
    with locked(output):
        assert [path.name for path in output.parent.iterdir()] == [".anchor.safetensors.lock.json"]
        with pytest.raises(JobError, match=r"anchor\.safetensors is in use \(process "):
            locked(output).__enter__()
        refuse_if_held(output)  # its own process may look
        output.touch()
        assert holder_of(output) is not None
    assert [path.name for path in output.parent.iterdir()] == ["anchor.safetensors"]


@pytest.mark.parametrize("pid", ["-1", "0", '"1"', "null"])
def test_a_lock_of_no_process_is_no_lock(tmp_path: Path, pid: str) -> None:
    (tmp_path / lock.LOCK_FILE).write_text(f'{{"pid": {pid}, "host": "h", "started": ""}}')
    with pytest.raises(JobError, match=r"lock\.json is no lock file"):
        refuse_if_held(tmp_path)


def test_a_number_that_no_process_has_is_dead(tmp_path: Path) -> None:
    held_by(tmp_path, replace(Holder.here(), pid=10**30, process=None))
    assert refuse_if_held(tmp_path) is not None


def test_a_folder_that_may_be_written_to_and_not_read_can_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.open

    def opened(path: object, *options: Any, **more: Any) -> int:
        if Path(str(path)) == tmp_path:
            raise PermissionError("as for nobody but root")
        return real(path, *options, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", opened)
    with locked(tmp_path / "anchor.safetensors"):
        assert holder_of(tmp_path / "anchor.safetensors") is not None
