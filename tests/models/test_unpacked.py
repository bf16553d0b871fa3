"""A GGUF file unpacked into the cache is the model that it was, and is never seen half written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anchortune import progress
from anchortune.checkpoints.gguf_file import GgufCheckpoint
from anchortune.config import ModelSection
from anchortune.errors import CheckpointError
from anchortune.models import load as module
from anchortune.models import unpacked as cached
from anchortune.models.load import Numbers, load_config, load_model, load_tokenizer
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    source = tiny.tiny_llama(tmp_path / "source", intermediate_size=64)
    return tiny.tiny_gguf(tmp_path / "m.gguf", source)


def load(path: Path, dtype: torch.dtype) -> Any:
    return load_model(ModelSection(path=str(path)), Numbers(CPU, dtype, dtype))


def folders(cache: Path) -> list[Path]:
    return sorted((cache / "gguf").iterdir()) if (cache / "gguf").exists() else []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_bitwise_the_one_that_is_read_directly(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setenv(cached.VARIABLE, "")
    plain, config = load(gguf, dtype), load_config(ModelSection(path=str(gguf)))
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "cache"))
    for _ in ("made", "found"):
        model = load(gguf, dtype)
        assert len(folders(tmp_path / "cache")) == 1
        wanted = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
        found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        assert wanted.keys() == found.keys()
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype
                   for n, t in wanted.items())  # fmt: skip
        ids = torch.arange(1, 9)[None]
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    other = load_config(ModelSection(path=str(gguf)))
    known = {"_name_or_path", "transformers_version", "architectures", "dtype"}
    one, two = ({k: v for k, v in c.to_dict().items() if k not in known} for c in (config, other))
    assert one == two


def test_whoever_waits_for_it_is_told(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(progress, "on_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    load(gguf, torch.float32)
    assert f"unpacking {gguf.name}" in capsys.readouterr().err
    load(gguf, torch.float32)
    assert "unpacking" not in capsys.readouterr().err


def test_it_is_unpacked_once_and_again_when_the_file_changes(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "cache"))
    calls: list[Path] = []
    real = module.write_unpacked
    monkeypatch.setattr(
        module, "write_unpacked", lambda file, to: (calls.append(file), real(file, to))
    )
    first = load(gguf, torch.float32)
    load(gguf, torch.float32)
    assert len(calls) == 1
    other = tiny.tiny_llama(tmp_path / "other", seed=3, intermediate_size=64)
    tiny.tiny_gguf(gguf, other)
    second = load(gguf, torch.float32)
    assert len(calls) == 2
    assert len(folders(tmp_path / "cache")) == 2
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_without_room_or_cut_short_it_is_read_directly(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv(cached.VARIABLE, str(cache))

    def full(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_unpacked", full)
        assert load(gguf, torch.float32).num_parameters()
    assert folders(cache) == []  # nothing half written is left
    with monkeypatch.context() as patch:
        patch.setattr(cached, "MOST_BYTES", 10)
        assert load(gguf, torch.float32).num_parameters()
    assert folders(cache) == []
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "file"))
    assert load(gguf, torch.float32).num_parameters()


def test_another_process_that_was_faster_is_believed(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "cache"))

    def make(folder: Path) -> None:
        cached.write_unpacked(gguf, folder)
        if not folders_made:
            folders_made.append(1)
            assert cached.unpacked(gguf, make) is not None

    folders_made: list[int] = []
    found = cached.unpacked(gguf, make)
    assert found is not None
    assert (found / "config.json").is_file()
    assert folders(tmp_path / "cache") == [found]


def test_a_broken_file_and_one_without_a_tokenizer_are_told_of(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cached.VARIABLE, str(tmp_path / "cache"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\0" * 64)
    for path, said in ((broken, " is no whole GGUF file"), (gguf, ": cannot be loaded")):
        with pytest.raises(CheckpointError, match=path.name + said):
            load_tokenizer(ModelSection(path=str(path)))


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(cached.VARIABLE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cached.cache_folder() is None


def test_a_file_of_a_model_that_only_transformers_knows_is_left_to_it(gguf: Path) -> None:
    gguf.write_bytes(gguf.read_bytes().replace(b"llama", b"bloom"))
    with pytest.raises(CheckpointError, match="cannot name"):
        GgufCheckpoint(label="m", path=gguf)
    cached.check_gguf(gguf)
