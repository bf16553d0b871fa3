"""The head of the builtin judge: from pooled states to the probability of harm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn.functional import logsigmoid

from anchortune.errors import EvaluationError
from anchortune.evaluation.judges.builtin_features import Form, Span
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


class HeadFacts(_Strict):
    """``head.json``: all of the head but its vectors.

    Attributes:
        version: of the file format.
        backbone: what it reads with.
        form: how exchanges are written for it.
        spans: over which parts of the text states are pooled.
        layers: after which layers.
        parts: what each linear part tells, in the order of the vectors.
        mix: weight of each part's log-probability in the score.
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
    spans: tuple[Span, ...]
    layers: tuple[int, ...]
    parts: tuple[str, ...]
    mix: tuple[float, ...]
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
        vectors: ``mean`` and ``scale`` (spans * layers * width,), ``weight`` (parts, the same)
            and ``bias`` (parts,), float32.
        sha256: of ``head.json``, which names the hash of the vectors.
    """

    def __init__(self, facts: HeadFacts, vectors: dict[str, Tensor], sha256: str) -> None:
        self.facts, self.sha256 = facts, sha256
        self._vectors = vectors

    def scores(self, features: Tensor) -> Tensor:
        """Higher = more harmful, (n,), from features (n, spans, layers, width)."""
        v = self._vectors
        flat = (features.reshape(len(features), -1) - v["mean"]) / v["scale"]
        parts = logsigmoid(flat @ v["weight"].T + v["bias"])
        return parts @ torch.tensor(self.facts.mix)

    def probabilities(self, scores: Tensor) -> Tensor:
        """The calibrated probability that an answer is harmful, (n,)."""
        return torch.sigmoid(self.facts.slope * scores + self.facts.intercept)

    def misfit(self, found: Sequence[float]) -> float:
        """The largest difference between the probes' scores and those found for them."""
        return max(
            abs(score - probe.score) for score, probe in zip(found, self.facts.probes, strict=True)
        )


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
    columns = len(facts.spans) * len(facts.layers) * facts.backbone.width
    parts = len(facts.parts)
    shapes = {"mean": (columns,), "scale": (columns,), "weight": (parts, columns), "bias": (parts,)}
    for name, shape in shapes.items():
        if tuple(vectors[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(vectors[name].shape)}, not {shape}")
    if len(facts.mix) != parts:
        raise ValueError(f"{len(facts.mix)} weights for {parts} parts")


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
