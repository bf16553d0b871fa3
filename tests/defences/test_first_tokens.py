"""The constrained loss against a loop over tokens, and the properties its paper states."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from anchortune.defences import FirstTokens
from anchortune.defences.first_tokens import answer_positions

METHOD = FirstTokens(beta_first=0.5, beta_next=2.0, beta_rest=0.1, tokens=3)
#: Two rows: one answer; two answers, with padding at the end.
LABELS = torch.tensor(
    [
        [-100, -100, 4, 1, 3, 0, 2, 2, 1, -100],
        [-100, 3, 3, -100, -100, 1, 0, 4, 2, 3],
    ]
)
VOCABULARY = 5


def loss_of(method: FirstTokens, *args: Any) -> Any:
    loss = method.task_loss()
    assert loss is not None
    return loss(*args)


def logits_of(seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*LABELS.shape, VOCABULARY, generator=generator, dtype=dtype)


def by_hand(logits: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """The equation of the paper, one token at a time."""
    found = []
    for row in range(LABELS.shape[0]):
        position = 0
        for token in range(LABELS.shape[1]):
            label = int(LABELS[row, token])
            position = 0 if label == -100 else position + 1
            if not position or not token:
                continue
            beta = 0.5 if position == 1 else 2.0 if position <= 3 else 0.1
            gain = (
                logits[row, token - 1].log_softmax(-1)[label]
                - reference[row, token - 1].log_softmax(-1)[label]
            )
            found.append(-(2 / beta) * torch.log(torch.sigmoid(beta * gain)))
    return torch.stack(found).mean()


def test_the_positions_start_anew_with_every_answer() -> None:
    assert answer_positions(LABELS).tolist() == [
        [0, 0, 1, 2, 3, 4, 5, 6, 7, 0],
        [0, 1, 2, 0, 0, 1, 2, 3, 4, 5],
    ]
    assert answer_positions(torch.tensor([[7, 7, -100]])).tolist() == [[1, 2, 0]]


def test_the_loss_and_its_gradient_are_the_papers() -> None:
    ours, theirs = (logits_of(1).requires_grad_() for _ in range(2))
    reference = logits_of(2)
    loss, wanted = loss_of(METHOD, ours, LABELS, reference), by_hand(theirs, reference)
    loss.backward()
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-7)


def test_at_the_start_it_pushes_as_cross_entropy_does() -> None:
    ours, plain = (logits_of(1).requires_grad_() for _ in range(2))
    loss_of(METHOD, ours, LABELS, ours.detach().clone()).backward()
    cross_entropy(plain[:, :-1].reshape(-1, VOCABULARY), LABELS[:, 1:].reshape(-1)).backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=0, atol=1e-7)


def test_a_token_that_has_become_likelier_is_pushed_less_the_larger_its_beta() -> None:
    """σ(0)·2 = 1 at the start; the factor is 2·(1 − σ(β·gain)) after a gain."""
    labels = torch.tensor([[-100, 0, 0, 0, 0]])
    reference = torch.zeros(1, 5, 2)
    moved = torch.zeros(1, 5, 2)
    moved[..., 0] = 3.0
    moved.requires_grad_()
    loss_of(METHOD, moved, labels, reference).backward()
    assert moved.grad is not None
    gain = math.log(1 / (1 + math.exp(-3.0))) - math.log(0.5)
    # d log π(0) / d logit 0 = 1 − π(0) = 1/(1 + e³)
    plain = 1 / (1 + math.exp(3.0)) / 4
    factors = [2 * (1 - 1 / (1 + math.exp(-beta * gain))) for beta in (0.5, 2.0, 2.0, 0.1)]
    found = (-moved.grad[0, :4, 0] / plain).tolist()
    assert found == pytest.approx(factors, rel=1e-5)
    assert factors[3] > factors[0] > factors[1]


def test_autograd_agrees_with_differences() -> None:
    logits = logits_of(3).requires_grad_()
    reference = logits_of(4)
    loss_of(METHOD, logits, LABELS, reference).backward()
    assert logits.grad is not None
    for row, token, word in [(0, 1, 4), (0, 3, 0), (1, 0, 3), (1, 4, 2), (0, 9, 1), (1, 2, 0)]:
        step = torch.zeros_like(logits)
        step[row, token, word] = 1e-4
        with torch.no_grad():
            up = by_hand(logits + step, reference)
            down = by_hand(logits - step, reference)
        assert float(logits.grad[row, token, word]) == pytest.approx(
            float((up - down) / 2e-4), abs=1e-7
        )


def test_half_precision_logits_are_computed_in_float32() -> None:
    logits, reference = logits_of(1).bfloat16(), logits_of(2).bfloat16()
    loss = loss_of(METHOD, logits, LABELS, reference)
    assert loss.dtype == torch.float32
    wanted = by_hand(logits.double(), reference.double())
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)


def test_the_reference_gets_no_gradient_and_no_label_no_loss() -> None:
    logits, reference = logits_of(1).requires_grad_(), logits_of(2).requires_grad_()
    loss_of(METHOD, logits, LABELS, reference).backward()
    assert reference.grad is None
    silent = loss_of(METHOD, logits, torch.full_like(LABELS, -100), reference)
    silent.backward()
    assert silent.item() == 0.0
