"""The direction of steepest descent on a set of answers, of a model as it is now, by module.

One estimator serves the harmful anchor made without training (``D_harm = -∇L`` on harmful pairs),
the alignment direction looked for again at a checkpoint (``-∇L`` on refusals), and an anchor made
anew in mid-training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from anchortune.anchor.binding import clean_name, match_name
from anchortune.anchor.build import factorise_matrix
from anchortune.errors import AnchorError
from anchortune.maths.factors import Factors
from anchortune.models.load import Numbers
from anchortune.training.batches import Collator
from anchortune.training.labelled import labelled_positions, takes_labelled_positions
from anchortune.training.template import IGNORE, Encoded

_ROWS = 8


def descent(
    model: Any,
    tokenizer: Any,
    numbers: Numbers,
    modules: Sequence[str],
    rows: Sequence[Encoded],
    rank: int,
    tell: Callable[[int], None] = lambda done: None,
) -> dict[str, Factors]:
    """The factors of ``-∇L`` by module, L the mean loss of all answer tokens, whatever the batches.

    Under a LoRA adapter that is the gradient at the effective weight ``W + s·B·A``, with respect to
    that weight. Besides the sums, in float32 on the CPU, no more than one module's gradient is held
    at a time: it is added to its sum and freed as soon as the backward pass has it. The model is
    left as it was: what is trained, its mode, and gradients that it holds.

    Args:
        model: live, plain or of PEFT, on ``numbers.device``.
        tokenizer: the model's, for its padding.
        numbers: device and dtypes.
        modules: by name, as the checkpoint has them.
        rows: token sequences with labels.
        rank: singular triplets to keep.
        tell: is told how many rows are done.

    Returns:
        By the names in ``modules``; each of the shape in which the model stores the weight.

    Raises:
        AnchorError: a module is not in the model, its weight is quantised, or its gradient is zero
            or no number.
    """
    weights = _weights(model, modules)
    sums = {
        name: torch.zeros(weight.shape, dtype=torch.float32) for name, weight in weights.items()
    }
    with _only(model, weights):
        hooks = [
            weight.register_post_accumulate_grad_hook(_adder(sums[name]))  # type: ignore[no-untyped-call]
            for name, weight in weights.items()
        ]
        try:
            _backward(model, tokenizer, numbers, rows, tell)
        finally:
            for hook in hooks:
                hook.remove()
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


@contextmanager
def _only(model: nn.Module, weights: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Gradients for ``weights`` alone, without dropout and cache; all of it as before at the end.

    Gradients that were there (a step may be under way) are put aside, not copied.
    """
    modes = {module: module.training for module in model.modules()}
    parameters = list(model.parameters())
    before = [(p.requires_grad, p.grad) for p in parameters]
    config: Any = model.config
    cache = getattr(config, "use_cache", None)
    wanted = {id(weight) for weight in weights.values()}
    try:
        model.eval()
        config.use_cache = False
        for parameter in parameters:
            parameter.grad = None
            parameter.requires_grad_(id(parameter) in wanted)
        with torch.enable_grad():
            yield
    finally:
        for parameter, (needed, gradient) in zip(parameters, before, strict=True):
            parameter.requires_grad_(needed)
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode
        config.use_cache = cache


def _weights(model: nn.Module, modules: Sequence[str]) -> Mapping[str, nn.Parameter]:
    """The live weights of the checkpoint's ``modules``, by name; of an adapted layer the frozen."""
    found: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        key = match_name(clean_name(name), modules) if isinstance(weight, nn.Parameter) else None
        if key is not None and isinstance(weight, nn.Parameter):
            if not weight.is_floating_point():
                raise AnchorError(
                    f"{key} is quantised ({weight.dtype}) and has no gradient: load the model in "
                    "16 bits or more"
                )
            found[key] = weight
    missing = [name for name in modules if name not in found]
    if missing:
        raise AnchorError(
            f"{missing[0]} of the checkpoint is not in the loaded model: leave it out of "
            "target_modules"
        )
    return found


def _backward(
    model: Any,
    tokenizer: Any,
    numbers: Numbers,
    rows: Sequence[Encoded],
    tell: Callable[[int], None],
) -> None:
    device = numbers.device
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    collate = Collator(pad)
    learnt = sum(label != IGNORE for row in rows for label in row.labels[1:])
    half = numbers.compute != torch.float32
    labelled = takes_labelled_positions(model)
    for at in range(0, len(rows), _ROWS):
        chosen = rows[at : at + _ROWS]
        batch = collate([{"input_ids": r.input_ids, "labels": r.labels} for r in chosen])
        told = labelled_positions(batch.pop("labels"))
        inputs = {key: value.to(device) for key, value in batch.items()}
        kept = told["logits_to_keep"].to(device)
        with torch.autocast(device.type, dtype=numbers.compute, enabled=half):
            if labelled:
                logits = model(**inputs, logits_to_keep=kept).logits
            else:
                logits = model(**inputs).logits[:, kept]
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            told["shift_labels"].to(device).flatten(),
            ignore_index=IGNORE,
            reduction="sum",
        )
        torch.autograd.backward(loss / learnt)
        tell(min(at + _ROWS, len(rows)))
