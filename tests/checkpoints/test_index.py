"""Headers and indexes that are broken, or do not mean well, are refused by name."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from anchortune.checkpoints.index import INDEX, SINGLE, folder_tensors
from anchortune.checkpoints.tensor_file import read_header, read_tensor
from anchortune.errors import CheckpointError


def write_raw(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
def test_tensors_are_read_as_safetensors_reads_them(tmp_path: Path, dtype: torch.dtype) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.randn(3, 5).to(dtype), "b": torch.randn(7).to(dtype)}, path)
    infos, _ = read_header(path)
    for name, expected in load_file(path).items():
        raw = read_tensor(infos[name])
        assert raw.value.dtype == dtype
        assert torch.equal(raw.value, expected)


def test_a_digest_depends_on_name_shape_and_values(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    value = torch.arange(6.0)
    save_file({"a": value, "b": value.clone(), "c": value.reshape(2, 3).clone()}, path)
    infos, _ = read_header(path)
    digests = {read_tensor(info).digest for info in infos.values()}
    assert len(digests) == 3
    save_file({"a": value, "other": torch.ones(9)}, tmp_path / "y.safetensors")
    moved, _ = read_header(tmp_path / "y.safetensors")
    assert read_tensor(moved["a"]).digest == read_tensor(infos["a"]).digest


BROKEN: list[tuple[str, Any, bytes, str]] = [
    ("no json", b"{nope", b"", "its header is no JSON"),
    ("no object", [1], b"", "its header is no JSON object"),
    ("twice", b'{"a":{},"a":{}}', b"", "a key occurs twice"),
    ("too short", {"a": entry(0, 8, [2])}, b"1234", "tensors end at byte"),
    ("padded", {"a": entry(0, 4, [1])}, b"12345678", "tensors end at byte"),
    ("overlap", {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, b"1" * 12, "does not start"),
    ("hole", {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, b"1" * 12, "does not start"),
    ("size", {"a": entry(0, 4, [2])}, b"1234", "has 4 bytes where F32 [2] needs 8"),
    ("dtype", {"a": entry(0, 4, [1], "F31")}, b"1234", "its dtype 'F31' is unknown"),
    ("negative", {"a": entry(0, 4, [-1])}, b"1234", "no natural numbers"),
    ("incomplete", {"a": {"dtype": "F32"}}, b"", "lacks dtype, shape or data_offsets"),
    ("metadata", {"__metadata__": {"a": 1}}, b"", "its metadata is no map of strings"),
]


@pytest.mark.parametrize(
    ("header", "data", "text"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN]
)
def test_broken_headers_are_refused(tmp_path: Path, header: Any, data: bytes, text: str) -> None:
    path = write_raw(tmp_path / "x.safetensors", header, data)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert text in str(caught.value)
    assert str(path) in str(caught.value)


def test_cut_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"\x01")
    with pytest.raises(CheckpointError, match="longer than the file"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(CheckpointError, match="longer than the file"):
        read_header(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "absent.safetensors")


def copy(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def test_single_goes_before_an_index(tmp_path: Path, llama_base: Path) -> None:
    folder = copy(llama_base, tmp_path / "both")
    save_file({"only.weight": torch.ones(2, 2)}, folder / SINGLE)
    assert list(folder_tensors(folder)) == ["only.weight"]


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/x.safetensors", "a/../../x.safetensors",
             "..\\x.safetensors", "C:\\x.safetensors"]
)  # fmt: skip
def test_an_index_that_climbs_out_is_refused(tmp_path: Path, llama_base: Path, file: str) -> None:
    folder = copy(llama_base, tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    first = next(iter(index["weight_map"]))
    index["weight_map"][first] = file
    (folder / INDEX).write_text(json.dumps(index))
    save_file({first: torch.ones(1)}, tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointError, match="points out of its folder"):
        folder_tensors(folder)


@pytest.mark.parametrize(
    ("file", "text"),
    [("gone.safetensors", "which is missing"), ("model.bin", "which is not safetensors")],
)
def test_an_index_must_name_files_that_are_there(
    tmp_path: Path, llama_base: Path, file: str, text: str
) -> None:
    folder = copy(llama_base, tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = file
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=text):
        folder_tensors(folder)


def test_an_index_must_agree_with_the_headers(tmp_path: Path, llama_base: Path) -> None:
    folder = copy(llama_base, tmp_path / "model")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"]["ghost.weight"] = next(iter(index["weight_map"].values()))
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"'ghost.weight' is in .* whose header has no such"):
        folder_tensors(folder)
    (folder / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="has no weight_map"):
        folder_tensors(folder)


def test_a_shard_cut_short_is_refused(tmp_path: Path, llama_base: Path) -> None:
    folder = copy(llama_base, tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="tensors end at byte"):
        folder_tensors(folder)


def test_pickles_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"only as pickle \(pytorch_model.bin\).*safe_ser"):
        folder_tensors(tmp_path)


def test_a_folder_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no .safetensors file"):
        folder_tensors(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"holds only odd.safetensors"):
        folder_tensors(tmp_path)
