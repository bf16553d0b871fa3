"""A LoRA adapter as PEFT saves it: each module's dW is s·B·A, exactly and never dense."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anchortune.checkpoints.adapter_config import (
    ADAPTER_CONFIG,
    read_adapter_config,
    scale_of,
)
from anchortune.checkpoints.checkpoint import Checkpoint, StoredTensor
from anchortune.checkpoints.index import refuse_pickles
from anchortune.checkpoints.names import Targets, _what, matches, natural
from anchortune.checkpoints.tensor_file import RawTensor, read_header, read_tensor
from anchortune.errors import CheckpointError, PairError

logger = logging.getLogger(__name__)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_LONGEST_NAME = 300
_WRAPPER = "base_model.model."
_PART = re.compile(r"(.+)\.lora_([AB])(\.\w+)?\.weight", re.DOTALL)
_MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Starts that change the base weights themselves, so that s·B·A is not what has moved."""


@dataclass(frozen=True)
class LowRank:
    """``dW = scale · left · right`` in the stored orientation: left (d_out, r), right (r, d_in)."""

    left: Tensor
    right: Tensor
    scale: float
    dtype: str


@dataclass
class AdapterCheckpoint(Checkpoint):
    """A LoRA adapter folder; ``config`` is its ``adapter_config.json``."""

    kind: str = "lora"

    def __post_init__(self) -> None:
        self.config = read_adapter_config(self.path, self.label)
        _refuse_variants(self.label, self.config)
        if not (self.path / ADAPTER_WEIGHTS).is_file():
            refuse_pickles(self.path)
            raise CheckpointError(
                f"{self.path} has {ADAPTER_CONFIG} but no {ADAPTER_WEIGHTS}"
                ": save the adapter again with save_pretrained"
            )
        self._infos = read_header(self.path / ADAPTER_WEIGHTS)[0]
        self._stored = {
            name: StoredTensor(name, info.dtype, info.shape) for name, info in self._infos.items()
        }
        dora = [name for name in self._stored if "lora_magnitude_vector" in name]
        if dora:
            raise CheckpointError(
                f"{self.label} holds DoRA magnitudes ({dora[0]!r}), so its update is not low-rank: "
                "merge it into its base and give the merged folder"
            )

    @property
    def tensors(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor by name."""
        return self._stored

    @property
    def declared_base(self) -> str | None:
        """The base model that the adapter says it was trained on."""
        value = self.config.get("base_model_name_or_path")
        return str(value) if value else None

    def read(self, name: str) -> RawTensor:
        """One of its tensors, as stored."""
        raw = read_tensor(self._infos[name])
        self.digests[name] = raw.digest
        return raw

    def modules(self) -> dict[str, tuple[str, str]]:
        """For each adapted module, without PEFT's prefix, the names of its A and B.

        Raises:
            CheckpointError: an A without its B or the other way round, or two of one module.
        """
        found: dict[str, tuple[str, str]] = {}
        for name in self._stored:
            match = _PART.fullmatch(name)
            if match is None:
                continue
            here, there = ("A", "B") if match[2] == "A" else ("B", "A")
            other = f"{match[1]}.lora_{there}{match[3] or ''}.weight"
            if other not in self._stored:
                raise CheckpointError(f"{self.label} has {name!r} but no {other!r}: get it again")
            if here == "B":
                continue
            module = match[1].removeprefix(_WRAPPER).replace(".base_layer", "")
            if module in found or len(module) > _LONGEST_NAME:
                why = "has two of" if module in found else "names what is no module,"
                raise CheckpointError(f"adapter {self.label} {why} {module[:60]!r}: get it again")
            found[module] = (name, other)
        return dict(sorted(found.items(), key=lambda item: natural(item[0])))

    def select(self, targets: Targets) -> list[str]:
        """The adapted modules that ``targets`` mean, in natural order.

        Raises:
            CheckpointError: a target that matches none, saying what the adapter holds; or a
                convolution.
        """
        modules = self.modules()
        if isinstance(targets, str) and targets.lower() == "all-linear":
            chosen = list(modules)
        else:
            chosen = [module for module in modules if matches(module, targets)]
        wanted = [targets] if isinstance(targets, str) else [[target] for target in targets]
        for target in wanted:
            everything = isinstance(target, str) and target.lower() == "all-linear"
            if not everything and not any(matches(module, target) for module in modules):
                name = target if isinstance(target, str) else target[0]
                raise CheckpointError(
                    f"adapter {self.label} adapts no module that target_modules {name!r} matches. "
                    f"{_what(list(modules))}"
                )
        if not chosen:
            raise CheckpointError(
                f"adapter {self.label} holds no lora_A and lora_B tensors: get it again"
            )
        for module in chosen:
            for name in modules[module]:
                if len(self._stored[name].shape) != 2:
                    raise CheckpointError(
                        f"adapter {self.label}: {name!r} is no matrix (a convolution?): "
                        "leave its module out of target_modules"
                    )
        return chosen

    def scale(self, module: str) -> float:
        """``s`` of one module: alpha / r, or alpha / sqrt(r) for rsLoRA, with its own patterns.

        Raises:
            CheckpointError: the rank in the config is not that of the tensors, or A's not B's.
        """
        a_name, b_name = self.modules()[module]
        held, other = self._stored[a_name].shape[0], self._stored[b_name].shape[1]
        if held != other:
            raise CheckpointError(
                f"adapter {self.label}: {a_name!r} has rank {held} and {b_name!r} {other}: "
                "get it again"
            )
        try:
            return scale_of(self.config, module, held)
        except CheckpointError as error:
            raise CheckpointError(f"adapter {self.label}: {error}") from None

    def is_transposed(self, module: str, stored_shape: tuple[int, ...]) -> bool:
        """Whether the base stores the module (d_in, d_out), after comparing shapes.

        Raises:
            PairError: B·A fits the base's tensor in neither orientation.
        """
        a_name, b_name = self.modules()[module]
        shape = (self._stored[b_name].shape[0], self._stored[a_name].shape[1])
        transposed = bool(self.config.get("fan_in_fan_out"))
        expected = shape[::-1] if transposed else shape
        if tuple(stored_shape) != expected:
            raise PairError(
                f"adapter {self.label}: B·A of {module!r} is {expected[0]} × {expected[1]} but the "
                f"base's weight is {' × '.join(map(str, stored_shape))}: "
                f"it was trained on another model ({self.declared_base or 'not named'})"
            )
        return transposed

    def delta(self, module: str, transposed: bool) -> LowRank:
        """``dW`` of one module as a product, in the orientation the base stores it in."""
        a_name, b_name = self.modules()[module]
        a, b = self.read(a_name).value, self.read(b_name).value
        dtype = self._stored[a_name].dtype
        scale = self.scale(module)
        self.digests[f"{module} scale"] = repr(scale)  # the same A and B at another s are others
        left, right = (a.T, b.T) if transposed else (b, a)
        return LowRank(left, right, scale, dtype)

    def note_unanchored(self, chosen: Sequence[str]) -> list[str]:
        """What the adapter changes besides ``chosen``'s s·B·A, each as one sentence."""
        notes = []
        left = [name for name in self._stored if _PART.fullmatch(name) is None]
        saved = self.config.get("modules_to_save")
        if saved:
            notes.append(
                f"adapter {self.label} also replaces {', '.join(saved)} (modules_to_save), "
                "which this anchor does not cover"
            )
        if self.config.get("bias", "none") != "none" or self.config.get("lora_bias"):
            notes.append(
                f"adapter {self.label} also trains biases, which this anchor does not cover"
            )
        if left and not notes:
            notes.append(
                f"adapter {self.label} also holds {len(left)} tensors that are no lora_A or lora_B "
                f"of a weight ({left[0]!r}), which this anchor does not cover"
            )
        for note in notes:
            logger.warning(note)
        return notes


def _refuse_variants(label: str, config: Mapping[str, Any]) -> None:
    """Raises for every kind of adapter whose update is not s·B·A on untouched base weights."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"adapter {label} is {kind}, not LORA: merge it into its base first")
    if config.get("use_dora"):
        raise CheckpointError(
            f"adapter {label} is DoRA, so its update is not low-rank: "
            "merge it into its base and give the merged folder"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        raise CheckpointError(
            f"adapter {label} started from {start}, which changed the base weights too, so s·B·A "
            "is not what moved: convert it to plain LoRA when saving "
            "(path_initial_model_for_weight_conversion), or merge it"
        )
    if config.get("target_parameters"):
        raise CheckpointError(
            f"adapter {label} adapts bare parameters ({config['target_parameters'][0]!r}), "
            "as mixtures of experts need: merge it and target the attention only"
        )
    if config.get("alora_invocation_tokens"):
        raise CheckpointError(
            f"adapter {label} is an activated LoRA, which acts on some tokens only: "
            "its update is no difference of weights"
            ": give a plain LoRA"
        )
