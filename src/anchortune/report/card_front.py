"""The YAML in front of a model card: what the Hub reads of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from anchortune.evaluation.results import Measure
from anchortune.report.card_source import HUB_ID, Made
from anchortune.report.words import measure_name, shown, span

#: Licences that the Hub knows by these names; of another, it wants ``other`` and a name.
_LICENCES = frozenset(
    {
        *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "bigscience-bloom-rail-1.0"),
        *("bigcode-openrail-m", "creativeml-openrail-m", "afl-3.0", "artistic-2.0", "bsl-1.0"),
        *("bsd", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0"),
        *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "epl-2.0", "gpl"),
        *("gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "unlicense"),
        *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"),
        *("unknown", "other"),
    }
)
#: As the Hub calls them, where it has a name for them.
_METRICS = {
    "accuracy": "accuracy",
    "win_rate": "win_rate",
    "harm": "harmful_score",
    "refusal": "refusal_rate",
    "over_refusal": "over_refusal",
    "coherence": "coherence",
}
_FILES = (".json", ".jsonl", ".csv", ".parquet", ".txt")


def as_yaml(tree: Any) -> str:
    """Plain values as YAML, in which nothing of a stranger's acts."""
    return yaml.safe_dump(_shown(tree), sort_keys=False, allow_unicode=True, width=100)


def front_matter(
    made: Made, name: str, base_id: str | None = None, licence: str | None = None
) -> dict[str, Any]:
    """What the Hub lists, links and searches by; left out is what no record says.

    Args:
        made: what the run made.
        name: of the model, in its index of results.
        base_id: where the base lies on the Hub, if the records do not say.
        licence: if the records do not say.
    """
    front: dict[str, Any] = {"library_name": "transformers" if made.part == "model" else "peft"}
    base = base_id or (made.base.hub_id if made.base is not None else None)
    if base is not None:
        front["base_model"] = base
        front["base_model_relation"] = "finetune" if made.part == "model" else "adapter"
    found = licence or _licence(made)
    if found is not None and found.lower() in _LICENCES:
        front["license"] = found.lower()
    elif found is not None:
        front |= {"license": "other", "license_name": found}
    front["pipeline_tag"] = "text-generation"
    tags = ["anchortune", "safety"] + ([] if made.part == "model" else ["lora"])
    front["tags"] = [*tags, *(["asft"] if "asft" in made.method else [])]
    if datasets := list(dict.fromkeys(_datasets(made))):
        front["datasets"] = datasets
    if results := _index(made):
        front["model-index"] = [{"name": name.rsplit("/", 1)[-1], "results": results}]
    return {key: _on_one_line(value) for key, value in front.items()}


def _licence(made: Made) -> str | None:
    """The base's, as the anchor's maker read it from its card; the start model's goes first.

    An anchor of other weights than those that were trained says nothing of theirs.
    """
    inputs = made.record.inputs
    facts = (inputs.get("defence") or {}).get("anchor") or inputs.get("anchor") or {}
    if facts.get("start") == "other":
        return None
    told = [(facts.get(parent) or {}).get("licence") for parent in ("aligned", "base")]
    return next((str(one) for one in told if one), None)


def _datasets(made: Made) -> Iterator[str]:
    for source in (made.record.inputs.get("data") or {}).get("sources") or []:
        path = str(source["path"])
        # A file has a suffix that we read; what else looks like an id was read from the Hub.
        if HUB_ID.fullmatch(path) and not path.lower().endswith(_FILES):
            yield path


def _index(made: Made) -> list[dict[str, Any]]:
    if made.results is None or made.model is None:
        return []
    by_set: dict[str, list[dict[str, Any]]] = {}
    for measure in made.results.measures:
        if made.model in measure.figures and measure.kind in _METRICS:
            by_set.setdefault(measure.set, []).append(_metric(measure, made.model))
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": name, "type": re.sub(r"[^\w.-]+", "-", name)},
            "metrics": metrics,
        }
        for name, metrics in by_set.items()
    ]


def _metric(measure: Measure, model: str) -> dict[str, Any]:
    figure = measure.figures[model]
    told = (
        f"{measure_name(measure)}, % (95 % interval {span(figure.low, figure.high)}, n {figure.n})"
    )
    return {
        "type": _METRICS[measure.kind],
        "value": round(100 * figure.value, 2),
        "name": told,
        "verified": False,
    }


def _on_one_line(value: Any) -> Any:
    """A text with line breaks could end the front matter."""
    if isinstance(value, dict):
        return {key: _on_one_line(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_on_one_line(item) for item in value]
    return " ".join(value.split()) if isinstance(value, str) else value


def _shown(value: Any) -> Any:
    if isinstance(value, dict):
        return {_shown(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return shown(value) if isinstance(value, str) else value
