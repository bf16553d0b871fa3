"""The folder of an evaluation: whose it is, by everything that decides its result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anchortune import run_folder
from anchortune.errors import EvaluationError
from anchortune.evaluation.config import EvalConfig

#: Keys that decide how fast something is done, and nothing else.
_PACE = {"batch_size", "concurrency", "timeout_s", "retries", "api_key_env"}
#: What of a model's identity decides its answers, wherever its files lie.
_WEIGHTS = {"sha256", "config_sha256", "server", "model", "system"}


class OtherEvaluation(run_folder.OtherRun, EvaluationError):
    """The folder holds another evaluation."""


class EvalFolder(run_folder.RunFolder):
    """The folder of one evaluation."""

    error = EvaluationError
    other_run = OtherEvaluation


def identity(
    config: EvalConfig,
    models: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Mapping[str, Any]],
    judges: list[dict[str, Any]],
    tokens: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
    """What decides the result: the config without its pace, and the hashes of everything.

    Args:
        config: of the evaluation.
        models: by name, the identity of each.
        sets: by name, where its prompts come from, with hashes.
        judges: their identities.
        tokens: by model that runs here and by set, the hash of the prompts' tokens.
    """
    return {
        **without_pace(config.science()),
        "sha256": {
            "models": {name: _hashes(found) for name, found in models.items()},
            "sets": {
                name: found.get("items_sha256", found.get("sha256")) for name, found in sets.items()
            },
            "tokens": tokens,
        },
        "judged_by": without_pace(judges),
    }


def _hashes(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in found.items() if key in _WEIGHTS}
    adapters = found.get("adapters") or []
    return kept | {"adapters": [(one["sha256"], one["config_sha256"]) for one in adapters]}


def without_pace(value: Any) -> Any:
    """Plain values without the keys that say only how fast something is done."""
    if isinstance(value, dict):
        return {key: without_pace(item) for key, item in value.items() if key not in _PACE}
    return [without_pace(item) for item in value] if isinstance(value, list) else value
