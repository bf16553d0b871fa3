"""A model that runs: from a folder, the Hub or a GGUF file, its adapters merged in.

Mixed precision. With LoRA, the frozen weights are held in the picked dtype and the adapter in
float32; the forward pass runs under autocast where that dtype is a 16-bit one. With every weight
trained, the weights are float32 and only the forward pass is 16-bit. float16 is trained with loss
scaling.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anchortune.adapter.compose import CONFIG, WEIGHTS
from anchortune.adapter.merge import check_adapter, check_fit, merge_adapter
from anchortune.checkpoints.gguf_header import check_header
from anchortune.checkpoints.index import INDEX, SINGLE, folder_tensors
from anchortune.checkpoints.packaged import resolve
from anchortune.config import LoraSection, MachineSection, ModelSection
from anchortune.errors import CheckpointError, TrainingError
from anchortune.files import is_temporary, sha256_file
from anchortune.hardware import pick_device, pick_dtype
from anchortune.models.checks import (
    check_counts,
    check_shapes,
    knows_nothing,
    no_tokenizer,
    without_tokenizer,
)
from anchortune.models.unpacked import (
    check_gguf,
    clear_quantisation,
    quiet,
    unpacked,
    write_unpacked,
)

logger = logging.getLogger(__name__)

_WEIGHTS = ("*.safetensors", "*.gguf")


@dataclass(frozen=True)
class Place:
    """Where a model's files lie, as ``from_pretrained`` wants it."""

    folder: str
    options: dict[str, Any]

    @property
    def gguf(self) -> str | None:
        """The file's name, for a GGUF file."""
        return self.options.get("gguf_file")


@dataclass(frozen=True)
class Numbers:
    """What is computed where, and in which dtype.

    Attributes:
        device: of the forward and backward pass.
        compute: dtype of that pass; autocast is used where it has 16 bits.
        weights: dtype in which the start weights are held.
    """

    device: torch.device
    compute: torch.dtype
    weights: torch.dtype

    @property
    def compute_name(self) -> str:
        """``bfloat16`` for ``torch.bfloat16``."""
        return str(self.compute).removeprefix("torch.")


def pick_numbers(machine: MachineSection, lora: LoraSection | None) -> Numbers:
    """Device and dtypes for this machine.

    Raises:
        TrainingError: the device asked for is not there, or QLoRA is asked of a machine that
            cannot do it.
    """
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[machine.device]:
        raise TrainingError(
            f"machine.device is {machine.device}, which this machine has not; use auto or cpu."
        )
    device = pick_device(machine.device)
    if lora is not None and lora.qlora:
        if device.type != "cuda":
            raise TrainingError(
                f"lora.qlora needs a CUDA device and this machine computes on {device.type}; set "
                "lora.qlora to false."
            )
        if importlib.util.find_spec("bitsandbytes") is None:
            raise TrainingError(
                "lora.qlora needs bitsandbytes, which is not installed: pip install "
                "'anchortune[qlora]', or set lora.qlora to false."
            )
    compute = pick_dtype(machine.dtype, device)
    if compute == torch.float16 and device.type == "cpu":
        raise TrainingError("machine.dtype float16 is no dtype for a CPU; use bfloat16 or float32.")
    return Numbers(device, compute, compute if lora is not None else torch.float32)


def locate(section: ModelSection) -> Place:
    """Where the model's files are.

    Raises:
        CheckpointError: the path is no model, or holds pickled weights only.
    """
    path = Path(resolve(section.path)).expanduser()
    options: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    if path.exists() and section.revision is not None:
        raise CheckpointError(
            f"{section.path}: model.revision is for a Hub id and this is a local path; "
            "leave it out."
        )
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{section.path}: a model is a folder, a .gguf file or a Hub id; give one of them."
            )
        check_header(path)
        return Place(str(path.parent), {**options, "gguf_file": path.name})
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{section.path}: no config.json in it, so it is no model folder"
                "; name the one that holds it."
            )
        if (path / "adapter_config.json").is_file():  # transformers would load its base instead
            raise CheckpointError(
                f"{section.path}: it holds an adapter; give its base as model.path and the "
                "adapter, in a folder of its own, as model.adapter."
            )
        if not any((path / name).is_file() for name in (SINGLE, INDEX)):
            raise CheckpointError(
                f"{section.path}: neither {SINGLE} nor {INDEX} in it; pickled weights are not "
                "read, save them again with save_pretrained."
            )
        folder_tensors(path)  # the library follows an index wherever it points
        return Place(str(path), {**options, "use_safetensors": True})
    if path.is_absolute() or section.path.startswith((".", "~")) or section.path.count("/") > 1:
        raise CheckpointError(f"{section.path}: no such model folder or file; check the path.")
    return Place(section.path, {**options, "revision": section.revision, "use_safetensors": True})


def _unpacked(place: Place) -> Place:
    """A place that loads fast: a GGUF file's folder in the cache, where it has one."""
    if place.gguf is None:
        return place
    file = Path(place.folder) / place.gguf
    folder = unpacked(file, lambda target: write_unpacked(file, target))
    if folder is None:
        check_gguf(file)
        return place
    options = {key: value for key, value in place.options.items() if key != "gguf_file"}
    return Place(str(folder), {**options, "use_safetensors": True})


def _quiet(place: Place) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if place.gguf is None else quiet()


def _refused(section: ModelSection, error: Exception, what: str = "") -> CheckpointError:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return CheckpointError(f"{section.path}: cannot be loaded ({what}{reason[0]}).")


def load_tokenizer(section: ModelSection) -> Any:
    """The model's tokenizer.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    from transformers import AutoTokenizer

    named = locate(section)
    place = _unpacked(named)
    bare = without_tokenizer(Path(place.folder))
    if bare and named.gguf is None:
        raise no_tokenizer(section.path, None)
    place = named if bare else place  # let transformers say why
    options = {k: v for k, v in place.options.items() if k != "use_safetensors"}
    try:
        with _quiet(place):
            tokenizer = AutoTokenizer.from_pretrained(place.folder, **options)
    except Exception as error:  # what transformers raises on broken files shares no base class
        what = "no tokenizer can be read from it: " if bare else ""
        raise _refused(section, error, what) from None
    if knows_nothing(tokenizer):
        raise no_tokenizer(section.path, named.gguf)
    return tokenizer


def load_config(section: ModelSection) -> Any:
    """The model's config.

    Raises:
        CheckpointError: it cannot be read.
    """
    from transformers import AutoConfig

    place = _unpacked(locate(section))
    check_counts(section.path, Path(place.folder) / "config.json")
    options = {k: v for k, v in place.options.items() if k != "use_safetensors"}
    try:
        config = AutoConfig.from_pretrained(place.folder, **options)
    except Exception as error:  # as above
        raise _refused(section, error) from None
    kernel = getattr(config, "_attn_implementation", None)
    if isinstance(kernel, str) and "/" in kernel and not section.trust_remote_code:
        raise CheckpointError(
            f"{section.path}: its config asks for attention code of the repository {kernel}; take "
            "attn_implementation out of its config.json, or set trust_remote_code if you trust it."
        )
    return config


def load_skeleton(section: ModelSection) -> Any:
    """The model's architecture without its weights, on the meta device: free to plan with.

    Raises:
        CheckpointError: the config cannot be read or names no causal language model, or the
            weights or the adapter are of other shapes.
    """
    from transformers import AutoModelForCausalLM

    config, place = load_config(section), locate(section)
    try:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(
                config, trust_remote_code=section.trust_remote_code
            )
    except Exception as error:  # as above
        raise _refused(section, error) from None
    if place.gguf is None and Path(place.folder).is_dir():
        check_shapes(section.path, Path(place.folder), skeleton)
    if section.adapter is not None:
        check_fit(skeleton, section.adapter)
    return skeleton


def load_model(
    section: ModelSection, numbers: Numbers, *, four_bit: bool = False, auto: Any = None
) -> Any:
    """The start model with its weights, the alignment adapter merged, on ``numbers.device``.

    Args:
        section: which model.
        numbers: device and dtypes.
        four_bit: hold the weights in NF4 (QLoRA).
        auto: the class of transformers that loads it; None: ``AutoModelForCausalLM``. It has to
            find every tensor that it wants.

    Raises:
        CheckpointError: it cannot be loaded, lacks a tensor, or the adapter does not fit.
        TrainingError: an adapter is to be merged into 4-bit weights.
    """
    from transformers import AutoModelForCausalLM

    place = locate(section)
    if auto is None and not four_bit:
        place = _unpacked(place)
    options = dict(place.options)
    if four_bit:
        if section.adapter is not None:
            raise TrainingError(
                "model.adapter cannot be merged into 4-bit weights; merge it first and save the "
                "result, or set lora.qlora to false."
            )
        options["quantization_config"] = _nf4(numbers.compute)
        options["device_map"] = {"": numbers.device}
    # An adapter is merged in float32: in 16 bits most of a small update would be rounded away.
    dtype = torch.float32 if section.adapter is not None else numbers.weights
    if place.gguf is None:
        load_config(section)  # for what it may not ask for
    try:
        with _quiet(place):
            model, found = (auto or AutoModelForCausalLM).from_pretrained(
                place.folder, dtype=dtype, output_loading_info=True, **options
            )
    except Exception as error:  # as above
        raise _refused(section, error) from None
    if lost := found["missing_keys"]:  # transformers would fill them at random, and only warn
        raise CheckpointError(
            f"{section.path}: has no {min(lost)}, so it is another kind of model; name another."
        )
    if place.gguf is not None:
        clear_quantisation(model)
        cast(model, dtype)
    if section.adapter is not None:
        model = cast(merge_adapter(model, section.adapter), numbers.weights)
    return model if four_bit else model.to(numbers.device)


def cast(model: Any, dtype: torch.dtype) -> Any:
    """``model`` with its weights in ``dtype``, as if it had been loaded in it.

    ``model.to(dtype)`` would also round what is computed and not saved, such as the frequencies of
    rotary embeddings, which transformers keeps in float32: in bf16 distant positions would blur.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                setattr(module, name, buffer.to(dtype))
    return model


def _nf4(compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def identity(section: ModelSection) -> dict[str, Any]:
    """Which weights a model section names: path, revision, and hashes of the files' content.

    ``sha256`` is taken over the SHA-256 of each weights file, in order of name, so that it does
    not depend on where the files lie; for one file, ``files`` holds its own as well. The configs
    are hashed besides, for they say what is computed with the weights.

    Raises:
        CheckpointError: the model or its adapter is not there, or the adapter cannot be read.
    """
    place = locate(section)
    found: dict[str, Any] = {"path": section.path, "revision": section.revision}
    if place.gguf is not None:
        files = [Path(place.folder) / place.gguf]
    else:
        folder = Path(place.folder)
        if not folder.is_dir():
            folder, found["revision"] = _snapshot(section)
        folder_tensors(folder)  # before its bytes are read: they are what the headers say
        found_here = (file for pattern in _WEIGHTS for file in folder.glob(pattern))
        files = sorted(file for file in found_here if not is_temporary(file.name))
        found["config_sha256"] = sha256_file(folder / "config.json")
    hashes = {file.name: sha256_file(file) for file in files}
    found["files"] = hashes
    found["sha256"] = _hash(hashes)
    if section.adapter is not None:
        found["adapter"] = adapter_identity(section.adapter)
    return found


def adapter_identity(adapter: str) -> dict[str, Any]:
    """Which weights an adapter holds: path, revision, and hashes of its two files.

    Raises:
        CheckpointError: it is not there or cannot be read.
    """
    folder, commit = check_adapter(adapter)
    return {
        "path": adapter,
        "revision": commit,
        "sha256": _hash({WEIGHTS: sha256_file(folder / WEIGHTS)}),
        "config_sha256": sha256_file(folder / CONFIG),
    }


def _hash(hashes: dict[str, str]) -> str:
    """Over the files' hashes, in order of name."""
    return hashlib.sha256("".join(hashes[name] for name in sorted(hashes)).encode()).hexdigest()


def _snapshot(section: ModelSection) -> tuple[Path, str]:
    """The local copy of a Hub model's weights, and its commit."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(
                section.path,
                revision=section.revision,
                allow_patterns=["*.safetensors", "*.json", "*.jinja", "tokenizer*", "*.model"],
            )
        )
    except Exception as error:  # the Hub client's errors share no base class
        raise _refused(section, error) from None
    return folder, folder.name
