"""The named tasks: where their rows are, how they are asked, what their classes are called.

A new task is one more entry of ``TASKS``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from anchortune.evaluation.config import Match
from anchortune.evaluation.select import BadRow, Skip, Source
from anchortune.evaluation.tasks import paper
from anchortune.evaluation.tasks.base import Matcher, TaskKind


@dataclass(frozen=True)
class Paper:
    """How the authors of AsFT ask a task and match its answers.

    Attributes:
        prompt: with ``{text}`` where the item's text goes.
        matcher: reads an answer as their script does.
        max_new_tokens: of their script.
    """

    prompt: str
    matcher: Matcher
    max_new_tokens: int = 200


@dataclass(frozen=True)
class TaskSpec:
    """One named task.

    Attributes:
        source: on the Hub; used where the config names no other.
        split: of a Hub dataset where the config names none.
        text: columns that hold the item's text, the first that exists.
        prompt: with ``{text}`` where the item's text goes.
        target: columns that hold the right answer; none for a task without one.
        match: how answers are matched; None where the task has its own way.
        choices: for ``choice``: target value -> word.
        category: a column to report by.
        kind: what its rate is.
        max_new_tokens: the longest answer.
        prepare: makes a row of the source one with the columns above; may ``Skip`` it.
        paper: the authors' way, or None.
        no_paper: why there is none.
        unread: its rows on the Hub hold no text that a mix could be held against as it is.
    """

    source: Source
    text: tuple[str, ...]
    prompt: str = "{text}"
    split: str = "test"
    target: tuple[str, ...] = ()
    match: Match | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    category: str | None = None
    kind: TaskKind = "accuracy"
    max_new_tokens: int = 16
    prepare: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    paper: Paper | None = None
    no_paper: str = ""
    unread: bool = False


def _labelled(row: dict[str, Any]) -> dict[str, Any]:
    if row.get("label") in (-1, "-1"):
        raise BadRow("label -1: this split hides its labels, take split: validation")
    return row


def _majority(row: dict[str, Any]) -> dict[str, Any]:
    """HateXplain's row with the label that most of its three annotators gave, and its text."""
    annotators = row.get("annotators")
    if annotators is None:
        return row  # a file of one's own: a text and a label
    if isinstance(annotators, Mapping):  # as on the Hub: a list for each field
        labels = list(annotators.get("label") or [])
    else:  # as in the authors' JSON: a list of annotators
        labels = [one.get("label") for one in annotators]
    best = max(set(labels), key=labels.count, default=None)
    if best is None or labels.count(best) * 2 <= len(labels):
        raise Skip("no majority among the annotators")
    names = {0: "hatespeech", 1: "normal", 2: "offensive"}
    label = names.get(best, best) if isinstance(best, int) else best
    return row | {"text": " ".join(row.get("post_tokens") or []), "label": label}


def _safe_only(row: dict[str, Any]) -> dict[str, Any]:
    """XSTest's row, its unsafe contrasts skipped: to refuse those is right."""
    label, kind = row.get("label"), str(row.get("type") or "")
    unsafe = label == "unsafe" if label is not None else kind.startswith("contrast")
    if unsafe:
        raise Skip("an unsafe prompt, whose refusal is right")
    return row


_SST2 = "Analyze the sentiment of the input, and respond only positive or negative"
_AGNEWS = (
    "Categorize the news article given in the input into one of the 4 categories:\n\n"
    "World\nSports\nBusiness\nSci/Tech\n"
)
_SST2_CHOICES = {"0": "negative", "1": "positive"}
_AGNEWS_CHOICES = {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}

TASKS: dict[str, TaskSpec] = {
    "sst2": TaskSpec(
        source=Source("stanfordnlp/sst2"),
        split="validation",  # the 872 rows that the paper tests on; the test split has no labels
        text=("sentence", "input", "text"),
        prompt=_SST2 + "\n{text}",
        target=("label", "output"),
        match="choice",
        choices=_SST2_CHOICES,
        prepare=_labelled,
        paper=Paper(paper.with_input(_SST2), paper.one_word(_SST2_CHOICES)),
    ),
    "agnews": TaskSpec(
        source=Source("fancyzhx/ag_news"),
        text=("text", "input"),
        prompt=_AGNEWS + "\n{text}",
        target=("label", "output"),
        match="choice",
        choices=_AGNEWS_CHOICES,
        prepare=_labelled,
        paper=Paper(paper.with_input(_AGNEWS), paper.agnews),
    ),
    "gsm8k": TaskSpec(
        source=Source("openai/gsm8k", subset="main"),
        text=("question", "instruction"),
        prompt="{text}\n\nEnd with a line of the form: The final answer is: N",
        target=("answer", "output"),
        match="number",
        max_new_tokens=400,
        paper=Paper(paper.without_input(), paper.last_number),
    ),
    "hatexplain": TaskSpec(
        source=Source(
            "hf://datasets/Hate-speech-CNERG/hatexplain/plain_text/test/0000.parquet",
            revision="refs/convert/parquet",  # the dataset's own rows come from a script
        ),
        text=("text", "post", "sentence", "input", "tweet"),
        prompt=(
            "Classify the post given below as hate speech, offensive or normal. Answer with the "
            "class alone.\n\n{text}"
        ),
        target=("label", "output"),
        match="choice",
        choices={"hatespeech": "hate speech", "offensive": "offensive", "normal": "normal"},
        prepare=_majority,
        no_paper="the authors published neither its prompt nor its rows",
        unread=True,  # a list of words
    ),
    "xstest": TaskSpec(
        source=Source("Paul/XSTest"),
        split="train",  # the only one
        text=("prompt",),
        category="type",
        kind="over_refusal",
        max_new_tokens=64,
        prepare=_safe_only,
        no_paper="the paper does not use it",
    ),
    "alpaca": TaskSpec(
        source=Source("hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"),
        text=("instruction", "prompt", "question"),
        target=("reference", "output"),
        category="dataset",
        kind="win_rate",
        max_new_tokens=512,
        no_paper="the authors' script rates single answers from 1 to 10 and compares none",
    ),
}
