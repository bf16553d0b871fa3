"""Two LoRA adapters, the second trained on the first merged in, as one adapter on the bare base.

``s₂·B₂·A₂ + s₁·B₁·A₁ = [s₁·B₁  s₂·B₂] · [A₁; A₂]``, exact but for rounding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchortune.checkpoints.adapter_config import (
    ADAPTER_CONFIG,
    read_adapter_config,
    scale_of,
)
from anchortune.checkpoints.tensor_file import read_header
from anchortune.errors import CheckpointError

CONFIG = ADAPTER_CONFIG
WEIGHTS = "adapter_model.safetensors"

#: Module -> (A, s·B), in float32.
Factors = dict[str, tuple[Tensor, Tensor]]
_PREFIX = "base_model.model."
#: What makes an adapter more than s·B·A on untouched weights, by key of its config.
_MORE = (
    "use_dora", "modules_to_save", "lora_bias", "target_parameters", "trainable_token_indices",
    "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "monteclora_config", "velora_config", "megatron_config",
)  # fmt: skip
_MOVES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")


def compose(
    first: tuple[Mapping[str, Tensor], Mapping[str, Any]],
    second: tuple[Mapping[str, Tensor], Mapping[str, Any]],
    base: str | None = None,
    revision: str | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """One plain LoRA that does to the base what both do, one after the other.

    Args:
        first: (tensors as PEFT saves them, ``adapter_config.json``) of the adapter on the base.
        second: the same of the adapter on the base with ``first`` merged in.
        base: the bare base model, named in the result.
        revision: the base's.

    Returns:
        The tensors, in float32, and the config: scales are folded into B, so that alpha is the
        rank.

    Raises:
        CheckpointError: one of them is more than s·B·A (DoRA, biases, saved modules, …), or they
            do not fit each other.
    """
    parts = [plain_factors(*first), plain_factors(*second)]
    held: Factors = {}
    for module in sorted(set(parts[0]) | set(parts[1])):
        pairs = [part[module] for part in parts if module in part]
        if len({(a.shape[1], b.shape[0]) for a, b in pairs}) > 1:
            raise CheckpointError(
                f"the two adapters have other shapes at {module}"
                "; give two that were trained on one model"
            )
        held[module] = (torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs], dim=1))
    return as_lora(
        held,
        base,
        revision,
        task_type=second[1].get("task_type") or first[1].get("task_type"),
        fan_in_fan_out=bool(first[1].get("fan_in_fan_out") or second[1].get("fan_in_fan_out")),
    )


def as_lora(
    factors: Factors,
    base: str | None = None,
    revision: str | None = None,
    *,
    task_type: str | None = "CAUSAL_LM",
    fan_in_fan_out: bool = False,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A plain LoRA of given factors, all modules at the highest of their ranks.

    Factors of lower rank are filled up with zeros, which change nothing: a rank or an alpha of its
    own for each module is not read by everybody (llama.cpp scales all of them by one alpha).

    Args:
        factors: module -> (A of shape (r, d_in), B of shape (d_out, r)); scales are in B already.
        base: the bare base model, named in the result.
        revision: the base's.
        task_type: as PEFT calls it.
        fan_in_fan_out: the base stores the modules' weights (d_in, d_out).

    Returns:
        The tensors, in float32, and ``adapter_config.json``; alpha is the rank.
    """
    state: dict[str, Tensor] = {}
    most = max(1, *(a.shape[0] for a, _ in factors.values()))
    for module, (a, b) in sorted(factors.items()):
        state[f"{_PREFIX}{module}.lora_A.weight"] = _padded(a, most, 0)
        state[f"{_PREFIX}{module}.lora_B.weight"] = _padded(b, most, 1)
    return state, {
        "peft_type": "LORA",
        "task_type": task_type,
        "base_model_name_or_path": base,
        "revision": revision,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": sorted(factors),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
        "fan_in_fan_out": fan_in_fan_out,
    }


def read_adapter(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, config) of a PEFT folder.

    Raises:
        CheckpointError: they cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_adapter_config(folder, str(folder))
    try:
        read_header(folder / WEIGHTS)  # stricter, and bounded where the library is not
        return load_file(folder / WEIGHTS), config
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"adapter {folder} cannot be read: {error}") from None


def write_adapter(folder: Path, state: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Writes both files of a PEFT folder into ``folder``, which exists."""
    from safetensors.torch import save_file

    save_file(dict(state), folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(dict(config), indent=2, ensure_ascii=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def unname_base(folder: Path, base: str, aligned: str) -> None:
    """Takes the base's name out of a saved adapter that belongs on base + ``aligned``.

    PEFT would load the base by that name, without ``aligned``, and say nothing.
    """
    path = folder / CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config.update(base_model_name_or_path=None, revision=None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(
        f"""# An adapter on a merged model

It was trained on `{base}` with the adapter `{aligned}` merged in, and does what it should only
there: on `{base}` alone the alignment is missing. So its config names no base model. Merge first:

```python
from anchortune.adapter.merge import merge_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = merge_adapter(AutoModelForCausalLM.from_pretrained("{base}"), "{aligned}")
model = PeftModel.from_pretrained(model, "adapter")
```

Where `adapter-on-base/` lies beside this folder, it holds both adapters as one, and loads on
`{base}` with PEFT alone.
""",
        encoding="utf-8",
    )


def plain_factors(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> Factors:
    """``(A, s·B)`` in float32 by module, without PEFT's prefix and ranks of zeros at the end.

    Args:
        state: the tensors as PEFT saves them.
        config: its ``adapter_config.json``.

    Raises:
        CheckpointError: it is more than s·B·A (DoRA, biases, saved modules, …).
    """
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"it is {kind}, not LORA")
    more = [key for key in _MORE if config.get(key)]
    if config.get("bias", "none") != "none":
        more.append("bias")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        more.append(f"init_lora_weights: {start}")
    if more:
        raise CheckpointError(f"it is no plain LoRA ({', '.join(more)})")
    found: Factors = {}
    for name, a in state.items():
        match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight", name)
        if match is None or a.ndim != 2:
            raise CheckpointError(f"it holds {name}, which is no plain LoRA matrix")
        if match[2] == "B":
            if name.replace(".lora_B.", ".lora_A.") not in state:
                raise CheckpointError(f"it holds {name} without its lora_A")
            continue
        b = state.get(name.replace(".lora_A.", ".lora_B."))
        if b is None:
            raise CheckpointError(f"it holds {name} without its lora_B")
        module = match[1]
        if module in found or b.ndim != 2 or b.shape[1] != a.shape[0]:
            raise CheckpointError(f"it holds {name}, which does not fit its lora_B")
        if not all(part.is_floating_point() and bool(part.isfinite().all()) for part in (a, b)):
            raise CheckpointError(f"it holds {name}, or its lora_B, with NaN or Inf")
        scale = scale_of(config, module, a.shape[0])
        a, b = _unpadded(a.float(), b.float())
        found[module] = (a, b * scale)
    if not found:
        raise CheckpointError("it holds no lora_A and lora_B")
    return found


def _padded(tensor: Tensor, rank: int, dim: int) -> Tensor:
    """A copy in float32 on the host, filled up with zeros to ``rank`` along ``dim``.

    A copy, for safetensors takes no views of one storage.
    """
    shape = list(tensor.shape)
    shape[dim] = rank
    whole = torch.zeros(shape, dtype=torch.float32)
    whole.narrow(dim, 0, tensor.shape[dim]).copy_(tensor.detach())
    return whole


def _unpadded(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The factors without the ranks at their end that are 0 in both; one rank at least."""
    used = (a.ne(0).any(dim=1) | b.ne(0).any(dim=0)).nonzero()
    rank = max(1, int(used.max()) + 1 if used.numel() else 0)
    return a[:rank], b[:, :rank]
