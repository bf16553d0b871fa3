"""Small GGUF files unpacked once, into a cache: as they are, each load parses and dequantises anew.

For a 135M model that takes longer than many steps of training. Large ones would fill the disk, and
are read as they are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from anchortune.checkpoints.gguf_file import GgufCheckpoint, UnknownArchitecture
from anchortune.errors import AnchortuneError
from anchortune.files import beside, sha256_file
from anchortune.progress import Progress

logger = logging.getLogger(__name__)

#: Where the cache lies; empty: nowhere.
VARIABLE = "ANCHORTUNE_CACHE"
#: In float32 a file becomes up to eight times as large: 4 GiB.
MOST_BYTES = 2**29


def cache_folder() -> Path | None:
    """``ANCHORTUNE_CACHE``, or ``anchortune`` in the user's cache folder; None: off, or no home."""
    named = os.environ.get(VARIABLE)
    try:
        if named is not None:
            return Path(named).expanduser() if named else None
        root = os.environ.get("XDG_CACHE_HOME")
        return (Path(root) if root else Path.home() / ".cache") / "anchortune"
    except RuntimeError:  # a user without a home, as in many containers
        return None


def unpacked(file: Path, make: Callable[[Path], None]) -> Path | None:
    """The model folder that a GGUF file was unpacked into, by the file's hash.

    Args:
        file: the ``.gguf`` file.
        make: writes the folder where it is missing; it is seen whole or not at all.

    Returns:
        None where the file is large, or where there is no place for the folder.
    """
    import transformers

    root = cache_folder()
    found = file.stat()
    if root is None or found.st_size > MOST_BYTES:
        return None
    digest = _digest(str(file), found.st_size, found.st_mtime_ns)
    final = root / "gguf" / f"{digest[:32]}-transformers-{transformers.__version__}"
    if final.is_dir():
        return final
    try:
        logger.info("unpacking %s into %s", file.name, final)
        with beside(final) as temporary, Progress(f"unpacking {file.name}"):
            make(temporary)
            temporary.chmod(0o755)
            temporary.rename(final)
    except AnchortuneError:
        raise
    except Exception as error:  # a full disk, or a broken file: whoever loads it directly says so
        if not final.is_dir():  # else another process was faster
            logger.info("%s is unpacked at every load: %s", file.name, error)
            return None
    return final


@functools.lru_cache(maxsize=16)
def _digest(file: str, size: int, changed_ns: int) -> str:
    """The hash of a file that has not changed since."""
    return sha256_file(file)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers' hints kept off the terminal while it unpacks a GGUF file.

    One says that packed weights are slow in 16 bits, which is not so here: they are unpacked for
    good.
    """
    from transformers.utils import logging as chatter

    level = chatter.get_verbosity()
    chatter.set_verbosity_error()
    try:
        yield
    finally:
        chatter.set_verbosity(level)


def clear_quantisation(model: Any) -> None:
    """Forgets that the weights came from GGUF: they are plain floats now and may be saved."""
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def check_gguf(file: Path) -> None:
    """Checks, once for a file that does not change, that its header is that of a whole model.

    Raises:
        CheckpointError: it is broken, or does not say how large its model is.
    """
    found = file.stat()
    _checked(str(file), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _checked(file: str, size: int, changed_ns: int) -> None:
    with contextlib.suppress(UnknownArchitecture):  # which Transformers may load all the same
        GgufCheckpoint(label=file, path=Path(file)).check_model()


def write_unpacked(file: Path, folder: Path) -> None:
    """A GGUF file as a model folder in float32, with its tokenizer where it carries one.

    Raises:
        OSError: it cannot be read; and whatever else transformers raises.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(file)
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        clear_quantisation(model)
        model.save_pretrained(folder)
        with contextlib.suppress(OSError, ValueError, ImportError, KeyError, TypeError):
            AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
