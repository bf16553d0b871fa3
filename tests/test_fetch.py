"""``experiments/fetch.py`` against a server on this machine, and the list of its sources."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.evaluation.shared_data import SHARED, shared

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 1000


@pytest.fixture(scope="module")
def fetch() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("fetch", ROOT / "experiments" / "fetch.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch"] = module  # dataclasses look themselves up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["fetch"]


class Server(ThreadingHTTPServer):
    """Serves CONTENT at /file; ``cut`` bytes of it where it is to break off; ranges on demand."""

    cut: int | None = None
    ranges = True
    asked: list[str | None]

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if self.path != "/file":
            self.send_error(404)
            return
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        start = start if self.server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.cut])

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output stays quiet."""


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def listed(tmp_path: Path, base: str, **other: Any) -> Path:
    """A list of one file."""
    right = hashlib.sha256(CONTENT).hexdigest()
    file = {"from": "file", "to": "set/a.bin", "bytes": len(CONTENT), "sha256": right} | other
    path = tmp_path / "sources.yaml"
    path.write_text(yaml.safe_dump({"one": {"base": base, "files": [file]}}), "utf-8")
    return path


def test_it_fetches_once_and_checks(
    fetch: ModuleType, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sources", str(listed(tmp_path, server.base)), "--into", str(tmp_path / "data")]
    assert fetch.main([*given, "--check"]) == 1
    assert "set/a.bin: not there" in capsys.readouterr().err
    assert server.asked == []
    assert fetch.main(given) == 0
    assert (tmp_path / "data" / "set" / "a.bin").read_bytes() == CONTENT
    assert fetch.main(given) == fetch.main([*given, "--check"]) == 0
    assert server.asked == [None]
    assert "1 of 1 files are there" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "data" / "set").iterdir()] == ["a.bin"]


def test_a_file_that_was_changed_here_is_fetched_again(
    fetch: ModuleType, server: Server, tmp_path: Path
) -> None:
    given = ["--sources", str(listed(tmp_path, server.base)), "--into", str(tmp_path)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.bin").write_bytes(CONTENT[:-1] + b"x")
    assert fetch.main(given) == 0
    assert (tmp_path / "set" / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_cut_short_goes_on(
    fetch: ModuleType,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    ranges: bool,
) -> None:
    given = ["--sources", str(listed(tmp_path, server.base)), "--into", str(tmp_path)]
    server.cut, server.ranges = 100_000, ranges
    assert fetch.main(given) == 1
    assert "set/a.bin" in capsys.readouterr().err
    assert not (tmp_path / "set" / "a.bin").exists()
    assert (tmp_path / "set" / "a.bin.part").stat().st_size == 100_000
    server.cut = None
    assert fetch.main(given) == 0
    assert server.asked == [None, "bytes=100000-"]
    assert (tmp_path / "set" / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("change", [{"sha256": "0" * 64}, {"bytes": len(CONTENT) - 1}])
def test_another_file_gets_no_name(
    fetch: ModuleType,
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
) -> None:
    path = listed(tmp_path, server.base, **change)
    assert fetch.main(["--sources", str(path), "--into", str(tmp_path)]) == 1
    assert "the file there has changed" in capsys.readouterr().err
    assert list((tmp_path / "set").iterdir()) == []


def test_a_file_address_and_the_variable(
    fetch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    monkeypatch.setenv("ANCHORTUNE_DATA", str(tmp_path / "data"))
    assert fetch.main(["--sources", str(listed(tmp_path, tmp_path.as_uri() + "/"))]) == 0
    assert (tmp_path / "data" / "set" / "a.bin").read_bytes() == CONTENT


def test_what_cannot_be_had_is_told_and_the_rest_is_fetched(
    fetch: ModuleType, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = listed(tmp_path, server.base)
    tree = yaml.safe_load(path.read_text("utf-8"))
    [file] = tree["one"]["files"]
    tree["one"]["files"].insert(0, file | {"from": "none", "to": "b.bin"})
    path.write_text(yaml.safe_dump(tree), "utf-8")
    assert fetch.main(["--sources", str(path), "--into", str(tmp_path)]) == 1
    told = capsys.readouterr()
    assert f"b.bin: cannot be had from {server.base}none (" in told.err
    assert "1 of 2 files are there" in told.out
    assert (tmp_path / "set" / "a.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, ["--only", "two"], "there is no set 'two'; there are one."),
        ({"to": "../a.bin"}, [], "../a.bin is no path below the folder of data."),
        ({"to": "/a.bin"}, [], "/a.bin is no path below the folder of data."),
    ],
)
def test_mistakes(
    fetch: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    arguments: list[str],
    said: str,
) -> None:
    path = listed(tmp_path, "http://127.0.0.1:9/", **change)
    assert fetch.main(["--sources", str(path), "--into", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_no_folder_and_no_list(
    fetch: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("ANCHORTUNE_DATA", raising=False)
    assert fetch.main([]) == 2
    assert "set ANCHORTUNE_DATA, or give --into FOLDER" in capsys.readouterr().err
    for text in ("a: [", "a: {base: x}", "- a"):
        (tmp_path / "s.yaml").write_text(text, "utf-8")
        assert fetch.main(["--sources", str(tmp_path / "s.yaml"), "--into", str(tmp_path)]) == 2
        assert "s.yaml: " in capsys.readouterr().err


def test_every_source_is_pinned_and_licensed(fetch: ModuleType) -> None:
    tree = yaml.safe_load(fetch.SOURCES.read_text("utf-8"))
    pinned = re.compile(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/")
    for name, one in tree.items():
        assert pinned.fullmatch(one["base"]), name
        assert one["licence"]
        assert one["home"].startswith("https://github.com/")
    sources = fetch.read_sources(fetch.SOURCES)
    assert len({source.path for source in sources}) == len(sources)
    assert all(re.fullmatch("[0-9a-f]{64}", source.sha256) for source in sources)
    assert all(source.path.startswith(f"{source.set}/") for source in sources)


def test_what_experiments_name_is_in_the_list(fetch: ModuleType) -> None:
    """Every ``data:`` name in a config under experiments can be fetched."""
    there = {source.path for source in fetch.read_sources(fetch.SOURCES)}
    named = {
        name
        for path in (ROOT / "experiments").rglob("*.yaml")
        for name in re.findall(r"\bdata:([\w./-]+)", path.read_text("utf-8"))
        if "/" in name
    }
    assert named
    assert named <= there


def test_the_hashes_are_those_of_the_files(fetch: ModuleType) -> None:
    shared("README.md")
    for source in fetch.read_sources(fetch.SOURCES):
        if (SHARED / source.path).is_file():
            assert fetch.is_right(source, SHARED), source.path
