"""Every sentence that tells a mistake says what to do about it, as far as the source shows it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "anchortune"
#: What a person is told to do, at the beginning of a clause; or what would be right.
VERBS = (
    "add ask attach build call change check choose convert delete drop evaluate export fill "
    "find fix free freeze get give go grant install keep leave lengthen let list load log "
    "lower make measure mend merge move name narrow open pass pip put quote raise read remove "
    "rename resume run save say screen see set shard shorten show skip split start take "
    "target train try turn unfreeze unset update use wait wrap write"
)
ORDER = rf"(?:^|[;:,(.—] ?|\b(?:and|or|so|then|first) )(?:{VERBS.replace(' ', '|')})\b"
RIGHT = (
    r"expected|\bneeds |\bends? in |\bit has |\bthere (?:is|are) [{]|\bknown (?:here|are)|"
    r"\bwhich (?:has|have) to be |\bserver\.url goes|\bgives one\b|\bis needed: "
    r"|\bmust be |in a loop of your own|ask `"
)
#: A sentence that somebody else ends: of an error below, or a mend worked out beside it.
ENDED_ELSEWHERE = re.compile(
    r"\{[^{}]*(?:error|reason|why|problem|mend|nearest|_what|_sentence|_FETCH|_NOWHERE|first)"
    r"[^{}]*\}\W*$|\{[^{}]*mend[^{}]*\}"
)
#: Raised to be told within another's sentence, which has the mend; or never a user's doing.
WITHIN = {
    "adapter/compose.py": r"it (?:is|holds) ",
    "adapter/merge.py": "so it is no adapter that PEFT saved",
    "adapter/update.py": "only a plain LoRA",
    "checkpoints/adapter_config.py": "has rank",
    "checkpoints/source.py": "has no revision",
    "data/clean.py": r"has no \{",
    "evaluation/coherence.py": "likelihoods do not fit",
    "evaluation/outputs.py": "a row of",
    "evaluation/server.py": r"\{told\}: prompt",
    "jobs/diagnose_measures.py": "cannot be read",
    "report/card_source.py": "leads out of",
    "setup/rows.py": "holds preferences",
}


def words(node: ast.expr) -> str:
    """A message with its placeholders as written; empty where it is made elsewhere."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = [
            str(part.value)
            if isinstance(part, ast.Constant)
            else "{" + ast.unparse(part).replace("{", "").replace("}", "") + "}"
            for part in node.values
        ]
        return "".join(parts)
    return ""


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, message) of every mistake that a file tells a user."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
            continue
        name = getattr(node.exc.func, "id", "")
        # A validator's ValueError becomes a ConfigError's sentence.
        validator = name == "ValueError" and re.match(r"config|sections|.*_config$", path.stem)
        if (name in OURS or validator) and node.exc.args:
            yield node.lineno, words(node.exc.args[0])


OURS = {
    node.name
    for path in (SRC / "errors.py", SRC / "report" / "sweep_load.py")
    for node in ast.parse(path.read_text("utf-8")).body
    if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
} | {"SweepError"}


def mended(text: str) -> bool:
    """Whether a message says what to do, or leaves that to what it is put together from."""
    return not text or any(re.search(pattern, text) for pattern in (ORDER, RIGHT, ENDED_ELSEWHERE))


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda p: str(p.relative_to(SRC)))
def test_a_mistake_is_told_with_its_mend(path: Path) -> None:
    within = WITHIN.get(path.relative_to(SRC).as_posix())
    without = [
        f"{path.name}:{line}: {text}"
        for line, text in messages(path)
        if not mended(text) and not (within and re.search(within, text))
    ]
    assert without == []


def test_the_rule_sees_a_sentence_without_a_mend() -> None:
    assert not mended("{path}: the set is empty.")
    assert not mended("rank {rank} is above what the anchor holds")
    assert mended("{path}: the set is empty; name another.")
    assert mended("{where}: {error}")
    assert len(OURS) > 8
    assert sum(1 for path in SRC.rglob("*.py") for _ in messages(path)) > 500
