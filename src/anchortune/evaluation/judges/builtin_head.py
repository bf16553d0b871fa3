"""The head of the builtin judge: from pooled states to the probability of harm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn.functional import logsigmoid

from anchortune.errors import EvaluationError
from anchortune.evaluation.judges.builtin_features import Features, Form
from anchortune.files import atomic_path, write_json

HEAD, WEIGHTS, CARD = "head.json", "head.safetensors", "CARD.md"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneFacts(_Strict):
    """The model that the head was trained on."""

    name: str
    path: str
    licence: str
    width: int


class Probe(_Strict):
    """An exchange whose score is known: the head fits a backbone that gives the same."""

    prompt: str
    answer: str
    score: float


class Part(_Strict):
    """A linear part of the head.

    Attributes:
        name: what it tells; its vectors are called after it.
        over: what it reads: the mean over the answer, prompt and the token before the answer, or
            each window of the answer, whose logits are pooled by log-mean-exp, so that one
            harmful passage tells.
        mix: weight of its log-probability in the score.
    """

    name: str
    over: Literal["answer", "prompt", "windows"]
    mix: float


class HeadFacts(_Strict):
    """``head.json``: all of the head but its vectors.

    Attributes:
        version: of the file format.
        backbone: what it reads with.
        form: how exchanges are written for it.
        layers: after which layers states are read.
        parts: what the score is made of.
        slope: of the calibration; probability = sigmoid(slope * score + intercept).
        intercept: of the calibration.
        min_confidence: below it an answer is unscored unless the config says otherwise.
        tolerance: the largest difference of a probe's score that dtypes and kernels explain.
        probes: exchanges with known scores.
        indicative: whether it misses its bar.
        figures: how it did on sources withheld from training.
        trained_on: rows by source.
        weights_sha256: of ``head.safetensors``.
    """

    version: int
    backbone: BackboneFacts
    form: Form
    layers: tuple[int, ...]
    parts: tuple[Part, ...]
    slope: float
    intercept: float
    min_confidence: float
    tolerance: float
    probes: tuple[Probe, ...]
    indicative: bool
    figures: dict[str, dict[str, float]]
    trained_on: dict[str, int]
    weights_sha256: str


class Head:
    """Linear parts over standardised states, their log-probabilities added up and calibrated.

    Args:
        facts: see there.
        vectors: of every part ``NAME.mean``, ``.scale``, ``.weight``, as long as what it reads is
            wide, and ``.bias`` (1,), float32.
        sha256: of ``head.json``, which names the hash of the vectors.
    """

    def __init__(self, facts: HeadFacts, vectors: dict[str, Tensor], sha256: str) -> None:
        self.facts, self.sha256 = facts, sha256
        self._vectors = vectors

    def scores(self, features: Features) -> Tensor:
        """Higher = more harmful, (n,)."""
        total = torch.zeros(len(features.prompt))
        for part in self.facts.parts:
            states = getattr(features, part.over)
            mean, scale, weight, bias = (
                self._vectors[f"{part.name}.{name}"] for name in ("mean", "scale", "weight", "bias")
            )
            logits = ((states - mean) / scale) @ weight + bias
            if part.over == "windows":
                logits = pool(logits, features.counts)
            total += part.mix * logsigmoid(logits)
        return total

    def probabilities(self, scores: Tensor) -> Tensor:
        """The calibrated probability that an answer is harmful, (n,)."""
        return torch.sigmoid(self.facts.slope * scores + self.facts.intercept)

    def misfit(self, found: Sequence[float]) -> float:
        """The largest difference between the probes' scores and those found for them."""
        return max(
            abs(score - probe.score) for score, probe in zip(found, self.facts.probes, strict=True)
        )


def pool(logits: Tensor, counts: Tensor) -> Tensor:
    """Log-mean-exp over the windows that hold any token, (n,), from (n, windows)."""
    used = counts > 0
    many = used.sum(1).clamp(min=1).float()
    return logits.masked_fill(~used, -1e9).logsumexp(1) - many.log()


def load_head(folder: Any = None) -> Head:
    """The head in ``folder``, or the one that the package carries.

    Raises:
        EvaluationError: it is not whole, or of another version of the format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    place = folder or resources.files("anchortune.evaluation.judges") / "builtin_head_data"
    try:
        text = (place / HEAD).read_bytes()
        facts = HeadFacts.model_validate_json(text)
        data = (place / WEIGHTS).read_bytes()
        if hashlib.sha256(data).hexdigest() != facts.weights_sha256:
            raise ValueError(f"{WEIGHTS} is not the file that {HEAD} names")
        vectors = {name: tensor.float() for name, tensor in load(data).items()}
        _check(facts, vectors)
    except (OSError, ValueError, KeyError, ValidationError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise EvaluationError(
            f"the head of the judge builtin at {place} cannot be used ({reason}); install "
            "anchortune again."
        ) from None
    return Head(facts, vectors, hashlib.sha256(text).hexdigest())


def _check(facts: HeadFacts, vectors: dict[str, Tensor]) -> None:
    if facts.version != 1:
        raise ValueError(f"its format has version {facts.version} and 1 is known")
    width = len(facts.layers) * facts.backbone.width
    for part in facts.parts:
        columns = 2 * width if part.over == "prompt" else width
        for name, size in (("mean", columns), ("scale", columns), ("weight", columns), ("bias", 1)):
            found = tuple(vectors[f"{part.name}.{name}"].shape)
            if found != (size,):
                raise ValueError(f"{part.name}.{name} has shape {found}, not ({size},)")


def write_head(folder: Path, facts: dict[str, Any], vectors: dict[str, Tensor]) -> Head:
    """Writes a head into ``folder`` and reads it back.

    Args:
        folder: where.
        facts: the fields of ``HeadFacts`` but ``version`` and ``weights_sha256``.
        vectors: as ``Head`` takes them.
    """
    from safetensors.torch import save

    data = save({name: tensor.contiguous() for name, tensor in vectors.items()})
    whole = {"version": 1, **facts, "weights_sha256": hashlib.sha256(data).hexdigest()}
    HeadFacts.model_validate(whole)
    with atomic_path(folder / WEIGHTS) as path:
        path.write_bytes(data)
    write_json(folder / HEAD, whole)
    return load_head(folder)
