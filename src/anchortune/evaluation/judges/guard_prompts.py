"""The prompt of a guard that has no chat template: shipped here, or read where it is published.

Texts that are not shipped are known by their hash alone, so what is read is the published text or
an error, never something like it.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anchortune.errors import CheckpointError, EvaluationError
from anchortune.evaluation.judges.guard_templates import Template

#: What authors call the two texts.
_NAMES = {
    **dict.fromkeys(("prompt", "behavior", "question", "forbidden_prompt"), "{prompt}"),
    **dict.fromkeys(("answer", "response", "generation"), "{answer}"),
}
CARD = "README.md"


def guard_prompt(template: Template, given: str | None, model: str) -> str:
    """The published prompt, with ``{prompt}`` and ``{answer}`` where the judged texts go.

    Looked for in this order: the file that is given, this package, the card of the model.

    Args:
        template: of the guard.
        given: a file of the authors that holds it somewhere: text, Python, Markdown or JSON.
        model: the guard's folder or Hub id.

    Raises:
        EvaluationError: it is not there.
    """
    if given is not None:
        try:
            text = Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8"
            raise EvaluationError(f"judges.prompt {given}: cannot be read ({reason}).") from None
        found = find_prompt(text, template)
        if found is None:
            raise EvaluationError(
                f"judges.prompt {given}: does not hold the published prompt of {template.name}; "
                f"take it from {template.source}."
            )
        return found
    shipped = importlib.resources.files(__package__) / "prompts" / f"{template.name}.txt"
    text = shipped.read_text(encoding="utf-8") if shipped.is_file() else _card(model)
    found = find_prompt(text, template)
    if found is None:
        raise EvaluationError(
            f"the judge {template.name} reads a prompt that its authors publish and that is not in "
            f"the card of {model}: give as judges.prompt the file that holds it, from "
            f"{template.source}."
        )
    return found


def find_prompt(text: str, template: Template) -> str | None:
    """The published prompt as it stands somewhere in ``text``; None where it does not."""
    for candidate in _candidates(text, template):
        plain = canonical(candidate)
        if hashlib.sha256(plain.encode()).hexdigest() in template.sha256:
            return plain
    return None


def canonical(text: str) -> str:
    """A prompt with our names for its two texts, and without space at the ends of lines."""
    both = iter(("{prompt}", "{answer}"))
    text = re.sub("%s", lambda _: next(both, "%s"), text)
    text = re.sub(r"\{(\w+)\}", lambda found: _NAMES.get(found[1], found[0]), text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def fill(text: str, prompt: str, answer: str) -> str:
    """``text`` with the two put in; a ``{answer}`` within the prompt stays what it is."""
    before, _, rest = text.partition("{prompt}")
    between, _, after = rest.partition("{answer}")
    return f"{before}{prompt}{between}{answer}{after}"


def _candidates(text: str, template: Template) -> Iterator[str]:
    with contextlib.suppress(ValueError, RecursionError):
        yield from _strings(json.loads(text))
    yield text
    first, last = template.edges
    starts = [found.start() for found in re.finditer(re.escape(first), text)]
    ends = [found.end() for found in re.finditer(re.escape(last), text)]
    for start in starts:
        yield from (text[start:end] for end in ends if end > start)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _card(model: str) -> str:
    """The model's card; an empty one where there is none."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        file = folder / CARD
        return file.read_text("utf-8", errors="replace") if file.is_file() else ""
    if folder.exists():
        return ""
    from anchortune.checkpoints.source import open_checkpoint

    try:
        return (open_checkpoint(model).path / CARD).read_text("utf-8", errors="replace")
    except (CheckpointError, OSError):
        return ""
