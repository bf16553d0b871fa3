"""Constrained fine-tuning (arXiv 2406.05946): the first answer tokens held to the aligned model."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from anchortune.config_defences import FirstTokensSection
from anchortune.defences.base import Defence, TaskLoss

_IGNORE = -100


class FirstTokens(FirstTokensSection, Defence):
    """The token loss ``−(2/β_t)·log σ(β_t·(log π(y_t) − log π_ref(y_t)))``, π_ref the start model.

    At the start its gradient is that of cross-entropy. The more a token's likelihood has grown, the
    less it is pushed further, and the sooner so the larger its β; the answer's first tokens, in
    which a refusal is decided, have large ones.
    """

    source: ClassVar[str] = "2406.05946"

    def task_loss(self) -> TaskLoss | None:
        """The loss, a mean over the tokens that carry a label."""
        return self._loss

    def _loss(self, logits: Tensor, labels: Tensor, reference_logits: Tensor) -> Tensor:
        """The loss in float32; 0 where no token carries a label.

        Args:
            logits: (rows, tokens, vocabulary), of the model in training.
            labels: (rows, tokens), −100 where nothing is learnt; not shifted.
            reference_logits: as ``logits``, of the start model.
        """
        targets = labels[:, 1:]
        learnt = targets != _IGNORE
        if not learnt.any():
            return logits.float().sum() * 0.0
        wanted = targets[learnt]
        gain = _log_likelihood(logits[:, :-1][learnt], wanted)
        gain = gain - _log_likelihood(reference_logits[:, :-1][learnt], wanted).detach()
        beta = self._betas(answer_positions(labels)[:, 1:][learnt])
        return (-(2.0 / beta) * logsigmoid(beta * gain)).mean()

    def _betas(self, positions: Tensor) -> Tensor:
        """β of tokens at ``positions`` (from 1) of their answers, float32."""
        beta = torch.full(positions.shape, self.beta_rest, device=positions.device)
        beta[positions <= self.tokens] = self.beta_next
        beta[positions == 1] = self.beta_first
        return beta


def answer_positions(labels: Tensor) -> Tensor:
    """Which token of its answer each is, from 1; 0 where there is no label.

    Args:
        labels: (rows, tokens); an answer is a run of tokens without −100 between them.
    """
    learnt = labels != _IGNORE
    counted = learnt.long().cumsum(dim=1)
    before = torch.where(learnt, 0, counted).cummax(dim=1).values
    return (counted - before) * learnt


def _log_likelihood(logits: Tensor, targets: Tensor) -> Tensor:
    """(n,) log-likelihoods, float32, from logits (n, vocabulary) and tokens (n,)."""
    logits = logits.float()
    return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
