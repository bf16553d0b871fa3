"""One job at a time in a folder, and a dead one does not hold it for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from anchortune import lock
from anchortune.errors import JobError
from anchortune.lock import Holder, holder_of, is_alive, locked


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
