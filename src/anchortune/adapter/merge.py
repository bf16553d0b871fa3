"""A LoRA adapter folded into the weights it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from anchortune.errors import CheckpointError


def merge_adapter(model: Any, adapter: str | Path) -> Any:
    """The model with ``adapter`` merged into its weights, in the dtype that it had.

    The sum is taken in float32 whatever the model's dtype, for in 16 bits most of a small update
    would be rounded away before it is added; only the result is rounded.

    Args:
        model: the model that the adapter was trained on; it is changed.
        adapter: a PEFT folder or Hub id.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
    """
    from peft import PeftModel

    dtype = model.dtype
    try:
        wrapped = PeftModel.from_pretrained(model.to(torch.float32), str(adapter))
        return wrapped.merge_and_unload(safe_merge=True).to(dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise CheckpointError(
            f"adapter {adapter} does not load on the model ({reason[0]}): it belongs on the model "
            "that it was trained on"
        ) from None
