"""Which file of a folder holds which tensor: ``model.safetensors``, or shards and their index."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from anchortune.checkpoints.tensor_file import TensorInfo, read_header
from anchortune.errors import CheckpointError
from anchortune.files import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_JSON_BYTES = 64 << 20
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        CheckpointError: it cannot be read or is no JSON object.
    """
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise ValueError(f"longer than {_MOST_JSON_BYTES >> 20} MiB")
        value = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object: get it again")
    return value


def folder_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint folder by name, from headers alone.

    As in transformers, ``model.safetensors`` goes before an index.

    Raises:
        CheckpointError: no safetensors weights, only pickle files, an index that climbs out of its
            folder, names a file that is missing, or does not agree with the files' headers.
    """
    if (folder / SINGLE).is_file():
        return read_header(folder / SINGLE)[0]
    if (folder / INDEX).is_file():
        return _indexed(folder)
    refuse_pickles(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    held = f"only {', '.join(others[:4])}" if others else "no .safetensors file"
    raise CheckpointError(
        f"{folder} holds {held}, where a checkpoint has {SINGLE} or shards with {INDEX}"
        ": name the folder with these"
    )


def refuse_pickles(folder: Path) -> None:
    """Raises a CheckpointError that names the pickle files of ``folder``, where it has any."""
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights only as pickle ({', '.join(pickles[:3])}), which can run "
            "code when read: save them again with save_pretrained(..., safe_serialization=True)"
        )


def _indexed(folder: Path) -> dict[str, TensorInfo]:
    path = folder / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no weight_map: get it again")
    headers: dict[str, dict[str, TensorInfo]] = {}
    for file in sorted({str(value) for value in weight_map.values()}):
        headers[file] = read_header(_shard(folder, file))[0]
    tensors: dict[str, TensorInfo] = {}
    for name, file in weight_map.items():
        info = headers[str(file)].get(name)
        if info is None:
            raise CheckpointError(
                f"{path} says {name!r} is in {file}, whose header has no such tensor: get it again"
            )
        tensors[name] = info
    return tensors


def _shard(folder: Path, file: str) -> Path:
    """The path of one shard, after checking that it lies in ``folder``.

    Links inside the folder are followed, for the Hub's cache is made of them.
    """
    path = PurePosixPath(file)
    windows = PureWindowsPath(file)
    if path.is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise CheckpointError(
            f"{folder / INDEX} points out of its folder ({file!r}): this is no honest checkpoint"
            ", so take another"
        )
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{folder / INDEX} points at {file!r}, which is not safetensors"
            ": save it again with save_pretrained"
        )
    if not (folder / path).is_file():
        raise CheckpointError(f"{folder / INDEX} points at {file!r}, which is missing: get it")
    return folder / path
