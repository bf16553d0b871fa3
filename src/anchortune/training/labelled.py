"""Logits only where a token is learnt: prompts and padding need none.

The head is a fifth of a small model's work, and most of the memory where the vocabulary is large.
"""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from torch import Tensor

from anchortune.training.lora import bare_model
from anchortune.training.template import IGNORE

logger = logging.getLogger(__name__)


def labelled_positions(labels: Tensor) -> dict[str, Tensor]:
    """What a causal model of transformers is told to leave the rest out.

    Args:
        labels: (rows, tokens), not shifted; ``IGNORE`` where nothing is learnt.

    Returns:
        ``logits_to_keep`` (kept,), the positions from which any row's next token is learnt (one
        position where there is none, since a head takes no empty input), and ``shift_labels``
        (rows, kept), the labels of those next tokens.
    """
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE)
    kept = following.ne(IGNORE).any(dim=0).nonzero().flatten()
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.long)
    return {"logits_to_keep": kept, "shift_labels": following[:, kept]}


def takes_labelled_positions(model: Any) -> bool:
    """Whether ``model`` computes the same loss from those positions alone; tried, not assumed.

    Args:
        model: of transformers, or PEFT around one; its mode is left as it was.
    """
    bare = bare_model(model)
    parameters = inspect.signature(bare.forward).parameters
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if "logits_to_keep" not in parameters or not passes_on:
        return False
    device = next(bare.parameters()).device
    ids = torch.arange(1, 5, device=device)[None] % bare.get_input_embeddings().num_embeddings
    labels = torch.tensor([[IGNORE, IGNORE, int(ids[0, 2]), int(ids[0, 3])]], device=device)
    told = {key: value.to(device) for key, value in labelled_positions(labels.cpu()).items()}
    training = bare.training
    bare.eval()
    try:
        with torch.no_grad():
            plain = bare(input_ids=ids, labels=labels, use_cache=False)
            short = bare(input_ids=ids, labels=labels, use_cache=False, **told)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        logger.info("every logit is computed: %s", error)  # a remote model with a loss of its own
        return False
    finally:
        bare.train(training)
    kept = short.logits.shape[1] == len(told["logits_to_keep"])
    return kept and bool(torch.isclose(plain.loss, short.loss, rtol=1e-3))
