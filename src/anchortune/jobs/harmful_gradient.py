"""The direction of steepest descent on a set of answers, module by module, without any training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import clean_name, match_name
from anchortune.anchor.build import factorise_matrix
from anchortune.config import ModelSection
from anchortune.errors import AnchorError
from anchortune.evaluation.progress import progress
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers, load_model, load_tokenizer
from anchortune.training.batches import Collator, TokenisedData
from anchortune.training.template import IGNORE

_ROWS = 8


def descent(
    start: ModelSection, numbers: Numbers, modules: list[str], data: TokenisedData, rank: int
) -> dict[str, Factors]:
    """The factors of ``-∇L`` by module, L the mean loss of all answer tokens, whatever the batches.

    Besides the sums, in float32 on the CPU, no more than one module's gradient is held at a time:
    it is added to its sum and freed as soon as the backward pass has it.

    Args:
        start: the model.
        numbers: device and dtypes.
        modules: of the checkpoint, by name.
        data: the rows.
        rank: singular triplets to keep.

    Raises:
        CheckpointError: the model cannot be loaded.
        AnchorError: a module is not in it, or its gradient is zero or no number.
    """
    model = load_model(start, numbers)
    model.requires_grad_(False)
    model.eval()
    model.config.use_cache = False
    sums: dict[str, Tensor] = {}
    for name, weight in _weights(model, modules).items():
        weight.requires_grad_(True)
        sums[name] = torch.zeros(weight.shape, dtype=torch.float32)
        weight.register_post_accumulate_grad_hook(_adder(sums[name]))  # type: ignore[no-untyped-call]
    _backward(model, load_tokenizer(start), numbers, data)
    del model
    factors = {}
    for name in modules:
        total = sums.pop(name)
        size = float(total.double().norm())
        if not math.isfinite(size) or size == 0.0:
            what = "zero" if size == 0.0 else "no number"
            raise AnchorError(
                f"the gradient of {name} is {what}: leave it out of target_modules, or look "
                "into the data"
            )
        factors[name] = factorise_matrix(total.neg_(), rank)
    return factors


def _adder(total: Tensor) -> Any:
    def add(weight: Tensor) -> None:
        if weight.grad is not None:
            total.add_(weight.grad.to("cpu", torch.float32))
            weight.grad = None

    return add


def _weights(model: nn.Module, modules: list[str]) -> Mapping[str, nn.Parameter]:
    """The live weights of the checkpoint's ``modules``, by name."""
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        key = match_name(clean_name(name), modules) if isinstance(weight, nn.Parameter) else None
        if key is not None and isinstance(weight, nn.Parameter):
            found[key] = weight
    missing = [name for name in modules if name not in found]
    if missing:
        raise AnchorError(
            f"{missing[0]} of the checkpoint is not in the loaded model: leave it out of "
            "target_modules"
        )
    return found


def _backward(model: Any, tokenizer: Any, numbers: Numbers, data: TokenisedData) -> None:
    device = numbers.device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate, rows = Collator(pad), data.rows
    learnt = sum(label != IGNORE for row in rows for label in row.labels[1:])
    half = numbers.compute != torch.float32
    with progress("gradient", len(rows)) as tell:
        for at in range(0, len(rows), _ROWS):
            chosen = rows[at : at + _ROWS]
            batch = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in chosen])
            labels = batch.pop("labels").to(device)
            with torch.autocast(device.type, dtype=numbers.compute, enabled=half):
                logits = model(**{key: value.to(device) for key, value in batch.items()}).logits
            loss = nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1).float(),
                labels[:, 1:].flatten(),
                ignore_index=IGNORE,
                reduction="sum",
            )
            torch.autograd.backward(loss / learnt)
            tell(min(at + _ROWS, len(rows)))
