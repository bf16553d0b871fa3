"""Broken output is seen, sound answers are not flagged, and likelihoods are what they say."""

from __future__ import annotations

import csv
import json
import random
import string
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchortune.errors import EvaluationError
from anchortune.evaluation.coherence import (
    KINDS,
    MARGIN_NATS,
    broken_output_warning,
    coherence,
    incoherence,
    likelihoods,
    unlikely_below,
)
from anchortune.evaluation.generate import render_prompt
from anchortune.evaluation.judges.base import Exchange
from tests.evaluation.shared_data import shared

SOUND = [
    "No.",
    "Paris",
    "42 is the answer, for 6 * 7 = 42.",
    "I'm sorry, but I can't help with that.",
    "1. Take the bread.\n2. Take the cheese.\n3. Put one on the other.\n4. Eat.",
    "你好，我可以帮助你完成这个任务。",
    "Gewiss: zuerst nimmt man das Brot, dann schneidet man den Käse, und zuletzt isst man beides.",
    "def f(x):\n    return x + 1\n\nprint(f(2))  # 3",
    "| a | b |\n|---|---|\n| one | two |\n| three | four |",
    "The HTTP and NTFS specs are by the W3C and others; see the RFCs for more of this.",
    "café naïve 😀 jalapeño",
    "Ha ha ha! That is a good one.",
]
BROKEN = [
    ("", "empty"),
    (" \n\t", "empty"),
    ("!!! ??? ...", "no letters"),
    ("1 2 3 4", "no letters"),
    ("ok \x00\x01\x02\x03\x04", "unprintable characters"),
    ("\ufffd\ufffd a", "unprintable characters"),
    ("the the the the the the the the the the the the the the the the", "repeated"),
    ("I am sorry. " * 30, "repeated"),
    ("Sure, here is how. First, you take the first step and then. " * 5, "repeated"),
    ("a" * 300, "repeated"),
    ("x = 1 ; - + * ( ) 77 [ ] } ]", "mostly symbols"),
    ("xkqjzv wwrtp zzzvk plmnbq trsvk and more", "mostly non-words"),
]


@pytest.mark.parametrize("text", SOUND)
def test_sound_answers_are_not_flagged(text: str) -> None:
    assert incoherence(text) is None


@pytest.mark.parametrize(("text", "reason"), BROKEN)
def test_broken_answers_are(text: str, reason: str) -> None:
    assert incoherence(text) == reason
    assert reason in KINDS


@given(st.text(max_size=400))
def test_any_text_is_read_without_an_error(text: str) -> None:
    reason = incoherence(text)
    assert reason is None or reason in KINDS
    assert (reason == "empty") == (not text.strip())


@given(st.sampled_from(SOUND[2:5]), st.integers(12, 40))
def test_a_loop_at_the_end_of_a_sound_answer_is_seen(text: str, times: int) -> None:
    assert incoherence(f"{text} {'and then we do it all over again, ' * times}") == "repeated"


def test_random_letters_are_mostly_seen() -> None:
    chance = random.Random(0)
    texts = [
        " ".join(
            "".join(chance.choices(string.ascii_lowercase, k=chance.randint(3, 9)))
            for _ in range(60)
        )
        for _ in range(100)
    ]
    assert sum(incoherence(text) == "mostly non-words" for text in texts) >= 95


def test_sound_answers_of_chat_models_pass() -> None:
    texts = []
    for name in ("gpt4", "llama2new", "mistralinstruct"):
        with shared(f"xstest/xstest_v2_completions_{name}.csv").open(encoding="utf-8") as stream:
            texts += [row["completion"] for row in csv.DictReader(stream)]
    found = coherence(texts)
    assert found.figure.n == 1350
    assert found.figure.value >= 0.999


def test_answers_that_never_end_are_seen() -> None:
    """These were made without an end token: sound at first, then a loop."""
    name = "meta-llama-3-8b-instruct__jailbreakbench_baseline.json"
    path = shared(f"refusal_direction/completions/{name}")
    texts = [row["response"] for row in json.loads(path.read_text("utf-8"))["completions"]]
    assert coherence(texts).shares()["repeated"] > 0.8
    assert coherence([text[:80] for text in texts]).figure.value > 0.9


def test_one_answer_to_all_is_broken_unless_it_refuses() -> None:
    found = coherence(["positive"] * 9 + ["a sound answer"])
    assert found.figure.value == pytest.approx(0.1)
    assert found.shares() == {"repeated": 0.9}
    assert coherence(["I'm sorry, I can't help with that."] * 10).figure.value == 1
    assert coherence(["positive"] * 5).figure.value == 1  # too few to tell
    assert coherence(["positive"] * 5 + [f"answer {i} to it" for i in range(5)]).figure.value == 1


def test_figures_and_notes() -> None:
    texts = ["", "", "fine answer", "another one", "the the " * 30]
    found = coherence(texts, [None, None, -1.0, -9.0, -0.5], threshold=-4.0)
    assert found.reasons == [
        "empty", "empty", None, "unlikely under the aligned model", "repeated",
    ]  # fmt: skip
    assert (found.figure.value, found.figure.n) == (0.2, 5)
    assert 0 < found.figure.low < 0.2 < found.figure.high < 1
    assert found.likelihood == pytest.approx(-3.5)
    assert found.shares() == {"empty": 0.4, "repeated": 0.2, "unlikely": 0.2}
    assert found.note() == (
        "empty 40.0%, repeated 20.0%, unlikely 20.0%; mean log-likelihood per token -3.50"
    )
    assert coherence(["fine answer"]).note() == ""
    with pytest.raises(EvaluationError, match="the set is empty"):
        coherence([])
    with pytest.raises(EvaluationError, match="1 likelihoods do not fit 2"):
        coherence(["a", "b"], [-1.0])


def test_a_warning_where_a_low_score_comes_from_broken_output() -> None:
    sound = coherence([f"a sound answer, number {word}" for word in ("one", "two", "ten")])
    assert broken_output_warning("sft", "advbench", sound) is None
    found = coherence(["", "", "", "yes of course", "let us see"])
    text = broken_output_warning("sft", "advbench", found, [False, False, False, True, None])
    assert text is not None
    assert text.startswith("sft: 60% of its answers to advbench are broken output (empty 60%)")
    assert text.endswith("Of its 1 coherent answers 1 were judged harmful.")
    assert broken_output_warning("sft", "advbench", coherence([""] * 3), [False] * 3) is not None


def test_the_threshold_lies_under_the_references_own_answers() -> None:
    own = [None, *(-1.0 - i / 100 for i in range(100))]
    assert unlikely_below(own) == pytest.approx(-1.99 - MARGIN_NATS)
    assert unlikely_below([-2.0]) == -2.0 - MARGIN_NATS
    with pytest.raises(EvaluationError, match="all empty"):
        unlikely_below([None])


@pytest.mark.parametrize("head", ["", "Tell me what this is: "])  # the second is run once
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_likelihoods_are_those_of_one_exchange_at_a_time(
    llama_aligned: Path, batch_size: int, head: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_aligned)
    model = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    model.train()
    exchanges = [
        Exchange("Hi", "Hello there"),
        Exchange("A much longer question than the first one", "No"),
        Exchange("Hm", "  "),
        Exchange("Count", "one two three four five six seven"),
        Exchange("Ä", "ö"),
    ]
    exchanges = [Exchange(head + exchange.prompt, exchange.answer) for exchange in exchanges]
    done: list[int] = []
    sizes: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(
        lambda _, __, given: sizes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found = likelihoods(model, tokenizer, exchanges, batch_size, on_done=done.append)
    hook.remove()
    assert model.training
    if head and batch_size == 8:
        assert [rows for rows, _ in sizes] == [1, 4]
        assert sizes[0][1] >= len(head)
    assert done[-1] == 4
    model.eval()
    for exchange, value in zip(exchanges, found, strict=True):
        prompt = tokenizer(render_prompt(tokenizer, exchange.prompt), add_special_tokens=False)
        answer = tokenizer(exchange.answer.strip(), add_special_tokens=False)["input_ids"]
        if not answer:
            assert value is None
            continue
        ids = torch.tensor([prompt["input_ids"] + answer])
        labels = ids.clone()
        labels[0, : len(prompt["input_ids"])] = -100
        with torch.no_grad():
            loss = model(input_ids=ids, labels=labels).loss
        assert value == pytest.approx(-loss.item(), abs=1e-4)


def test_long_answers_are_cut_to_what_the_model_holds(llama_aligned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama_aligned)
    model = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    long = [Exchange("why " * 400, "so " * 400), Exchange("why", "so " * 400)]
    whole = likelihoods(model, tokenizer, long)
    cut = likelihoods(model, tokenizer, [Exchange(e.prompt, e.answer[:256]) for e in long])
    assert whole == pytest.approx(cut, abs=1e-4)
    assert all(value is not None and value < 0 for value in whole)


def test_text_far_from_the_model_is_less_likely(llama_aligned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from anchortune.evaluation.generate import generate

    tokenizer = AutoTokenizer.from_pretrained(llama_aligned)
    model = AutoModelForCausalLM.from_pretrained(llama_aligned, dtype=torch.float32)
    prompts = ["one", "two", "three"]
    own = generate(model, tokenizer, prompts, max_new_tokens=12)
    pairs = [Exchange(p, a) for p, a in zip(prompts, own, strict=True)]
    other = [Exchange(p, "zebra quiz") for p in prompts]
    mine = [v for v in likelihoods(model, tokenizer, pairs) if v is not None]
    theirs = [v for v in likelihoods(model, tokenizer, other) if v is not None]
    assert mine
    assert min(mine) > max(theirs)
